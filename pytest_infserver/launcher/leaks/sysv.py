"""SysV shared memory: the kernel remembers the pid of each segment's creator."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

from pytest_infserver.launcher.leaks.finding import Finding
from pytest_infserver.launcher.leaks.holdings import Holdings

_IPC_RMID = 0


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

    def look(self, tree: Sequence[Holdings], owner: Holdings | None) -> None:
        """Note the segments whose creator is one of the server's living processes."""
        commands = {held.process.pid: held.command for held in tree}
        for segment, _ in _segments():
            if segment.creator in commands and segment not in self._before:
                self._created.setdefault(segment, commands[segment.creator])

    def left(self) -> list[Finding]:
        """Return what is left now that the processes are gone, after removing it."""
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
