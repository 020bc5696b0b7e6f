"""A server that another process of the same run has started, as this process sees it."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
        node: The node of a cluster that it runs on, by name and address; None without a cluster.
        address: Where that node is reached.
        remote: Whether that node is another machine than this one.
        silent: Seconds since that node has told of it last; None without a cluster.
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
    node: str | None = None
    address: str | None = None
    remote: bool = False
    silent: float | None = None

    def later(self, seconds: float) -> View:
        """Return what is still known of a server that has died some seconds later."""
        dead = None if self.dead_seconds is None else self.dead_seconds + seconds
        pulse = None if self.pulse is None else self.pulse.later(seconds)
        return dataclasses.replace(self, dead_seconds=dead, pulse=pulse)


class Keeper(ABC):
    """Does what only the owner of a server can do, for a process that does not own it."""

    @abstractmethod
    def start(self, server: InferenceServer) -> None:
        """Have it started."""

    @abstractmethod
    def stop(self, server: InferenceServer) -> None:
        """Have it stopped."""

    @abstractmethod
    def kill(self, server: InferenceServer) -> None:
        """Have it ended at once."""

    @abstractmethod
    def start_profile(self, server: InferenceServer, name: str, tool: str | None) -> None:
        """Have a profile begun, where this process cannot see the server's."""

    @abstractmethod
    def stop_profile(self, server: InferenceServer) -> list[Path]:
        """Have it ended, and return its files, which are here by then."""

    def look(self, server: InferenceServer) -> View:
        """Return how it is, after asking its owner if that does not take long."""
        return server.view()

    def seen(self, server: InferenceServer, view: View) -> View:
        """Return a view with what this one has heard of the server; nobody is asked."""
        return view

    def log_size(self, server: InferenceServer) -> int | None:
        """Return the size of its log as it is now, in bytes, where that is not seen from here; None if nobody says."""
        return None

    def pause(self, server: InferenceServer) -> None:  # noqa: B027
        """Keep it from being taken for hung, until `resume`."""

    def resume(self, server: InferenceServer) -> None:  # noqa: B027
        """Undo one `pause`."""


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
