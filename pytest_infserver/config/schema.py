"""The JSON Schema of the YAML format, made from the definitions that validate it."""

from __future__ import annotations

from typing import Any

from pytest_infserver.config.kinds import NAME
from pytest_infserver.config.model import PROFILE, ProfileConfig, ServerConfig, keys

_INTERPOLATED = {"type": "string", "pattern": r"\$\{"}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a server configuration file."""
    server = {"type": "object", "properties": _properties(ServerConfig), "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pytest-infserver configuration",
        "$defs": {"server": server, "optional": {"anyOf": [{"$ref": "#/$defs/server"}, {"type": "null"}]}},
        "oneOf": [{"$ref": "#/$defs/server", "required": ["backend"]}, _several()],
    }


def _several() -> dict[str, Any]:
    with_backend = {"type": "object", "required": ["backend"]}
    return {
        "type": "object",
        "properties": {
            "defaults": {"$ref": "#/$defs/optional"},
            "servers": {
                "type": "object",
                "minProperties": 1,
                "propertyNames": dict(NAME.schema),
                "additionalProperties": {"$ref": "#/$defs/optional"},
            },
        },
        "required": ["servers"],
        "additionalProperties": False,
        "anyOf": [
            {"properties": {"defaults": with_backend}, "required": ["defaults"]},
            {"properties": {"servers": {"additionalProperties": with_backend}}},
        ],
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
    return properties
