"""What became of the tests of a run, gathered from their reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import pytest

from pytest_infserver.reporting.profiles import paths_of
from pytest_infserver.reporting.record.measures import LOADS, SCORES, measures_of
from pytest_infserver.reporting.record.uses import uses_of
from pytest_infserver.system.text import clean, one_line, without_middle

MESSAGE = "infserver_message"
"""Attribute of a report: its `first_line` without the secrets of servers that only its process knows."""
DETAILS = "infserver_details"
"""Attribute of a report: its `details`, for the same reason."""
WAIT = "infserver_wait"
"""Attribute of the report of a setup: how many seconds the test has waited for its servers before its fixtures."""
MAX_DETAILS = 12_000
"""Characters of tracebacks and captured output that are kept of one phase of a test."""
_MOST_DETAILS = 4 * MAX_DETAILS
"""Of a whole test: it may have many subtests."""
_MAX_MESSAGE = 300
_PHASES = ("setup", "call", "teardown")
_BLANK: dict[str, Any] = {
    "id": "",
    "outcome": "passed",
    "started": None,
    "ended": None,
    "wait_seconds": None,
    **{f"{phase}_seconds": None for phase in _PHASES},
    "worker": None,
    "message": None,
    # Not lists: of ten thousands the garbage collector would look at each again and again.
    "details": (),
    "servers": (),
    LOADS: (),
    SCORES: (),
    "artifacts": (),
}
_MORE = {"title": "More", "text": "[... of this test, left out here: see what pytest has printed ...]"}
_TITLES = {"setup": "Error at setup", "call": "Failure", "teardown": "Error at teardown"}


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
        # The run may have come into being in the call of this test, so that its setup was not recorded.
        begins = report.when == "setup" or (report.when == "call" and report.nodeid not in self._last)
        if report.when not in _PHASES or (key not in self._open and not begins):
            # What turns up afterwards: an error at the stop of a server, or the crash of a worker.
            self._amend(report, key)
            return None
        record = self._open.get(key)
        if record is None:
            record = self._begin(key)
            record["started"] = round(report.start, 3)
            record["wait_seconds"] = round(getattr(report, WAIT, 0.0), 6)
        record[f"{report.when}_seconds"] = round(report.duration, 6)
        # Clocks are set back now and then.
        record["ended"] = max(record["started"], round(report.stop, 3))
        record["servers"] = uses_of(report) or record["servers"]
        for kind, found in measures_of(report).items():
            record[kind] = found or record[kind]
        outcome = getattr(report, "outcome", "")
        if outcome != "passed" or hasattr(report, "wasxfail"):
            self._judge(record, report)
        rerun = outcome == "rerun"
        if report.when != "teardown" and not rerun:
            return None
        record["artifacts"] = paths_of(report) or ()
        del self._open[key]
        return record

    def _begin(self, key: tuple[str, str | None]) -> dict[str, Any]:
        record = {**_BLANK, "id": key[0], "worker": key[1]}
        self._open[key] = self._last[key[0]] = record
        self._records.append(record)
        return record

    def _judge(self, record: dict[str, Any], report: pytest.TestReport) -> None:
        outcome = _outcome(report)
        # An error in the teardown does not hide how the test itself went wrong.
        if outcome != "passed" and record["outcome"] in ("passed", "xfailed", "xpassed", "skipped"):
            record["outcome"] = outcome
            record["message"] = getattr(report, MESSAGE, None) or first_line(report, self._secrets())
        if outcome in ("failed", "error", "rerun"):
            record["details"] = list(record["details"])
            _add_details(record["details"], getattr(report, DETAILS, None) or details(report, self._secrets()))

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
    return type(report) is not pytest.TestReport and type(report).__name__.lower() == "subtestreport"


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


def details(report: pytest.TestReport, secrets: frozenset[str]) -> list[list[str]]:
    """Return what pytest shows of a phase that failed, each part with its title: the traceback, the captured output.

    Args:
        report: That of the phase.
        secrets: Values to hide.
    """
    parts = [(_TITLES.get(str(report.when), "Failure"), report.longreprtext)]
    # The page has the logs of servers anyway.
    parts += [(title, text) for title, text in report.sections if ": log during " not in title]
    parts = [(title, text) for title, text in parts if text.strip()]
    texts: dict[int, str] = {}
    left = MAX_DETAILS
    # What short ones do not need is there for the long ones.
    for place in sorted(range(len(parts)), key=lambda place: len(parts[place][1])):
        texts[place] = without_middle(parts[place][1], secrets, left // (len(parts) - len(texts)))
        left -= min(len(texts[place]), left)
    return [[one_line(parts[place][0], secrets), texts[place]] for place in sorted(texts)]


def _add_details(known: list[dict[str, str]], found: Iterable[Sequence[str]]) -> None:
    """Add the details of one more report of a test, which has the output of the phases before it, too."""
    titles = {one["title"] for one in known if one["title"] not in _TITLES.values()}
    new = [{"title": title, "text": text} for title, text in found if title not in titles]
    if sum(len(one["text"]) for one in [*known, *new]) <= _MOST_DETAILS:
        known += new
    elif _MORE not in known:
        known.append(_MORE)


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
