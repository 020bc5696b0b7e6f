"""A server that another process of the same run has started, as this process sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pytest_infserver.launcher.process import Exit, ServerProcess

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
    """

    port: int
    pid: int | None
    supervisor_pid: int | None
    running: bool
    launches: int
    log_path: Path
    launch_log_start: int
    start_seconds: float | None


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
            self.exit = how
            self._changed.notify_all()
