"""A server that another process of the same run has started, as this process sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pytest_infserver.launcher.heartbeat import Pulse
from pytest_infserver.launcher.process import Exit, ServerProcess
from pytest_infserver.launcher.state import ServerState

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer


@dataclass(frozen=True)
class View:
    """What one process tells another about its server.

    Attributes:
        port: The server's port.
        pid: Its root process, or None if it is attached or does not run.
        supervisor_pid: The process above all of its processes.
        running: Whether it is ready to be used.
        launches: How often it was launched.
        log_path: Its log.
        launch_log_start: Size of the log, in bytes, before the last launch.
        start_seconds: How long the last start took.
        state: Where it is in its life.
        seconds: For how long it has been ready, or starting; for one that has died how long it was ready.
        dead_seconds: How long ago it died.
        how: How it died, in words that follow its name.
        pulse: What its heartbeat knows.
        log_end: Size of the log, in bytes, when it died; what follows is of the next launch.
    """

    port: int
    pid: int | None
    supervisor_pid: int | None
    running: bool
    launches: int
    log_path: Path
    launch_log_start: int
    start_seconds: float | None
    state: ServerState = ServerState.STOPPED
    seconds: float | None = None
    dead_seconds: float | None = None
    how: str | None = None
    pulse: Pulse | None = None
    log_end: int | None = None


class Keeper(Protocol):
    """Starts and stops a server for a process that does not own it."""

    def start(self, server: InferenceServer) -> None:
        """Have it started."""

    def stop(self, server: InferenceServer) -> None:
        """Have it stopped."""


class FollowedProcess(ServerProcess):
    """The process of a server that somebody else owns: its end is told, not seen."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.pid = view.pid
        self.supervisor_pid = view.supervisor_pid

    def ended(self, how: Exit) -> None:
        """Note how it has ended."""
        with self._changed:
            self.exit_at = time.monotonic()
            self.exit = how
            self._changed.notify_all()
