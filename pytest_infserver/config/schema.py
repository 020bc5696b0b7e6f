"""The JSON Schema of the YAML format, made from the definitions that validate it."""

from __future__ import annotations

from typing import Any

from pytest_infserver.config.kinds import NAME
from pytest_infserver.config.model import BACKENDS, PROFILE, ProfileConfig, ServerConfig, keys

_INTERPOLATED = {"type": "string", "pattern": r"\$\{"}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a server configuration file.

    Which of the two forms a file has is asked first, so that a mistake has one message, at its key.
    """
    properties = _properties(ServerConfig)
    properties["backend"]["anyOf"].insert(0, {"enum": list(BACKENDS)})
    server = {"type": ["object", "null"], "properties": properties, "additionalProperties": False}
    several = {"anyOf": [{"required": ["servers"]}, {"required": ["defaults"]}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:pytest-infserver:configuration",
        "title": "pytest-infserver configuration",
        "$defs": {"server": server},
        "type": "object",
        "if": several,
        "then": _several(),
        "else": {"allOf": [{"$ref": "#/$defs/server"}, _WITH_BACKEND]},
    }


# A misspelt 'backend' is told as an unknown key, not as a missing one, too.
_KNOWN_KEYS = {"propertyNames": {"enum": list(keys(ServerConfig))}}
_WITH_BACKEND = {"if": _KNOWN_KEYS, "then": {"type": "object", "required": ["backend"]}}


def _several() -> dict[str, Any]:
    gives_backend = {"type": "object", "anyOf": [{"required": ["backend"]}, {"not": _KNOWN_KEYS}]}
    return {
        "properties": {
            "defaults": {"$ref": "#/$defs/server"},
            "servers": {
                "type": "object",
                "minProperties": 1,
                "propertyNames": dict(NAME.schema),
                "additionalProperties": {"$ref": "#/$defs/server"},
            },
        },
        "required": ["servers"],
        "additionalProperties": False,
        "if": {"not": {"properties": {"defaults": gives_backend}, "required": ["defaults"]}},
        "then": {"properties": {"servers": {"additionalProperties": _WITH_BACKEND}}},
    }


def _properties(model: type[ServerConfig] | type[ProfileConfig]) -> dict[str, Any]:
    properties = {}
    for name, field in keys(model).items():
        kind = field.metadata["kind"]
        if kind is PROFILE:
            value: dict[str, Any] = {
                "type": "object",
                "properties": _properties(ProfileConfig),
                "additionalProperties": False,
            }
        else:
            value = dict(kind.schema)
        properties[name] = {
            "description": field.metadata["doc"],
            "anyOf": [value, _INTERPOLATED, {"type": "null"}],
        }
        if isinstance(field.default, (bool, int, float, str)) and field.default != "":
            properties[name]["default"] = field.default
    return properties
