"""Errors that turn up after a test has been reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from pytest_infserver.pool.lease import Problem


class LateReports:
    """Reports errors at the teardown of tests that have had their own teardown already.

    An exception instead would set off reruns of the test, and could hit another one.

    Attributes:
        count: How many it has reported.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.count = 0
        self._config = config
        self._is_worker = hasattr(config, "workerinput")
        self._latest = ""
        self._tests: dict[str, tuple[tuple[str, int | None, str], Mapping[str, Any]]] = {}

    def know(self, nodeid: str, location: tuple[str, int | None, str], keywords: Mapping[str, Any]) -> None:
        """Remember what a report says of a test beside its outcome."""
        self._tests[nodeid] = location, keywords
        self._latest = nodeid

    def report(self, problems: Iterable[Problem]) -> list[str]:
        """Report problems with the tests that used the servers last; return those that belong to no known test."""
        homeless = []
        for problem in problems:
            # A worker of xdist may report on no other test than the one that it runs.
            may_report = not self._is_worker or problem.user == self._latest
            if problem.user in self._tests and may_report:
                self._error(str(problem.user), problem.text)
            else:
                homeless.append(problem.text)
        return homeless

    def _error(self, nodeid: str, text: str) -> None:
        self.count += 1
        location, keywords = self._tests[nodeid]
        report = pytest.TestReport(
            nodeid=nodeid,
            location=location,
            keywords=dict.fromkeys(keywords, 1),
            outcome="failed",
            longrepr=text,
            when="teardown",
        )
        self._config.hook.pytest_runtest_logreport(report=report)
