"""How long the tests and starts of a run take, for the shards of later runs."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from pytest_infserver.errors import ConfigError
from pytest_infserver.pool.collection.durations import Durations, save_durations

if TYPE_CHECKING:
    import pytest

    from pytest_infserver.pool.run import Run


class Measured:
    """A plugin that listens to the tests' reports, those of xdist's workers, too."""

    def __init__(self) -> None:
        """Begin without any."""
        self._seconds: dict[str, float] = defaultdict(float)
        self._passed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add one phase of a test."""
        self._seconds[report.nodeid] += report.duration
        if report.when == "call" and report.passed:
            self._passed.add(report.nodeid)

    def save(self, run: Run) -> None:
        """Write them to the run's file; what keeps it from that is an error of the run."""
        # A test that was skipped or has failed says nothing about the time that it takes.
        tests = {test: seconds for test, seconds in self._seconds.items() if test in self._passed}
        starts = {
            server.name: server.start_seconds
            for server in run.servers()
            if server.name in run.choice.configs and server.start_seconds is not None and not server.attached
        }
        try:
            save_durations(run.settings.durations, Durations(tests, starts))
        except (ConfigError, OSError) as error:
            run.errors.append(f"the durations were not saved: {error}")
