"""Debug mode: when a supervisor looks at what the server's processes hold."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pytest_infserver.launcher.supervision.tree.server_tree import FREEZE_LIMIT, ServerTree
from pytest_infserver.system.processes.table import Process, wait_until_stopped

if TYPE_CHECKING:
    from pytest_infserver.launcher.leaks.tracker import Tracker

LOOK_INTERVAL = 0.5
"""Seconds between two looks at what the server's processes hold."""
LOOK_SHARE = 20
"""Looks take at most one part in so many of one core's time."""
ALARM_SHARE = 4
"""The same while new objects appear in /dev/shm all the time."""


class Looks:
    """Looks in time, and not too often; without a tracker there are none."""

    def __init__(self, tree: ServerTree, tracker: Tracker | None) -> None:
        """Prepare to look.

        Args:
            tree: The server's processes.
            tracker: Debug mode: follows what they hold.
        """
        self._tree = tree
        self._tracker = tracker
        self._next = self._earliest = 0.0

    @property
    def are_taken(self) -> bool:
        """Whether this is debug mode."""
        return self._tracker is not None

    @property
    def tmpdir(self) -> str | None:
        """The temporary directory that was made for the server, if there is one."""
        return None if self._tracker is None else self._tracker.tmpdir

    @property
    def alarm(self) -> int | None:
        """Descriptor to watch: readable when the next look should be soon."""
        alarm = None if self._tracker is None else self._tracker.alarm
        # Not before the next look is allowed: the alarm would wake us all the time.
        return alarm if alarm is not None and time.monotonic() >= self._earliest else None

    def note_alarm(self, readable: set[int]) -> None:
        """Look as soon as that is allowed, if the alarm is among the descriptors on which something has happened."""
        if self._tracker is not None and self._tracker.alarm in readable:
            self._next = min(self._next, self._earliest)

    def moments(self) -> list[float]:
        """Return when the next look is due, or allowed."""
        if self._tracker is None or not self._tree.root:
            return []
        is_allowed = self._tracker.alarm is None or time.monotonic() >= self._earliest
        return [self._next] if is_allowed else [self._next, self._earliest]

    def look_when_due(self) -> None:
        """Look, if it is time."""
        if time.monotonic() >= self._next:
            self.look()

    def look(self) -> None:
        """Look now."""
        if self._tracker is None or not self._tree.root:
            return
        begin = time.process_time()
        self._tracker.prepare()
        self._tracker.look(self._tree.processes())
        cost = time.process_time() - begin
        self._earliest = time.monotonic() + cost * ALARM_SHARE
        self._next = time.monotonic() + max(LOOK_INTERVAL, cost * LOOK_SHARE)

    def standing_still(self) -> AbstractContextManager[None]:
        """Let the server do nothing in the ``with`` block if it is looked at, and if SIGTERM ends it on the spot."""
        return contextlib.nullcontext() if self._tracker is None else self._tree.standing_still()

    def look_at_frozen(self, frozen: Sequence[Process]) -> None:
        """Look at processes that are about to be killed."""
        if self._tracker is not None:
            # What they hold when they stand still is all that they leave.
            wait_until_stopped(frozen, FREEZE_LIMIT)
            self._tracker.look([*frozen])

    def note_left(self, processes: Sequence[Process], when: str) -> None:
        """Note processes that were there still, and when that was."""
        if self._tracker is not None:
            self._tracker.note_left(processes, self._tree.root, when)

    def note_blindness(self, what: str) -> None:
        """Note what could not be looked at."""
        if self._tracker is not None:
            self._tracker.note_blindness(what)

    def finish(self, left: Sequence[int]) -> Any:
        """Return what was found, with these processes left; None without debug mode."""
        return None if self._tracker is None else self._tracker.finish([*left])
