"""How a server ended, and what was left of it: what its supervisor reports."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_infserver.launcher.diagnosis.memory_finding import Finding

_MAX_NAMED = 8


@dataclass(frozen=True)
class Exit:
    """How the server's root process ended.

    Attributes:
        code: Exit code; negative for the number of the signal that killed it; None if it got lost with its
            supervisor.
        max_rss: Peak resident memory of the root process, in bytes.
        stopped_by: Who has asked for it, if that was not the owner.
        background: Pid of a process that it has left behind when it ended with 0, to be the server, or None.
        out_of_memory: What the kernel had to do with it, where another process has found that out.
        last_seen: If the supervisor and its guard were both killed: its processes that were seen last, in words. What
            it has started since then and what has left its session belongs to nobody, and cannot be known. None where
            it had a cgroup of its own, and all of that is gone.
    """

    code: int | None
    max_rss: int
    stopped_by: str | None = None
    out_of_memory: Finding | None = None
    background: int | None = None
    last_seen: tuple[str, ...] | None = None

    def __str__(self) -> str:
        if self.stopped_by is not None:
            return f"was stopped by {self.stopped_by}"
        if self.code is None and self.last_seen is not None:
            return _unknown_rest(self.last_seen)
        if self.code is None:
            return "ended together with its supervisor (was that killed?)"
        if self.code >= 0:
            return f"exited with code {self.code}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-self.code).name}"
        return f"was killed by signal {-self.code}"


def _unknown_rest(last_seen: tuple[str, ...]) -> str:
    named = ", ".join(last_seen[:_MAX_NAMED]) + (", ..." if len(last_seen) > _MAX_NAMED else "")
    seen = f"what was seen of it last was killed: {named}" if last_seen else "nothing of it had been seen"
    return (
        "ended together with its supervisor and the guard above that (were both killed?). Whether it had other"
        f" processes by then, which run on, cannot be known; {seen}. Look for them with ps"
    )


@dataclass(frozen=True)
class Survivor:
    """A process of the server that had to be killed.

    Attributes:
        stuck: It survived even SIGKILL.
    """

    pid: int
    command: str
    stuck: bool = False

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.command or 'no command line'}){' survived SIGKILL' if self.stuck else ''}"


def survivors(killed: object, stuck: object) -> tuple[Survivor, ...]:
    """Return what a supervisor says of the processes that had to be killed."""
    assert isinstance(killed, list)
    assert isinstance(stuck, list)
    stuck_pids = {entry["pid"] for entry in stuck}
    entries = {entry["pid"]: entry for entry in [*killed, *stuck]}
    return tuple(Survivor(pid, entry["command"], pid in stuck_pids) for pid, entry in entries.items())
