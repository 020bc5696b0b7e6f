"""Records what becomes of the tests and servers of a run, in the process that shows the summary."""

from __future__ import annotations

import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pytest_infserver
from pytest_infserver.reporting.log_text import excerpt
from pytest_infserver.reporting.record.records_of_tests import TestRecords, outcomes
from pytest_infserver.reporting.record.server_record import merged
from pytest_infserver.reporting.record.servers import ServerRecorder
from pytest_infserver.system.text import cleaned

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

SCHEMA_VERSION = 1
"""Of run.json; changes when a key goes or gets another meaning, not when one is added."""


class Recorder:
    """A plugin of pytest: it gets the reports of all tests.

    Attributes:
        servers: Records what becomes of the servers of this process.
    """

    def __init__(
        self,
        folder: Path,
        handles: Callable[[], Iterable[InferenceServer]] = tuple,
        note_test: Callable[[str, Mapping[str, Any]], object] | None = None,
    ) -> None:
        """Begin to record.

        Args:
            folder: Where the files of the run are going to be.
            handles: Returns the servers that another process owns.
            note_test: Gets what is noted of a server that a test has used, where another process owns it.
        """
        self.begun = time.time()
        self.servers = ServerRecorder(folder)
        self._tests = TestRecords(lambda: self.secrets)
        self._note_test = note_test or self.servers.note_test
        self._handles = handles
        self._secrets: frozenset[str] = frozenset()

    def hide(self, secrets: frozenset[str]) -> None:
        """Note further values that must not be shown."""
        self._secrets |= secrets

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in the report of one phase of a test."""
        record = self._tests.add(report)
        if record is None:
            return
        for use in record["servers"]:
            seconds = round(record["ended"] - record["started"], 3)
            fields = {"id": record["id"], "outcome": record["outcome"], "seconds": seconds, "worker": record["worker"]}
            self._note_test(use["name"], fields)

    def record(
        self,
        exit_status: int,
        workers: int,
        cluster: str | None,
        servers: Iterable[dict[str, Any]],
        incidents: Sequence[str],
        errors: Sequence[str],
    ) -> dict[str, Any]:
        """Return everything, as it stands in run.json.

        Args:
            exit_status: pytest's.
            workers: How many workers of xdist there were.
            cluster: The Ray cluster that the servers ran on, as the user has named it; None for this machine.
            servers: The records of all servers, those of the workers too.
            incidents: What happened to servers and belongs to no test.
            errors: What went wrong and belongs to no test.
        """
        tests = self._tests.all()
        found = merged(servers)
        _count_tests(found, tests)
        record = {
            "schema_version": SCHEMA_VERSION,
            "pytest_infserver": pytest_infserver.__version__,
            "pytest": pytest.__version__,
            "python": platform.python_version(),
            "platform": f"{sys.platform}-{platform.machine()}",
            "started": round(self.begun, 3),
            "ended": round(time.time(), 3),
            "exit_status": int(exit_status),
            "workers": workers,
            "cluster": cluster,
            "outcomes": outcomes(tests),
            "servers": found,
            "tests": tests,
            "incidents": list(incidents),
            "errors": list(errors),
        }
        found_clean: dict[str, Any] = cleaned(record, self.secrets)
        return found_clean

    @property
    def secrets(self) -> frozenset[str]:
        """What must not be shown of any server."""
        return self.servers.secrets.union(self._secrets, *(server.secrets for server in self._handles()))

    def excerpt(self, label: str, start: int, end: int, limit: int) -> str:
        """Return what stands in a server's log between two bytes: its end, if that is too much, cleaned."""
        handles = (server for server in self._handles() if server.name == label)
        server = self.servers.server(label) or next(handles, None)
        return "" if server is None or server.attached else excerpt(server, start, end, limit)[0]


def _count_tests(servers: Iterable[dict[str, Any]], tests: Iterable[dict[str, Any]]) -> None:
    counts: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for test in tests:
        for use in test["servers"]:
            counts[use["name"]] += 1
            failures[use["name"]] += test["outcome"] in ("failed", "error")
    for server in servers:
        name = server["name"]
        server["tests"], server["failed"] = counts[name], failures[name]
