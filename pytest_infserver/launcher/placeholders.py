"""Placeholders in words and environment variables: ``{model}``, ``{host}``, ``{port}`` and ``{ports.NAME}``.

``{servers.NAME.url}``, ``.host`` and ``.port`` stand for where another server is that the server needs.

Nothing else in braces is touched, nor what stands in double braces as in a Jinja template: ``{{model}}``. A backslash
before the brace, ``\\{port}``, leaves the word as it is, without the backslash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

PLACEHOLDERS = ("model", "host", "port")
"""What is always there; beside these ``ports.NAME``, and ``pid`` in a `stop_command`."""
_WORD = (
    r"(?:model|host|port|pid|ports\.[A-Za-z_][A-Za-z0-9_-]*|servers\.[A-Za-z0-9][A-Za-z0-9._+=,-]*\.(?:url|host|port))"
)
_PLACEHOLDER = re.compile(rf"\{{\{{{_WORD}\}}\}}|(\\?)\{{({_WORD})\}}")


def filled(words: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Return the words of a command with each placeholder replaced by its value."""
    return [fill_text(word, values) for word in words]


def fill_values(variables: Mapping[str, str | None], values: Mapping[str, str]) -> dict[str, str | None]:
    """Return environment variables with the placeholders in their values replaced."""
    return {name: None if text is None else fill_text(text, values) for name, text in variables.items()}


def fill_text(text: str, values: Mapping[str, str]) -> str:
    """Return a text with each placeholder replaced by its value; one without a value stays as it is."""
    if "{" not in text:
        return text

    # Not str.format: a JSON argument is full of braces.
    def value(match: re.Match[str]) -> str:
        escaped, name = match.groups()
        if name is None or name not in values:
            return match.group()
        return f"{{{name}}}" if escaped else values[name]

    return _PLACEHOLDER.sub(value, text)


def named_in(text: str) -> set[str]:
    """Return which placeholders a text has that are to be replaced."""
    matches = _PLACEHOLDER.finditer(text) if "{" in text else ()
    return {match.group(2) for match in matches if match.group(2) and not match.group(1)}
