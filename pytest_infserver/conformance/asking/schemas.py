"""As much of JSON Schema as the suite's own schemas need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def problem_of(value: Any, schema: Mapping[str, Any], where: str = "the value") -> str | None:
    """Return what is wrong with a value, in words, or None if it fits a schema.

    Args:
        value: The value.
        schema: Its schema, of types, enums, properties, items and their numbers alone.
        where: What the value is called.
    """
    if "enum" in schema and value not in schema["enum"]:
        return f"{where} is {value!r}, none of {schema['enum']}"
    kind = schema.get("type")
    if kind is not None and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return f"{where} is {value!r}, no {kind}"
    if isinstance(value, dict):
        return _problem_of_object(value, schema, where)
    if isinstance(value, list):
        return _problem_of_array(value, schema, where)
    return None


def _problem_of_object(value: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> str | None:
    properties = schema.get("properties", {})
    missing = [name for name in schema.get("required", ()) if name not in value]
    if missing:
        return f"{where} has no {', '.join(missing)}"
    unknown = [name for name in value if name not in properties]
    if unknown and schema.get("additionalProperties") is False:
        return f"{where} has {', '.join(unknown)}, which the schema does not know"
    found = (problem_of(value[name], one, f"{name} of {where}") for name, one in properties.items() if name in value)
    return next((problem for problem in found if problem), None)


def _problem_of_array(value: list[Any], schema: Mapping[str, Any], where: str) -> str | None:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return f"{where} has {len(value)} items"
    found = (problem_of(one, schema.get("items", {}), f"an item of {where}") for one in value)
    return next((problem for problem in found if problem), None)


def closed(**properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that has just these properties, all of them, as strict schemas must."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
