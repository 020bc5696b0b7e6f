"""Verdicts, known differences, and the grid."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pytest_infserver.conformance import verdict as words
from pytest_infserver.conformance.exchange import Request
from pytest_infserver.conformance.grid import Grid, grid_lines
from pytest_infserver.conformance.grid_files import write_grid
from pytest_infserver.conformance.verdict import (
    Difference,
    Verdict,
    judged,
    read_differences,
    shipped_differences,
    statement_of,
)
from pytest_infserver.system.http.address import Address, parse_address

from .conftest import statements

PASSES = Verdict("chat", "answer", "It answers.", "The API.", "core", "one", "vllm 0.32.0", words.PASSES)
FAILS = dataclasses.replace(PASSES, verdict=words.FAILS, reason="it says nothing", curl="curl http://x")
KNOWN = Difference("chat.answer", "vllm 0.32", "it never does", "own.yaml")


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


def test_the_grid_has_servers_as_columns() -> None:
    grid = Grid()
    other = dataclasses.replace(FAILS, server="two", version="sglang 0.5")
    unasked = dataclasses.replace(PASSES, name="usage", verdict=words.NOT_ASKED, reason="nobody is there")
    for one in (PASSES, other, unasked, dataclasses.replace(unasked, name="system")):
        grid.add(one)
    lines = grid_lines(grid)
    assert lines[:5] == [
        "          one          two",
        "          vllm 0.32.0  sglang 0.5",
        "chat",
        "  answer  pass         FAIL",
        "  usage   ?",
    ]
    assert "two: 1 fails" in lines
    assert "two: chat.answer: fails: it says nothing" in lines
    assert "  curl http://x" in lines
    assert "one: could not be asked (2 statements): nobody is there" in lines


def test_a_difference_that_is_there_at_times_is_not_told_when_it_is_not() -> None:
    sometimes = dataclasses.replace(KNOWN, sometimes=True)
    assert judged(PASSES, [sometimes]) == PASSES
    assert judged(FAILS, [sometimes]).verdict == words.KNOWN


def test_of_several_values_the_worst_counts() -> None:
    grid = Grid()
    for case, word in (("2", words.PASSES), ("3", words.FAILS), ("5", words.PASSES)):
        grid.add(dataclasses.replace(PASSES, case=case, verdict=word))
    cell = grid.cell("chat.answer", "one")
    assert cell is not None
    assert (cell.case, cell.verdict) == ("3", words.FAILS)
    assert grid.counts("one")[words.PASSES] == 0


def test_the_last_of_a_repeated_test_counts() -> None:
    grid = Grid()
    grid.add(FAILS)
    grid.add(PASSES)
    assert grid.verdicts == [PASSES]


def test_the_files_have_all_verdicts_and_no_markup_of_a_server(tmp_path: Path) -> None:
    grid = Grid()
    grid.add(dataclasses.replace(FAILS, reason="<script>alert(1)</script>", curl="curl '<b>'"))
    write_grid(grid, tmp_path / "out", "core")
    data = json.loads((tmp_path / "out" / "conformance.json").read_text())
    assert data["level"] == "core"
    assert data["servers"][0]["version"] == "vllm 0.32.0"
    assert data["servers"][0]["counts"]["fails"] == 1
    assert data["verdicts"][0]["curl"] == "curl '<b>'"
    page = (tmp_path / "out" / "conformance.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page


def test_a_command_can_be_copied_and_has_no_key() -> None:
    address = dataclasses.replace(parse_address("http://u:pw@h:8000/base"), api_key="secret-key-1")
    shown = Request("POST", "/v1/x", {"a": "it's"}).curl(address)
    assert shown == (
        "curl -sS -i http://h:8000/base/v1/x -H \"Authorization: Bearer $API_KEY\" -H 'Content-Type: application/json' "
        '-d \'{"a": "it\'"\'"\'s"}\''
    )


def test_a_command_of_other_kinds_of_request() -> None:
    address = Address(port=8000)
    assert Request("GET", "/health").curl(address) == "curl -sS -i http://127.0.0.1:8000/health"
    assert Request("OPTIONS", "/x").curl(address) == "curl -sS -i -X OPTIONS http://127.0.0.1:8000/x"
    assert "--unix-socket /run/x.sock" in Request("GET", "/x").curl(Address(uds="/run/x.sock"))
    huge = Request("POST", "/x", b"y" * 100_000).curl(address)
    assert huge.endswith(f"-d @BODY  # 100000 characters: {'y' * 80}...")
