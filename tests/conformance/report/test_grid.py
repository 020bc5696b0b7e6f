"""The grid: on the terminal, and its files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from pytest_infserver.conformance.report.grid import Grid, grid_lines
from pytest_infserver.conformance.report.grid_files import write_grid
from pytest_infserver.conformance.verdicts import verdict as words
from pytest_infserver.conformance.verdicts.verdict import Verdict

from ..verdicts.examples import FAILS, PASSES


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


def test_a_cell_is_found_without_a_look_at_the_others() -> None:
    looks: list[str] = []

    @dataclasses.dataclass(frozen=True)
    class Watched(Verdict):
        @property
        def key(self) -> str:
            looks.append(self.name)
            return super().key

    grid = Grid()
    for number in range(200):
        grid.add(Watched(**{**PASSES.as_data(), "name": f"one{number}"}))
    looks.clear()
    assert all(grid.cell(f"chat.one{number}", "one") for number in range(200))
    assert looks == []
