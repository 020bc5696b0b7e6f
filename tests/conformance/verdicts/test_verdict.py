"""Verdicts, known differences, and the grid."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pytest_infserver.conformance.verdicts import verdict as words
from pytest_infserver.conformance.verdicts.verdict import (
    judged,
    read_differences,
    shipped_differences,
    statement_of,
)

from ..conftest import statements
from .examples import FAILS, KNOWN, PASSES


def test_a_known_difference_that_fails_is_known() -> None:
    found = judged(FAILS, [KNOWN])
    assert found.verdict == words.KNOWN
    assert found.reason == "it never does (it says nothing)"


def test_a_known_difference_that_passes_is_told() -> None:
    found = judged(PASSES, [KNOWN])
    assert found.verdict == words.FIXED
    assert found.reason == "take it out of own.yaml (it never does)"


@pytest.mark.parametrize(
    "other",
    [
        {"engine": "vllm 0.3"},
        {"engine": "vllm 0.33"},
        {"engine": "sglang"},
        {"test": "chat.usage"},
    ],
)
def test_a_difference_of_another_version_or_statement_is_not_meant(other: dict[str, str]) -> None:
    assert judged(FAILS, [dataclasses.replace(KNOWN, **other)]) == FAILS


def test_what_is_not_offered_stays_so() -> None:
    for word in (words.NOT_OFFERED, words.NOT_ASKED):
        one = dataclasses.replace(PASSES, verdict=word)
        assert judged(one, [KNOWN]) == one


def test_each_shipped_difference_is_of_a_statement_that_there_is() -> None:
    assert {one.test for one in shipped_differences()} <= set(statements())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "- {test: a.b, engine: x}",
            "entry 1: expected 'test' (area.name, or a list), 'engine' (such as vllm 0.32) and 'reason'",
        ),
        ("- {test: a.b, engine: x, reason: 3}", "entry 1: expected"),
        ("test: a.b", "expected a list of 'test', 'engine' and 'reason'"),
        ("[", "own.yaml: while parsing"),
        (None, "No such file"),
    ],
)
def test_a_wrong_file_of_differences_is_told(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "own.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match="own") as caught:
        read_differences(file)
    assert said in str(caught.value)


def test_an_entry_may_be_about_several_statements(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("- {test: [a.b, a.c], engine: x 1, reason: so it is, sometimes: true}")
    found = read_differences(file)
    assert [(one.test, one.engine, one.sometimes) for one in found] == [("a.b", "x 1", True), ("a.c", "x 1", True)]


def test_statement_and_source_are_taken_from_the_docstring() -> None:
    def test() -> None:
        """It is
        so.

        Source: somebody, who
        says it.
        """

    assert statement_of(test) == ("It is so.", "somebody, who says it.")


def test_a_difference_that_is_there_at_times_is_not_told_when_it_is_not() -> None:
    sometimes = dataclasses.replace(KNOWN, sometimes=True)
    assert judged(PASSES, [sometimes]) == PASSES
    assert judged(FAILS, [sometimes]).verdict == words.KNOWN
