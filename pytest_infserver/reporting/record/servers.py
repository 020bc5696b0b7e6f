"""Records what becomes of the servers that a process owns: their lives, memory and counters."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_infserver.reporting.record.engine_metrics import Counters, EngineMetrics, difference
from pytest_infserver.reporting.record.memory_sampler import MemorySampler
from pytest_infserver.reporting.record.server_record import merged, server_record
from pytest_infserver.system.text import cleaned

if TYPE_CHECKING:
    from pytest_infserver.launcher.diagnosis.journal import Event
    from pytest_infserver.launcher.server import InferenceServer


class ServerRecorder:
    """Knows no pytest: it works in the process that owns the servers.

    Attributes:
        folder: Where the files of the run are going to be; paths in the records are relative to it.
        metrics: Reads what engines count.
    """

    def __init__(self, folder: Path) -> None:
        """Begin to record.

        Args:
            folder: Where the files of the run are going to be.
        """
        self.folder = folder
        self.metrics = EngineMetrics()
        self._labels: dict[InferenceServer, str] = {}
        self._by_label: dict[str, InferenceServer] = {}
        self._counted: dict[str, Counter[str]] = {}
        self._baselines: dict[InferenceServer, Counters | None] = {}
        self._memory = MemorySampler(lambda: list(self._labels))
        self._on_start: Callable[[], object] = lambda: None

    def watch(self, server: InferenceServer, label: str | None = None) -> None:
        """Record what becomes of a server that this process owns.

        Args:
            server: The server.
            label: What it is called; its name if None.
        """
        label = label or server.name
        self._labels[server] = label
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
            self._counted.setdefault(self._labels[server], Counter()).update(counted)

    def note_test(self, label: str, fields: Mapping[str, Any]) -> None:
        """Note in the journal of a server that a test has used it.

        Args:
            label: What the server is called.
            fields: What is noted.
        """
        server = self._by_label.get(label)
        if server is not None:
            server.journal.note("test", **fields)

    def server_records(self) -> list[dict[str, Any]]:
        """Return the records of the servers that this process owns and has started, or tried to start."""
        self._memory.end()
        for server in list(self._baselines):
            # What is attached is not stopped.
            self._count(server)
        self.metrics.close()
        records = [
            server_record(server, label, self.folder, self._memory.points(server))
            for server, label in self._labels.items()
            if server.journal.events
        ]
        for record in records:
            counted = self._counted.get(record["name"])
            record["metrics"] = None if counted is None else dict(counted)
        # Here and not where all are put together: there the secrets of a worker's servers are not known.
        found: list[dict[str, Any]] = cleaned(merged(records), self.secrets)
        return found

    @property
    def secrets(self) -> frozenset[str]:
        """What must not be shown of any server."""
        return frozenset().union(*(server.secrets for server in self._labels))

    def server(self, label: str) -> InferenceServer | None:
        """Return the server of a label, or None."""
        return self._by_label.get(label)
