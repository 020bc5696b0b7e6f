"""Records what becomes of the tests and servers of a run, in the process that shows the summary."""

from __future__ import annotations

import functools
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pytest_infserver
from pytest_infserver.reporting.engine_metrics import Counters, EngineMetrics, difference
from pytest_infserver.reporting.log_text import excerpt
from pytest_infserver.reporting.memory_sampler import MemorySampler
from pytest_infserver.reporting.records_of_tests import TestRecords, outcomes
from pytest_infserver.reporting.server_record import merged, server_record
from pytest_infserver.system.text import cleaned

if TYPE_CHECKING:
    from pytest_infserver.launcher.journal import Event
    from pytest_infserver.launcher.server import InferenceServer

SCHEMA_VERSION = 1
"""Of run.json; changes when a key goes or gets another meaning, not when one is added."""


class Recorder:
    """A plugin of pytest: it gets the reports of all tests.

    Attributes:
        folder: Where the files of the run are going to be; paths in the record are relative to it.
        metrics: Reads what engines count.
    """

    def __init__(self, folder: Path) -> None:
        """Begin to record.

        Args:
            folder: Where the files of the run are going to be.
        """
        self.folder = folder
        self.begun = time.time()
        self._tests = TestRecords(lambda: self.secrets)
        self._servers: dict[InferenceServer, str] = {}
        self._by_label: dict[str, InferenceServer] = {}
        self.metrics = EngineMetrics()
        self._counted: dict[str, Counter[str]] = {}
        self._baselines: dict[InferenceServer, Counters | None] = {}
        self._memory = MemorySampler(lambda: list(self._servers))
        self._on_start: Callable[[], object] = lambda: None

    def watch(self, server: InferenceServer, label: str | None = None) -> None:
        """Record what becomes of a server that this process owns.

        Args:
            server: The server.
            label: What it is called; its name if None.
        """
        label = label or server.name
        self._servers[server] = label
        self._by_label[label] = server
        server.journal.on_event = functools.partial(self._on_event, server)

    def on_start(self, action: Callable[[], object]) -> None:
        """Have something done when the first server starts."""
        self._on_start = action

    def _on_event(self, server: InferenceServer, event: Event) -> None:
        if event.kind in ("starting", "taken_over"):
            action, self._on_start = self._on_start, lambda: None
            action()
        if event.kind in ("launched", "taken_over", "ready"):
            self._memory.wake()
        if event.kind == "launched":
            self._baselines[server] = Counters(server.launches, b"")
        elif event.kind == "taken_over" or (event.kind == "ready" and server.attached):
            self._baselines[server] = self.metrics.read(server)
        elif event.kind == "stopping":
            self._count(server)

    def _count(self, server: InferenceServer) -> None:
        """Add what an engine has counted in this life of its server."""
        counted = difference(self._baselines.pop(server, None), self.metrics.read(server))
        if counted is not None:
            self._counted.setdefault(self._servers[server], Counter()).update(counted)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in the report of one phase of a test."""
        record = self._tests.add(report)
        if record is None:
            return
        for use in record["servers"]:
            server = self._by_label.get(use["name"])
            if server is not None:
                seconds = round(record["ended"] - record["started"], 3)
                server.journal.note(
                    "test", id=record["id"], outcome=record["outcome"], seconds=seconds, worker=record["worker"]
                )

    def server_records(self) -> list[dict[str, Any]]:
        """Return the records of the servers that this process owns and has started, or tried to start."""
        self._memory.end()
        for server in list(self._baselines):
            # What is attached is not stopped.
            self._count(server)
        self.metrics.close()
        records = [
            server_record(server, label, self.folder, self._memory.points(server))
            for server, label in self._servers.items()
            if server.journal.events
        ]
        for record in records:
            counted = self._counted.get(record["name"])
            record["metrics"] = None if counted is None else dict(counted)
        # Here and not where all are put together: there the secrets of a worker's servers are not known.
        found: list[dict[str, Any]] = cleaned(merged(records), self.secrets)
        return found

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
        return frozenset().union(*(server.secrets for server in self._servers))

    def excerpt(self, label: str, start: int, end: int, limit: int) -> str:
        """Return what stands in a server's log between two bytes: its end, if that is too much, cleaned."""
        server = self._by_label.get(label)
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
