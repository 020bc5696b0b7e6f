"""Reads the options of a program from the text of its help, as those of llama.cpp print it.

An entry begins in the first column: the spellings, separated by commas, then what stands for the value, if it takes
one; after two spaces, or on the next lines, what it is for::

    -c,    --ctx-size N                     size of the prompt context
    --jinja, --no-jinja                     whether to use the template engine
"""

from __future__ import annotations

import re
from typing import Any

_SECTION = re.compile(r"^-----.*-----$", re.MULTILINE)
_FLAGS = re.compile(r"-{1,2}[A-Za-z][\w.-]*(?:, +-{1,2}[A-Za-z][\w.-]*)*")
# <tensor name pattern> is one.
_TWO_VALUES = re.compile(r"[A-Z]+ [A-Z]+")
_CHOICES = re.compile(r"\{([\w., -]+)\}")


def options_in_help(text: str) -> dict[str, Any] | None:
    """Return the table of a help as `option_table.table_from_data` takes it, or None if the text is no such help."""
    if _SECTION.search(text) is None:
        return None
    options = [option for line in text.splitlines() if (option := _option(line)) is not None]
    # What it does not understand it refuses, a word that belongs to no option, too.
    refuses = {"abbreviations": False, "greedy": True, "few_places": True, "with_equals": False, "knows_short": True}
    return {"options": options, **refuses} if options else None


def _option(line: str) -> dict[str, Any] | None:
    found = _FLAGS.match(line)
    if found is None or _SECTION.match(line):
        return None
    value = re.split(r" {2,}", line[found.end() :].removeprefix(" "))[0]
    choices = _CHOICES.fullmatch(value)
    return {
        "flags": re.split(r", +", found[0]),
        "values": 2 if _TWO_VALUES.fullmatch(value) else int(bool(value)),
        "kind": "",
        "choices": [one.strip() for one in choices[1].split(",")] if choices else [],
    }
