"""Whether a server's log becomes too long, or fills the disk, said before it has."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NEAR = 0.9
"""Share of the limit at which it is told."""
_NEARLY_FULL = 256 * 1000**2
"""Free bytes below which a disk counts as nearly full if the log grows."""
_SOON = 600.0
"""Seconds: a log that fills the disk within them at its present pace is told of."""
_MIN_STEP = 1.0
"""Seconds between two looks whose difference is a pace."""


@dataclass(frozen=True)
class Look:
    """A log's size and the free space beside it, at one moment.

    Attributes:
        size: Bytes of the log.
        free: Bytes that this user may still write on its disk; None if that cannot be told.
        moment: Seconds of a clock that never goes back.
    """

    size: int
    free: int | None
    moment: float


class LogGrowth:
    """Follows the size of one server's log; each warning is given once."""

    def __init__(self, limit: int, ends_server: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin.

        Args:
            limit: Bytes that the log may have; 0 for any number.
            ends_server: Whether a longer log ends its server.
            clock: Tells the moment of a look.
        """
        self._limit = limit
        self._ends_server = ends_server
        self._clock = clock
        self._last: Look | None = None
        self._told: set[str] = set()

    def look(self, path: Path) -> list[str]:
        """Look at a log, and return what is new about it, in words that follow its server's name."""
        return self.note(look_at(path, self._clock()))

    def note(self, now: Look) -> list[str]:
        """Take a look into account, and return what is new, as for `look`."""
        texts = {"limit": limit_text(now.size, self._limit, self._ends_server)}
        if self._last is None or now.moment - self._last.moment >= _MIN_STEP:
            texts["disk"] = disk_text(self._last, now)
            self._last = now
        if self.is_over(now.size):
            texts["over"] = texts.pop("limit")
        new = {name: text for name, text in texts.items() if text is not None and name not in self._told}
        self._told |= new.keys()
        return list(new.values())

    def is_over(self, size: int) -> bool:
        """Return whether a log of that size is longer than it may be."""
        return 0 < self._limit < size

    def reason_to_end(self, path: Path) -> str | None:
        """Return why its server has to end, in words that follow "was killed: ", or None."""
        size = look_at(path, 0.0).size
        if not (self._ends_server and self.is_over(size)):
            return None
        return (
            f"its log has {shown_size(size)}, and log_limit is {shown_size(self._limit)} with on_log_limit: fail;"
            " have it write less, or raise log_limit"
        )


def look_at(path: Path, moment: float) -> Look:
    """Return a log's size and the free space beside it."""
    try:
        size = path.stat().st_size
        disk = os.statvfs(path.parent)
        return Look(size, disk.f_bavail * disk.f_frsize, moment)
    except OSError:
        return Look(0, None, moment)


def limit_text(size: int, limit: int, ends_server: bool) -> str | None:
    """Return what is to be said of a log near its limit or above it, or None."""
    if not limit or size < NEAR * limit:
        return None
    has = f"its log has {shown_size(size)}, and log_limit is {shown_size(limit)}"
    if ends_server:
        return f"{has}: beyond that it is ended (on_log_limit: fail). Have it write less, or raise log_limit"
    return f"{has}: it goes on (on_log_limit: warn). Have it write less, or set on_log_limit: fail"


def disk_text(before: Look | None, now: Look) -> str | None:
    """Return what is to be said of the disk that a log grows on, or None.

    Args:
        before: An earlier look.
        now: This one.
    """
    if before is None or now.free is None or now.size <= before.size or now.moment <= before.moment:
        return None
    pace = (now.size - before.size) / (now.moment - before.moment)
    soon = now.free < pace * _SOON
    if not soon and now.free >= _NEARLY_FULL:
        return None
    how = f", full in {now.free / pace:.0f} s as fast as its log grows" if soon else ""
    return f"the disk of its log is nearly full: {shown_size(now.free)} are free{how}. Make room, or set 'output_dir'"


def shown_size(size: int) -> str:
    """Return a number of bytes as text, in the units of ``log_limit``."""
    for unit, factor in (("GB", 1000**3), ("MB", 1000**2), ("KB", 1000)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"
