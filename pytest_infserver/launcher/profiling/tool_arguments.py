"""The arguments of a profiler's command line, as the user writes them and as its ``--help`` names them."""

from __future__ import annotations

import re
from collections.abc import Sequence


def grouped(args: Sequence[str]) -> list[list[str]]:
    """Return the options of a command line, each with the values that follow it."""
    groups: list[list[str]] = []
    for word in args:
        if word.startswith("-") or not groups:
            groups.append([])
        groups[-1].append(word)
    return groups


def name_of(group: Sequence[str]) -> str:
    """Return the name of an option, also of one with an attached value: ``--rate=5``, ``-r5``."""
    word = group[0]
    return word[:2] if re.match(r"-[A-Za-z]", word) else word.partition("=")[0]


def value_of(args: Sequence[str], *names: str) -> str | None:
    """Return the value of an option, or None if it is not given."""
    for group in grouped(args):
        name = name_of(group)
        if name in names:
            attached = group[0][len(name) :].removeprefix("=")
            return attached or " ".join(group[1:])
    return None


def options_in(text: str) -> frozenset[str]:
    """Return the options that a help text names; ``--sampling-[a|b]`` stands for two."""
    found: set[str] = set()
    for line in text.splitlines():
        if re.match(r"\s+-", line):
            for option in re.findall(r"(?<![\w-])(--?[A-Za-z][\w-]*(?:\[[\w|]+\])?)", line):
                stem, bracket, rest = option.partition("[")
                found.update(stem + end for end in rest.rstrip("]").split("|")) if bracket else found.add(option)
    return frozenset(found)
