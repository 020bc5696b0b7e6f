"""A server that another process owns, as this process sees it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pytest_infserver.launcher.runtime.runtime import Runtime
from pytest_infserver.launcher.runtime.told import ToldByOwner
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.launcher.supervision.supervised_process import Exit, ServerProcess

if TYPE_CHECKING:
    from pytest_infserver.launcher.runtime.view import View
    from pytest_infserver.launcher.server import InferenceServer


class Owner(Protocol):
    """Does what only the owner of a server can do, for a process that does not own it."""

    def start(self, server: InferenceServer) -> None:
        """Have it started."""

    def stop(self, server: InferenceServer) -> None:
        """Have it stopped."""

    def kill(self, server: InferenceServer) -> None:
        """Have it ended at once."""

    def pause(self, server: InferenceServer) -> None:
        """Keep it from being taken for hung, until `resume`."""

    def resume(self, server: InferenceServer) -> None:
        """Undo one `pause`."""

    def start_profile(self, server: InferenceServer, name: str, tool: str | None) -> None:
        """Have a profile begun, where this process cannot see the server's."""

    def stop_profile(self, server: InferenceServer) -> list[Path]:
        """Have it ended, and return its files, which are here by then."""


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


class FollowedRuntime(Runtime):
    """A server that another process runs; that one is asked for all that changes it."""

    server: InferenceServer

    def __init__(self, before: Runtime, owner: Owner) -> None:
        """Begin; `apply_view` tells how the server is.

        Args:
            before: What the server had so far.
            owner: Reaches the process that owns it.
        """
        super().__init__(before.server, before)
        self.asks = owner

    def start(self) -> InferenceServer:
        """Have it started."""
        self.asks.start(self.server)
        return self.server

    def stop(self) -> None:
        """Have it stopped."""
        self.asks.stop(self.server)

    def kill(self) -> None:
        """Have it ended at once."""
        self.asks.kill(self.server)

    def pause_heartbeat(self) -> None:
        """Have it not taken for hung."""
        self.asks.pause(self.server)

    def resume_heartbeat(self) -> None:
        """Undo one `pause_heartbeat`."""
        self.asks.resume(self.server)

    def start_profile(self, name: str, tool: str | None) -> None:
        """Begin a profile, here if the server runs on this machine."""
        if self.server.node is None:
            super().start_profile(name, tool)
        else:
            self.asks.start_profile(self.server, name, tool)

    def stop_profile(self) -> list[Path]:
        """End it, and return its files."""
        return super().stop_profile() if self.server.node is None else self.asks.stop_profile(self.server)


def follow(server: InferenceServer, view: View, owner: Owner) -> FollowedProcess:
    """Have a server stand for one that another process owns.

    Args:
        server: The server.
        view: How that one is.
        owner: Reaches the process that owns it.

    Returns:
        The process, which has to be told of its end; see `note_end`.
    """
    runtime = server.runtime
    if not isinstance(runtime, FollowedRuntime) or runtime.asks is not owner:
        runtime = server.runtime = FollowedRuntime(runtime, owner)
    return apply_view(runtime, view)


def apply_view(runtime: Runtime, view: View) -> FollowedProcess:
    """Note how a server is that runs elsewhere.

    Args:
        runtime: What stands for it here.
        view: How it is.

    Returns:
        Its process.
    """
    server = runtime.server
    server.told = ToldByOwner(
        node=view.node,
        host=view.address,
        remote=view.remote,
        reach=None if view.remote or server.attached else view.reach,
        secrets=view.secrets,
        command=view.command,
        argv=view.argv,
    )
    server.give(port=None if server.attached else view.port, ports=view.ports)
    server.device_keys = view.devices
    server.start_seconds, server.stop_seconds = view.start_seconds, view.stop_seconds
    runtime.log.path = view.log_path
    process, before = FollowedProcess(view), runtime.process
    if isinstance(before, FollowedProcess) and before.exit is None and before.pid != process.pid and view.end:
        # Whoever has it still, as a test that waits for its end, hears of it.
        before.ended(view.end)
    runtime.change(
        state=ServerState.READY if view.running else ServerState.STOPPED,
        process=None if server.attached else process,
        launches=view.launches,
        launch_log_start=view.launch_log_start,
        taken_over=view.running and not view.launches,
        ready_at=None if view.seconds is None else time.monotonic() - view.seconds,
        why_killed=None,
    )
    return process


def note_end(server: InferenceServer, process: FollowedProcess, how: Exit, why_killed: str | None) -> None:
    """Note how a server that another process owns has ended.

    Args:
        server: The server.
        process: What `follow` has returned.
        how: How.
        why_killed: Why it was ended before its time, or None.
    """
    runtime = server.runtime
    if process is runtime.process:
        runtime.change(why_killed=why_killed)
    process.ended(how)
