"""What one process tells another about its server."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_infserver.launcher.health.heartbeat import Pulse
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.launcher.supervision.exit import Exit
from pytest_infserver.system.http.address import Address


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
        secrets: What must not be shown of it; None if its command is not known yet.
        devices: The keys of its GPUs.
        stop_seconds: How long its last stop took.
        command: The command that it was launched with, as one would type it, without secrets.
        argv: The words of that command, with secrets; None if it was not launched yet.
        end: How the process of an earlier launch has ended that was stopped.
        ports: Its further ports by name.
        child_deaths: How many seconds ago processes of it were killed by a signal while it was in use, and which.
        awake: Whether it was not put to sleep.
        reach: Where it is reached, without its key, from the machine where it runs; None if that has to be found out.
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
    secrets: frozenset[str] | None = dataclasses.field(default=None, repr=False)
    devices: tuple[str, ...] = ()
    stop_seconds: float | None = None
    end: Exit | None = None
    command: str | None = None
    argv: tuple[str, ...] | None = dataclasses.field(default=None, repr=False)
    ports: Mapping[str, int] = dataclasses.field(default_factory=dict)
    reach: Address | None = None
    child_deaths: tuple[tuple[float, str], ...] = ()
    awake: bool = True

    def later(self, seconds: float) -> View:
        """Return what is still known of a server that has died some seconds later."""
        dead = None if self.dead_seconds is None else self.dead_seconds + seconds
        pulse = None if self.pulse is None else self.pulse.later(seconds)
        return dataclasses.replace(self, dead_seconds=dead, pulse=pulse)
