"""Each promise of SECURITY.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
PROMISES = PAGE.partition("## What is not promised")[0]


@pytest.mark.parametrize(("file", "test"), NAMED, ids=[test for _, test in NAMED])
def test_a_named_test_exists(file: str, test: str) -> None:
    assert re.search(rf"^ *def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_each_promise_names_a_test() -> None:
    promises = re.findall(r"^- .*(?:\n  .*)*", PROMISES, re.MULTILINE)
    assert len(promises) > 15
    assert [one for one in promises if "::test_" not in one] == []


def test_what_looks_like_a_test_is_one() -> None:
    assert PAGE.count("::test_") == len(NAMED)
