"""Launch arguments: a list or a mapping becomes the engine's argv. Nothing goes through a shell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_infserver.config.flags import to_flag
from pytest_infserver.system.secrets import is_secret_name, is_value


class ArgumentsError(ValueError):
    """Launch arguments that cannot be turned into a command line.

    Attributes:
        key: The key or index that is wrong.
    """

    def __init__(self, message: str, key: str | int) -> None:
        super().__init__(message)
        self.key = key


def to_argv(arguments: Mapping[str, Any] | Sequence[Any]) -> list[str]:
    """Turn ``api_server_args`` or ``server_args`` into arguments.

    A list is passed on as it is. In a mapping a key that starts with ``-`` is used verbatim, any other gets
    ``--`` and ``-`` for each ``_`` before its first dot; True is the flag alone, False and None leave it out, a
    mapping becomes one JSON value, a list the flag once with all its items behind it, a list of lists the flag once
    for each of them.

    Args:
        arguments: The list or mapping.

    Raises:
        ArgumentsError: A value of a kind that has no meaning, or one option twice with different values.
    """
    if not isinstance(arguments, Mapping):
        return [_text(item, index) for index, item in enumerate(arguments)]
    seen: dict[str, tuple[str, list[str]]] = {}
    argv: list[str] = []
    for key, value in arguments.items():
        if not isinstance(key, str) or not key:
            raise ArgumentsError(f"{json.dumps(key, default=repr)} cannot be the name of an option", key)
        flag = to_flag(key)
        words = _option(flag, value, key)
        if flag not in seen:
            seen[flag] = (key, words)
            argv += words
        elif seen[flag][1] != words:
            first = seen[flag][0]
            raise ArgumentsError(f"'{first}' and '{key}' are both {flag}, with different values", key)
    return argv


def left_out(configured: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Return which configured options a command does not have, or which words where none is an option.

    Args:
        configured: The configured arguments.
        argv: The command; it may also have them inside of a word, as for a shell.
    """
    options = [word.partition("=")[0] for word in configured if word.startswith("-") and not is_number(word)]
    command = " ".join(argv)
    return [word for word in dict.fromkeys(options or configured) if word not in command]


def option_values(argv: Sequence[str], *flags: str) -> list[list[str]]:
    """Return the words that follow each occurrence of one of ``flags``, ``--flag=value`` included."""
    found: list[list[str]] = []
    current: list[str] | None = None
    flag = ""
    for word in argv:
        name, equals, value = word.partition("=")
        if name in flags and name.startswith("-"):
            flag, current = name, [value] if equals else []
            found.append(current)
            if equals:
                current = None
        elif current is not None and _belongs(word, flag, first=not current):
            current.append(word)
        else:
            current = None
    return found


def _belongs(word: str, flag: str, *, first: bool) -> bool:
    """Return whether a word behind a flag is a value of it."""
    if not word.startswith("-") or is_number(word):
        return True
    return is_secret_name(flag) and is_value(word, first=first)


def _option(flag: str, value: Any, key: str) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(item, (list, tuple)) for item in value):
            return [word for item in value for word in [flag, *(_text(one, key) for one in item)]]
        return [flag, *(_text(item, key) for item in value)]
    return [flag, _text(value, key)]


def _text(value: Any, key: str | int) -> str:
    if isinstance(value, bool) or value is None:
        raise ArgumentsError(f"{json.dumps(value)} in a list has no meaning: write the flag itself", key)
    if isinstance(value, (str, int, float)):
        text = str(value)
    else:
        try:
            text = json.dumps(value)
        except (TypeError, ValueError):
            raise ArgumentsError(f"a {type(value).__name__} cannot be an argument: make it a text", key) from None
    if "\0" in text:
        raise ArgumentsError("a null byte cannot be part of an argument", key)
    return text


def is_number(word: str) -> bool:
    """Return whether a word of a command is a number."""
    try:
        float(word)
    except ValueError:
        return False
    return True
