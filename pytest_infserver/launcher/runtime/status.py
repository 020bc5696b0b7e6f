"""How a server is at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_infserver.launcher.state import ServerState
from pytest_infserver.launcher.supervision.exit import Exit
from pytest_infserver.launcher.supervision.supervised_process import ServerProcess

KILLED = "was killed by server.kill()"


@dataclass(frozen=True)
class Status:
    """How a server is at one moment; a runtime replaces it as a whole, so that nobody reads half a change.

    Attributes:
        state: Where it is in its life, as far as that was noted; see `Runtime.state`.
        process: The process of the last launch, as far as it is known.
        launches: How often the server's process was launched.
        launch_log_start: Size of the log, in bytes, before the last launch.
        taken_over: Whether it was running already when it became this process's.
        phase: What it is doing while it starts, as far as its log tells.
        start_began: When the start began that is under way, on the monotonic clock; None if there is none.
        ready_at: When it became ready, likewise.
        why_killed: Why it was ended before its time, in words that follow its name, or None.
        awake: Whether nobody in this process has put it to sleep.
        last_end: How the last process ended that was stopped.
    """

    state: ServerState = ServerState.NEW
    process: ServerProcess | None = None
    launches: int = 0
    launch_log_start: int = 0
    taken_over: bool = False
    phase: str = ""
    start_began: float | None = None
    ready_at: float | None = None
    why_killed: str | None = None
    awake: bool = True
    last_end: Exit | None = None

    @property
    def was_killed(self) -> bool:
        """Whether `InferenceServer.kill` has ended it."""
        return self.why_killed == KILLED
