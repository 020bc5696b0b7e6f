"""How a server ended, and what was left of it: what its supervisor reports."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_infserver.launcher.out_of_memory import Finding


@dataclass(frozen=True)
class Exit:
    """How the server's root process ended.

    Attributes:
        code: Exit code; negative for the number of the signal that killed it; None if it got lost with its
            supervisor.
        max_rss: Peak resident memory of the root process, in bytes.
        stopped_by: Who has asked for it, if that was not the owner.
        out_of_memory: What the kernel had to do with it, where another process has found that out.
    """

    code: int | None
    max_rss: int
    stopped_by: str | None = None
    out_of_memory: Finding | None = None

    def __str__(self) -> str:
        if self.stopped_by is not None:
            return f"was stopped by {self.stopped_by}"
        if self.code is None:
            return "ended together with its supervisor (was that killed?)"
        if self.code >= 0:
            return f"exited with code {self.code}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-self.code).name}"
        return f"was killed by signal {-self.code}"


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
