"""What became of the tests of a run, gathered from their reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import pytest

from pytest_infserver.reporting.profiles import paths_of
from pytest_infserver.reporting.uses import uses_of
from pytest_infserver.system.text import clean, one_line

MESSAGE = "infserver_message"
"""Attribute of a report: its `first_line` without the secrets of servers that only its process knows."""
_MAX_MESSAGE = 300
_PHASES = ("setup", "call", "teardown")


class TestRecords:
    """Listens to the reports of all tests, whichever process runs them."""

    def __init__(self, secrets: Callable[[], frozenset[str]]) -> None:
        """Begin to listen.

        Args:
            secrets: Returns the values to hide.
        """
        self._secrets = secrets
        self._records: list[dict[str, Any]] = []
        self._open: dict[tuple[str, str | None], dict[str, Any]] = {}
        self._last: dict[str, dict[str, Any]] = {}

    def add(self, report: pytest.TestReport) -> dict[str, Any] | None:
        """Take in the report of one phase; return the test's record when the test is over with that."""
        if _is_subtest(report) and report.outcome != "failed":
            # Its test may still pass.
            return None
        key = report.nodeid, _worker(report)
        if report.when not in _PHASES or (key not in self._open and report.when != "setup"):
            # What turns up afterwards: an error at the stop of a server, or the crash of a worker.
            self._amend(report, key)
            return None
        record = self._open.get(key)
        if record is None:
            record = self._begin(key)
            record["started"] = round(report.start, 3)
        record[f"{report.when}_seconds"] = round(report.duration, 6)
        # Clocks are set back now and then.
        record["ended"] = max(record["started"], round(report.stop, 3))
        record["servers"] = uses_of(report) or record["servers"]
        self._judge(record, report)
        rerun = getattr(report, "outcome", "") == "rerun"
        if report.when != "teardown" and not rerun:
            return None
        record["artifacts"] = paths_of(report)
        del self._open[key]
        return record

    def _begin(self, key: tuple[str, str | None]) -> dict[str, Any]:
        record: dict[str, Any] = {
            "id": key[0],
            "outcome": "passed",
            "started": None,
            "ended": None,
            **{f"{phase}_seconds": None for phase in _PHASES},
            "worker": key[1],
            "message": None,
            "servers": [],
            "artifacts": [],
        }
        self._open[key] = self._last[key[0]] = record
        self._records.append(record)
        return record

    def _judge(self, record: dict[str, Any], report: pytest.TestReport) -> None:
        outcome = _outcome(report)
        # An error in the teardown does not hide how the test itself went wrong.
        if outcome != "passed" and record["outcome"] in ("passed", "xfailed", "xpassed", "skipped"):
            record["outcome"] = outcome
            record["message"] = getattr(report, MESSAGE, None) or first_line(report, self._secrets())

    def _amend(self, report: pytest.TestReport, key: tuple[str, str | None]) -> None:
        record = self._open.pop(key, None) or self._last.get(report.nodeid)
        if record is None:
            record = self._begin(key)
            del self._open[key]
        self._judge(record, report)

    def all(self) -> list[dict[str, Any]]:
        """Return the records of all tests, in the order in which they began; to be called when the run is over."""
        for record in self._open.values():
            if record["outcome"] == "passed":
                record["outcome"] = "interrupted"
        _mark_shared(self._records)
        return self._records


def outcomes(records: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Return how many tests had which outcome."""
    return dict(Counter(record["outcome"] for record in records))


def _worker(report: pytest.TestReport) -> str | None:
    """Return the name of the worker of xdist that a report comes from, or None."""
    worker = getattr(report, "worker_id", None)
    if worker is None:
        # Of one that has crashed it is the controller that reports.
        worker = getattr(getattr(getattr(report, "node", None), "gateway", None), "id", None)
    return worker if isinstance(worker, str) and worker != "master" else None


def _is_subtest(report: pytest.TestReport) -> bool:
    # pytest 8 has no such class, but pytest-subtests has.
    return type(report).__name__.lower() == "subtestreport"


def _outcome(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed" if report.passed and report.when == "call" else "passed"
    if report.outcome == "failed":
        return "error" if report.when in ("setup", "teardown") else "failed"
    return str(report.outcome)


def first_line(report: pytest.TestReport, secrets: frozenset[str]) -> str | None:
    """Return what went wrong in a phase of a test, in a clean line.

    Args:
        report: That of the phase.
        secrets: Values to hide.
    """
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        text = str(crash.message)
    elif isinstance(report.longrepr, tuple):
        text = str(report.longrepr[2])
    else:
        text = str(report.longrepr or "")
    # A secret may have several lines.
    return one_line(clean(text.strip(), secrets).partition("\n")[0], limit=_MAX_MESSAGE) or None


def _mark_shared(records: Iterable[dict[str, Any]]) -> None:
    """Say of each use whether another test has used the same server at the same time."""
    uses = [
        (use["name"], record["started"], record["ended"], use)
        for record in records
        if record["started"] is not None
        for use in record["servers"]
    ]
    uses.sort(key=lambda one: one[:3])
    for _, group in groupby(uses, key=lambda one: one[0]):
        last: dict[str, Any] | None = None
        until = 0.0
        for _, started, ended, use in group:
            use["shared"] = last is not None and started < until
            if use["shared"] and last is not None:
                last["shared"] = True
            if last is None or ended > until:
                last, until = use, ended
