"""The kinds of the keys that say where a server is reached, how one knows that it is ready, and how it is ended."""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Callable, Mapping
from typing import Any

from pytest_infserver.config.kinds import COMMAND, ENDPOINT, FLAG, PATH, PORT, STRING, Kind, KindError

PROBES = ("http", "tcp", "grpc", "log", "command", "request")
"""What a probe of ``ready`` may be."""
_ON_PORTS = ("http", "tcp", "grpc")
_PORT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_TLS: Mapping[str, Kind] = {"ca": PATH, "verify": FLAG, "check_hostname": FLAG}
_SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2")


def _mapping(value: Any, known: tuple[str, ...], example: str, *path: str | int) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise KindError(f"expected a mapping such as {example}", *path)
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known are: {', '.join(known)}"
            raise KindError(f"unknown key '{key}'{hint}", *path, key)
    return value


def _checked(kind: Kind, value: Any, *path: str | int) -> Any:
    try:
        return kind.convert(value)
    except KindError as error:
        raise KindError(str(error), *path, *error.path) from None


def _tls(value: Any) -> dict[str, Any]:
    mapping = _mapping(value, tuple(_TLS), "{ca: file}")
    return {key: _checked(_TLS[key], item, key) for key, item in mapping.items() if item is not None}


def _base_path(value: Any) -> str:
    path: str = ENDPOINT.convert(value)
    if path.rstrip("/") == "" or "?" in path or "#" in path:
        raise KindError("expected a path with a name in it, such as /prefix")
    return path.rstrip("/")


def _variable(value: Any) -> str:
    if isinstance(value, str) and _VARIABLE.match(value):
        return value
    # It is not shown: it may be the key itself.
    raise KindError("expected the name of an environment variable, such as API_KEY; the key itself belongs in api_key")


def _ports(value: Any) -> dict[str, int | None]:
    if not isinstance(value, Mapping):
        raise KindError("expected a mapping of names to ports, such as {metrics: null, grpc: 9000}")
    result: dict[str, int | None] = {}
    for name, port in value.items():
        if not isinstance(name, str) or not _PORT_NAME.match(name):
            raise KindError(f"'{name}' cannot be the name of a port: letters, digits, '_' and '-'", str(name))
        result[name] = None if port is None else _checked(PORT, port, name)
    named = [port for port in result.values() if port is not None]
    if len(named) != len(set(named)):
        raise KindError("two names have the same port")
    return result


def _statuses(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, (list, tuple)) else [value]
    for index, status in enumerate(values):
        if isinstance(status, bool) or not isinstance(status, int) or not 100 <= status <= 599:
            raise KindError("expected a list of HTTP statuses such as [200]", index)
    if not values:
        raise KindError("expected a list of HTTP statuses such as [200]")
    return tuple(values)


def _pattern(value: Any) -> str:
    text: str = STRING.convert(value)
    try:
        re.compile(text.encode())
    except re.error as error:
        raise KindError(f"is no regular expression: {error}") from None
    return text


def _true(value: Any) -> bool:
    if value is not True:
        raise KindError("expected true, or leave it out")
    return True


def _request(value: Any) -> dict[str, Any]:
    mapping = _mapping(value, ("path", "json", "status"), "{path: /v1/completions, json: {prompt: hi}}")
    if mapping.get("path") is None:
        raise KindError("'path' is missing")
    result: dict[str, Any] = {"path": _checked(ENDPOINT, mapping["path"], "path")}
    if mapping.get("json") is not None:
        result["json"] = mapping["json"]
    if mapping.get("status") is not None:
        result["status"] = _checked(Kind(_statuses, {}), mapping["status"], "status")
    return result


_PARTS: Mapping[str, Callable[[Any], Any]] = {
    "http": ENDPOINT.convert,
    "tcp": _true,
    "grpc": _true,
    "log": _pattern,
    "command": COMMAND.convert,
    "request": _request,
    "status": _statuses,
    "port": STRING.convert,
    "tls": FLAG.convert,
}


