"""What came from ``${VAR}``: an error names the variable and never shows what it holds, which may be a secret."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from pytest_infserver.system.secrets import MIN_LENGTH, forms
from pytest_infserver.system.text import clean

Variables = Mapping[str, str]
"""What variables of a file hold, to how the file names them: ``{"hf_abc...": "${HF_TOKEN}"}``."""


def hide(message: str, variables: Variables) -> str:
    """Return a message with ``${VAR}`` in place of what variables hold, and of the parts of that.

    What is shorter than a secret is replaced only where it stands in quotes: ``${PORT}`` may be 1.

    Args:
        message: The message.
        variables: What it must not show.
    """
    if not variables:
        return message
    # No escape sequence in the middle hides a value.
    text = clean(message)
    for value, name in sorted(variables.items(), key=lambda pair: -len(pair[0])):
        text = _without_cut_value(text, value, name)
        for part in _parts(value):
            text = _replaced(text, part, name)
    return text


def hide_value(message: str, shown: str, written: str) -> str:
    """Return the message of a wrong value with the text that the file has for it.

    Args:
        message: The message; it ends in ``not VALUE``, perhaps with a hint behind it.
        shown: The value as the message shows it.
        written: The text in the file, with its ``${VAR}``.
    """
    before, found, after = message.rpartition(f"not {shown}")
    return f"{before}not {json.dumps(written, ensure_ascii=False)}{after}" if found else message


def _parts(value: str) -> Iterator[str]:
    """Return a value and the pieces of it that a message may show: a module of ``module:Class``, a flag of a key."""
    module = value.partition(":")[0].split(".")
    pieces = {value, *re.split(r"[^\w-]+", value), *re.split(r"[=:/@\s]+", value), *module}
    pieces |= {".".join(module[:count]) for count in range(1, len(module) + 1)}
    pieces |= {piece.replace("_", "-") for piece in pieces} | {clean(piece) for piece in pieces}
    return iter(sorted((piece for piece in pieces if piece), key=lambda piece: (-len(piece), piece)))


def _replaced(text: str, part: str, name: str) -> str:
    if len(part) < MIN_LENGTH:
        return re.sub(rf"(['\"]){re.escape(part)}\1", lambda match: f"{match[1]}{name}{match[1]}", text)
    # Over several lines, or with other characters that `forms` leaves out. First: a line of it is one of its forms, and
    # would leave the others.
    text = text.replace(part, name)
    for form in forms(frozenset({part})):
        text = text.replace(form, name)
    return text


def _without_cut_value(text: str, value: str, name: str) -> str:
    """Replace the beginning of a long value that a message shows with three dots behind it."""
    start = value[:MIN_LENGTH]
    at = text.find(start) if len(start) == MIN_LENGTH else -1
    while at >= 0:
        end = at + len(start)
        while end < len(text) and end - at < len(value) and text[end] == value[end - at]:
            end += 1
        if text.startswith("...", end):
            text = text[:at] + name + text[end:]
        at = text.find(start, at + 1)
    return text
