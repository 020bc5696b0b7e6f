"""The tables of loads and scores at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from pytest_infserver.load.table import columns, shown, shown_rate
from pytest_infserver.reporting.record.measures import LOADS, SCORES, all_measures

_LOAD_HEAD = ("load", "server", "done", "failed", "TTFT p50/p99", "ITL p50/p99", "end p50/p99", "tokens/s", "baseline")
_SCORE_HEAD = ("score", "value", "limit", "baseline", "test")


def show_measures(terminal: Any, config: pytest.Config) -> None:
    """Write the tables, if a test has measured anything.

    Args:
        terminal: pytest's terminal reporter, which has the reports of all tests.
        config: pytest's configuration.
    """
    measured = all_measures((report for reports in terminal.stats.values() for report in reports), config)
    if measured:
        terminal.ensure_newline()
        terminal.section("infserver load")
        for line in measure_lines(measured):
            terminal.write_line(line)


def measure_lines(measured: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return the lines of the tables.

    Args:
        measured: Tests with what they have measured.
    """
    loads = [_LOAD_HEAD, *(_load(test, one) for test, found in measured for one in found[LOADS])]
    scores = [_SCORE_HEAD, *(_score(test, one) for test, found in measured for one in found[SCORES])]
    lines = [line for rows in (loads, scores) if len(rows) > 1 for line in columns(rows)]
    for test, found in measured:
        for one in found[LOADS]:
            lines += [f"{_short(test)}: {said['count']} x {said['kind']}: {said['text']}" for said in one["failures"]]
            lines += [f"{_short(test)}: {text}" for text in one["notes"]]
            notes = (one.get("comparison") or {}).get("notes", ())
            lines += [f"{_short(test)}: {text}" for text in notes]
    return lines


def _load(test: str, load: Mapping[str, Any]) -> tuple[str, ...]:
    times = [f"{shown(load[name]['p50'])}/{shown(load[name]['p99'])}" for name in ("ttft", "itl", "e2e")]
    rate = shown_rate(load["output_tokens_per_second"])
    numbers = str(load["completed"]), str(load["failed"])
    return _short(test), load["server"], *numbers, *times, rate, _compared(load.get("comparison"))


def _compared(comparison: Mapping[str, Any] | None) -> str:
    if comparison is None:
        return "-"
    changes = comparison["changes"].values()
    worst = max((change[0] for change in changes), default=None)
    return comparison["verdict"] if worst is None else f"{comparison['verdict']} ({100 * worst:+.1f} %)"


def _score(test: str, score: Mapping[str, Any]) -> tuple[str, ...]:
    limits = [f"{sign} {score[name]:g}" for sign, name in ((">=", "min"), ("<=", "max")) if score[name] is not None]
    before = score["baseline"]
    baseline = "-" if before is None else f"{before:g} ({score['value'] - before:+.4g})"
    return score["name"], f"{score['value']:g}", ", ".join(limits) or "-", baseline, _short(test)


def _short(test: str) -> str:
    return test.rpartition("::")[2] or test