def _probe(value: Any, *path: str | int) -> dict[str, Any]:
    mapping = _mapping(value, tuple(_PARTS), "{http: /health} or {log: 'is ready'}", *path)
    given = {key: item for key, item in mapping.items() if item is not None}
    kinds = [key for key in given if key in PROBES]
    if not kinds:
        raise KindError(f"expected one of {', '.join(PROBES)}", *path)
    if len(kinds) > 1:
        raise KindError(f"{' and '.join(kinds)} in one probe: write a list, - {{{kinds[0]}: ...}} and so on", *path)
    if "status" in given and kinds[0] != "http":
        where = "write it into 'request'" if kinds[0] == "request" else f"{kinds[0]} has none"
        raise KindError(f"'status' goes with http: {where}", *path, "status")
    if "port" in given and kinds[0] not in _ON_PORTS:
        raise KindError(f"'port' goes with {', '.join(_ON_PORTS)}", *path, "port")
    if "tls" in given and "port" not in given:
        raise KindError("'tls' goes with 'port', if that differs from the server's own", *path, "tls")
    return {key: _checked(Kind(_PARTS[key], {}), item, *path, key) for key, item in given.items()}


def _ready(value: Any) -> tuple[dict[str, Any], ...]:
    if isinstance(value, (list, tuple)):
        if not value:
            raise KindError("expected at least one probe, such as {http: /health}")
        return tuple(_probe(item, index) for index, item in enumerate(value))
    return (_probe(value),)


def _signal(value: Any) -> str:
    name = value if isinstance(value, str) else ""
    name = name if name.startswith("SIG") else f"SIG{name}"
    if name in _SIGNALS and hasattr(signal, name):
        return name
    raise KindError("expected the name of a signal that asks a process to end, such as INT or TERM")


_STATUS_SCHEMA = {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}, "minItems": 1}]}
_REQUEST_SCHEMA = {
    "type": "object",
    "required": ["path"],
    "properties": {"path": dict(ENDPOINT.schema), "json": {}, "status": _STATUS_SCHEMA},
    "additionalProperties": False,
}
_PROBE_SCHEMA = {
    "type": "object",
    "properties": {
        "http": {**ENDPOINT.schema, "description": "Path that answers 2xx, or one of `status`."},
        "tcp": {"const": True, "description": "The port accepts connections."},
        "grpc": {"const": True, "description": "gRPC's health service answers SERVING."},
        "log": {"type": "string", "description": "Regular expression that a line of the log matches."},
        "command": {**COMMAND.schema, "description": "Command that ends with 0."},
        "request": {**_REQUEST_SCHEMA, "description": "Request that is answered 2xx, or with one of `status`."},
        "status": _STATUS_SCHEMA,
        "port": {"type": "string", "description": "Name of one of `ports`."},
        "tls": {"type": "boolean", "description": "Whether that port speaks TLS, if not as the server's own does."},
    },
    "additionalProperties": False,
}
TLS = Kind(
    _tls,
    {
        "type": "object",
        "properties": {
            "ca": {"type": "string", "description": "File of the certificates to trust; may be the server's own."},
            "verify": {"type": "boolean", "default": True},
            "check_hostname": {"type": "boolean", "default": True},
        },
        "additionalProperties": False,
    },
)
BASE_PATH = Kind(_base_path, {"type": "string", "pattern": "^/+[^/]"})
VARIABLE = Kind(_variable, {"type": "string", "pattern": f"^{_VARIABLE.pattern[:-2]}$"})
PORTS = Kind(
    _ports,
    {
        "type": "object",
        "propertyNames": {"pattern": f"^{_PORT_NAME.pattern[:-2]}$"},
        "additionalProperties": {"anyOf": [dict(PORT.schema), {"type": "null"}]},
    },
)
READY = Kind(_ready, {"anyOf": [_PROBE_SCHEMA, {"type": "array", "items": _PROBE_SCHEMA, "minItems": 1}]})
SIGNAL = Kind(_signal, {"type": "string", "pattern": f"^(SIG)?({'|'.join(name[3:] for name in _SIGNALS)})$"})
