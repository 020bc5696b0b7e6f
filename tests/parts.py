"""What a run of many tests showed of one of them."""

from __future__ import annotations

import re

import pytest

_TITLE = re.compile(r"_+ (.*) _+")
_END = re.compile(r"=+( .* =+)?")


def part(result: pytest.RunResult, *names: str) -> pytest.LineMatcher:
    """Return what a run showed below the titles of tests with these names, of all their parameters and phases."""
    wanted = re.compile(rf"(.*[ .])?({'|'.join(map(re.escape, names))})(\[.*)?")
    found: list[str] = []
    inside = False
    for line in result.outlines:
        title = _TITLE.fullmatch(line)
        if title:
            inside = wanted.fullmatch(title[1]) is not None
        elif _END.fullmatch(line):
            inside = False
        if inside:
            found.append(line)
    return pytest.LineMatcher(found)
