"""SysV shared memory: the kernel remembers the pid of each segment's creator."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

from pytest_infserver.launcher.leaks.holdings import Holdings
from pytest_infserver.leak_finding import Finding
from pytest_infserver.system.processes.table import age

_IPC_RMID = 0
_SLACK = 1.5
"""Seconds after a look in which a process that has ended since then may have made a segment."""
_TICK = 0.1
"""Seconds by which the age of a process may be wrong."""


class _Creator(NamedTuple):
    born: float
    last_seen: float
    command: str


class _Segment(NamedTuple):
    number: int
    key: int
    creator: int


class SysVSharedMemory:
    """Which segments were created by a server's processes."""

    what: ClassVar[str] = "SysV shared memory"

    def __init__(self) -> None:
        self._before = {segment for segment, _ in _segments()}
        self._created: dict[_Segment, str] = {}
        self._seen: dict[int, _Creator] = {}

    def look(self, tree: Sequence[Holdings], owner: Holdings | None) -> None:
        """Note the segments whose creator is one of the server's processes."""
        now = time.time()
        for held in tree:
            self._seen[held.process.pid] = _Creator(now - (age(held.process) or 0), now, held.command)
        self._note_created()

    def _note_created(self) -> None:
        for segment, row in _segments():
            creator = None if segment in self._before else self._seen.get(segment.creator)
            # Others may have had its pid before and after it; the kernel counts whole seconds.
            if creator is not None and int(creator.born - _TICK) <= row["ctime"] < creator.last_seen + _SLACK:
                self._created.setdefault(segment, creator.command)

    def left(self) -> list[Finding]:
        """Return what is left now that the processes are gone, after removing it."""
        # What was made after the last look.
        self._note_created()
        return [
            Finding(
                "sysv",
                f"shmid {segment.number}",
                f"{row['size']} bytes",
                segment.creator,
                self._created[segment],
                max(0.0, time.time() - row["ctime"]),
                removed=ctypes.CDLL(None).shmctl(segment.number, _IPC_RMID, None) == 0,
            )
            for segment, row in _segments()
            # What somebody is attached to is in use.
            if segment in self._created and row["nattch"] == 0
        ]


def _segments() -> Iterator[tuple[_Segment, dict[str, int]]]:
    with contextlib.suppress(OSError), open("/proc/sysvipc/shm") as file:  # noqa: PTH123
        names = file.readline().split()
        for line in file:
            # Permissions are octal, but nobody needs them.
            row = dict(zip(names, map(int, line.split()), strict=False))
            yield _Segment(row["shmid"], row["key"], row["cpid"]), row
