"""Looks at how much memory the servers of a run use, every second, in a thread of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from pytest_infserver.reporting.record.series import Series
from pytest_infserver.system.processes.memory import resident_memory

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.system.gpus import Gpu

Memory: TypeAlias = "tuple[int, int | None]"
"""Bytes of resident memory, and of GPU memory where that is known."""

INTERVAL = 1.0
"""Seconds between two looks."""
_TOGETHER = 0.05
_SHARE = 50
"""Looks take at most one part in so many of a core's time: a machine may have thousands of processes."""


class MemorySampler:
    """Watches servers from the first `wake` to `end`."""

    def __init__(self, servers: Callable[[], Sequence[InferenceServer]], interval: float = INTERVAL) -> None:
        """Watch nothing yet.

        Args:
            servers: Returns those to look at.
            interval: Seconds between two looks.
        """
        self._servers = servers
        self._interval = interval
        self._series: dict[InferenceServer, Series[Memory]] = {}
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Look soon: a server has just been started, or is about to end."""
        with self._lock:
            if self._thread is None and not self._ended.is_set():
                self._thread = threading.Thread(target=self._run, name="infserver-memory", daemon=True)
                self._thread.start()
        self._woken.set()

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join(INTERVAL)

    def points(self, server: InferenceServer) -> list[tuple[float, Memory]]:
        """Return what a server was seen using: seconds since the epoch, and bytes."""
        with self._lock:
            return self._series[server].points if server in self._series else []

    def _run(self) -> None:
        while not self._ended.is_set():
            begin = time.monotonic()
            # Whatever is odd about this machine: pytest would take the end of the thread for a warning of some test.
            with contextlib.suppress(Exception):
                self._look()
            pause = max(self._interval, (time.monotonic() - begin) * _SHARE)
            if self._woken.wait(pause):
                # Not at once again: many servers may start together.
                self._woken.clear()
                self._ended.wait(_TOGETHER)

    def _look(self) -> None:
        servers = [server for server in self._servers() if server.pid is not None or server.remote]
        gpus = _gpus() if any(server.device_keys and not server.remote for server in servers) else []
        for server in servers:
            used = memory_of(server, gpus) if not server.remote else server.runtime.memory
            if used is not None and used[0]:
                with self._lock:
                    self._series.setdefault(server, Series(_larger)).add(time.time(), used)


def memory_of(server: InferenceServer, gpus: Sequence[Gpu] | None = None) -> Memory:
    """Return how much memory a server on this machine uses now.

    Args:
        server: The server.
        gpus: The machine's GPUs; None to ask for them.
    """
    if gpus is None:
        gpus = _gpus() if server.device_keys else []
    pids = server.process_tree()
    return resident_memory(pids), gpu_memory(gpus, server.device_keys, pids)


def _larger(one: Memory, other: Memory) -> Memory:
    known = [gpu for _, gpu in (one, other) if gpu is not None]
    return max(one[0], other[0]), max(known, default=None)


def _gpus() -> list[Gpu]:
    from pytest_infserver.system.gpus import NoTelemetry, read_gpus

    try:
        return read_gpus()
    except NoTelemetry:
        return []


def gpu_memory(gpus: Sequence[Gpu], device_keys: Sequence[str], pids: Sequence[int]) -> int | None:
    """Return how much memory of GPUs a server uses, in bytes; None if nobody can tell.

    Args:
        gpus: All of them.
        device_keys: Those that the server has for itself.
        pids: Its processes.
    """
    own = set(pids)
    named = [size for gpu in gpus for pid, size in (gpu.processes or {}).items() if pid in own and size]
    if named:
        return sum(named)
    # In a container the driver knows the processes by other ids.
    used = [gpu.used for gpu in gpus if gpu.uuid in device_keys and gpu.used is not None]
    return sum(used) if used else None
