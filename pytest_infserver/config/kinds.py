"""What a configuration value may be: one Kind checks it and describes it in JSON Schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pytest_infserver.config.flags import ARGUMENT_KEYS

# The name of a folder, short enough to leave room for the paths below it.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,-]{0,99}\Z")
# Thirty years: what is longer overflows the clocks of the operating system.
_MAX_SECONDS = 1_000_000_000
_MIN_AMOUNT, _MAX_AMOUNT = 0.0001, 1_000_000
"""Ray counts in steps of that size."""
_OWN_KEYS = ["CPU", "GPU"]
_RAYS = ["memory", "object_store_memory"]
_MAX_SHOWN = 80
_SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([KMGTkmgt][Bb])")
_UNITS = {"KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
_MAX_SIZE = 10**18


class KindError(ValueError):
    """A value of the wrong kind.

    Attributes:
        path: Keys from the value that was checked down to the one that is wrong.
    """

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.path: tuple[str | int, ...] = path


@dataclass(frozen=True)
class Kind:
    """One kind of value: ``convert`` returns the normal form or raises KindError."""

    convert: Callable[[Any], Any]
    schema: Mapping[str, Any]


def shown(value: Any) -> str:
    """Return a value as messages show it."""
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, (list, tuple)):
        return "a list" if value else "an empty list"
    text = json.dumps(value, default=repr, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _no_null(text: str, *path: str | int) -> str:
    if "\0" in text:
        raise KindError("a null byte cannot be part of this text", *path)
    return text


def _string(value: Any) -> str:
    if isinstance(value, str) and value:
        return _no_null(value)
    hint = "; put it in quotes" if isinstance(value, (bool, int, float)) else ""
    raise KindError(f"expected a text, not {shown(value)}{hint}")


def _path(value: Any) -> str:
    return _string(str(value) if hasattr(value, "__fspath__") else value)


def _name(value: Any) -> str:
    if isinstance(value, str) and _NAME.match(value):
        return value
    raise KindError(
        "expected a name that can be a folder's: letters, digits and . _ - + = , beginning with a letter or digit,"
        f" at most 100; not {shown(value)}"
    )


def _url(value: Any) -> str:
    if isinstance(value, str) and re.match(r"https?://[^/\s]", value):
        return value.rstrip("/")
    raise KindError(f"expected a URL that starts with http:// or https://, not {shown(value)}")


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise KindError(f"expected true or false, not {shown(value)}{_unquote(value)}")


def _integer(low: int, high: int, what: str) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise KindError(f"expected {what}, not {shown(value)}{_unquote(value)}")

    return convert


def _unquote(value: Any) -> str:
    """Return a hint for a number or truth value that was written in quotes."""
    plain = isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?|true|false", value)
    return "; write it without quotes" if plain else ""


def _seconds(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= _MAX_SECONDS:
        return value
    limit = f" up to {_MAX_SECONDS}" if isinstance(value, (int, float)) and value > _MAX_SECONDS else ""
    raise KindError(f"expected a positive number of seconds{limit}, not {shown(value)}{_unquote(value)}")


def _wait(value: Any) -> float:
    return 0.0 if value == 0 and not isinstance(value, bool) else _seconds(value)


def _size(value: Any) -> int:
    text = value.strip() if isinstance(value, str) else ""
    match = _SIZE.fullmatch(text)
    if match:
        size = float(match[1]) * _UNITS[match[2].upper()]
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        size = -1
    if 0 <= size <= _MAX_SIZE:
        return int(size)
    raise KindError(f"expected a size such as 10 GB or 500 MB, or 0 for no limit, not {shown(value)}{_unquote(value)}")


def _command(value: Any) -> tuple[str, ...]:
    words = _strings(value)
    if not words or not words[0]:
        raise KindError("expected a list whose first word is the binary")
    return words


def _strings(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise KindError("expected a list such as [a, b], not one text: nothing is passed to a shell")
    if not isinstance(value, (list, tuple)):
        raise KindError(f"expected a list, not {shown(value)}")
    items = []
    for index, item in enumerate(value):
        if isinstance(item, bool) or not isinstance(item, (str, int, float)):
            raise KindError(f"expected a text or a number, not {shown(item)}", index)
        items.append(_no_null(str(item), index))
    return tuple(items)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise KindError(f"expected a mapping of names to values, not {shown(value)}")
    for key in value:
        if not isinstance(key, str):
            raise KindError(f"expected a text as key, not {shown(key)}")
    return dict(value)


def _environment(value: Any) -> dict[str, str | None]:
    result: dict[str, str | None] = {}
    for key, item in _mapping(value).items():
        if not key or "=" in key or "\0" in key:
            raise KindError(f"{shown(key)} cannot be the name of an environment variable")
        if isinstance(item, bool) or not (item is None or isinstance(item, (str, int, float))):
            # The value is not shown: it may be a secret.
            raise KindError("expected a text, a number or null (which unsets it); put it in quotes", key)
        result[key] = None if item is None else _no_null(str(item), key)
    return result


def _amount(value: Any, *path: str | int) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and (value == 0 or _MIN_AMOUNT <= value <= _MAX_AMOUNT):
        return float(value)
    expected = f"expected 0, or a number from {_MIN_AMOUNT} to {_MAX_AMOUNT}"
    raise KindError(f"{expected}, not {shown(value)}{_unquote(value)}", *path)


def _resources(value: Any) -> dict[str, float]:
    result = {}
    for key, item in _mapping(value).items():
        if key in _OWN_KEYS:
            raise KindError(f"write '{key.lower()}s: N' beside 'resources', not {key} in it", key)
        if key in _RAYS:
            raise KindError(f"{key} is Ray's own: use a name that 'ray start --resources' has given", key)
        result[key] = _amount(item, key)
    return result


def _endpoints(value: Any) -> dict[str, str]:
    result = {}
    for key, item in _mapping(value).items():
        result[key] = _endpoint(item, key)
    return result


def _endpoint(value: Any, *path: str | int) -> str:
    if isinstance(value, str) and value.startswith("/"):
        return value
    raise KindError(f"expected a path that starts with '/', not {shown(value)}", *path)


def _paths(value: Any) -> tuple[str, ...]:
    entries = value if isinstance(value, (list, tuple)) else [value]
    return tuple(_endpoint(entry, *([index] if entries is value else [])) for index, entry in enumerate(entries))


LEAK_KINDS = ("process", "port", "shm", "semaphore", "sysv", "socket", "file", "gpu")
"""What a server can leave behind; the part of an ``allow_leaks`` entry before the colon."""


def _leaks(value: Any) -> tuple[str, ...]:
    entries = _strings(value)
    for index, entry in enumerate(entries):
        kind, colon, glob = entry.partition(":")
        if not colon or not glob:
            raise KindError(f"expected kind:pattern, such as shm:sglang_*, not {shown(entry)}", index)
        if kind not in LEAK_KINDS:
            near = get_close_matches(kind, LEAK_KINDS, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise KindError(f"unknown kind '{kind}', expected one of {', '.join(LEAK_KINDS)}{hint}", index)
    return entries


def choice(*values: str) -> Kind:
    """Return a kind that allows only the given texts."""

    def convert(value: Any) -> str:
        if value in values:
            return str(value)
        raise KindError(f"expected one of {', '.join(values)}; not {shown(value)}")

    return Kind(convert, {"enum": list(values)})


_ARGUMENTS = {
    "description": "The engine's arguments, as a mapping or a list; the backend checks them.",
    "anyOf": [
        {"type": "object"},
        {"type": "array", "items": {"type": ["string", "number", "object", "array"]}},
        {"type": "null"},
    ],
}
STRING = Kind(_string, {"type": "string", "minLength": 1})
PATH = Kind(_path, {"type": "string", "minLength": 1})
NAME = Kind(_name, {"type": "string", "pattern": f"^{_NAME.pattern[:-2]}$"})
URL = Kind(_url, {"type": "string", "pattern": "^https?://"})
FLAG = Kind(_flag, {"type": "boolean"})
PORT = Kind(_integer(1, 65535, "a port from 1 to 65535"), {"type": "integer", "minimum": 1, "maximum": 65535})
COUNT = Kind(_integer(0, 4096, "a whole number from 0 to 4096"), {"type": "integer", "minimum": 0, "maximum": 4096})
NODES = Kind(_integer(1, 1024, "a whole number from 1 to 1024"), {"type": "integer", "minimum": 1, "maximum": 1024})
AMOUNT = Kind(_amount, {"anyOf": [{"const": 0}, {"type": "number", "minimum": _MIN_AMOUNT, "maximum": _MAX_AMOUNT}]})
RESOURCES = Kind(
    _resources,
    {
        "type": "object",
        "additionalProperties": AMOUNT.schema,
        "propertyNames": {"not": {"enum": [*_OWN_KEYS, *_RAYS]}},
    },
)
SECONDS = Kind(_seconds, {"type": "number", "exclusiveMinimum": 0, "maximum": _MAX_SECONDS})
WAIT = Kind(_wait, {"type": "number", "minimum": 0, "maximum": _MAX_SECONDS})
SIZE = Kind(
    _size,
    {
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": _MAX_SIZE},
            {"type": "string", "pattern": f"^ *{_SIZE.pattern} *$"},
        ]
    },
)
STRINGS = Kind(_strings, {"type": "array", "items": {"type": ["string", "number"]}})
LEAKS = Kind(_leaks, {"type": "array", "items": {"type": "string", "pattern": f"^({'|'.join(LEAK_KINDS)}):.+"}})
COMMAND = Kind(_command, {"type": "array", "minItems": 1, "items": {"type": ["string", "number"]}})
ENGINE = Kind(_mapping, {"type": "object", "properties": dict.fromkeys(ARGUMENT_KEYS, _ARGUMENTS)})
ENVIRONMENT = Kind(_environment, {"type": "object", "additionalProperties": {"type": ["string", "number", "null"]}})
ENDPOINT = Kind(_endpoint, {"type": "string", "pattern": "^/"})
ENDPOINTS = Kind(_endpoints, {"type": "object", "additionalProperties": {"type": "string", "pattern": "^/"}})
ENDPOINT_LIST = Kind(_paths, {"anyOf": [ENDPOINT.schema, {"type": "array", "items": ENDPOINT.schema}]})
