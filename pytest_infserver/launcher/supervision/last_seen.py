"""What the owner of a server has seen of its processes, for the case that its supervisor and guard are both killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping

from pytest_infserver.system.processes.table import Process, command_line, descendants, send_signal

_INTERVAL = 1.0
"""Seconds between two looks; one takes some thousandths of a second."""


class LastSeen:
    """The processes below a supervisor, as of the last look."""

    def __init__(self) -> None:
        """Begin without any."""
        self._next_look = 0.0
        self._seen: Mapping[tuple[int, str], tuple[Process, str]] = {}

    def look(self, supervisor: int) -> None:
        """Remember what runs below a supervisor now, unless that was done a moment ago."""
        if time.monotonic() < self._next_look:
            return
        found = descendants(supervisor)
        known = self._seen
        self._seen = {
            (one.pid, one.start): known.get((one.pid, one.start)) or (one, _name(one.pid)) for one in found
        } or known
        self._next_look = time.monotonic() + _INTERVAL

    def kill(self) -> tuple[str, ...]:
        """Kill what was seen and is still there, with all below it; return what was seen, in words."""
        for process, _ in self._seen.values():
            # Parents first: whoever is killed starts nothing more.
            for one in (process, *descendants(process.pid)):
                send_signal(one, signal.SIGKILL)
        return tuple(f"pid {process.pid} ({name})" for process, name in self._seen.values())


def _name(pid: int) -> str:
    # Not the arguments, which may hold secrets.
    return os.path.basename(command_line(pid).partition(" ")[0]) or "no command line"  # noqa: PTH119
