"""POSIX shared memory and semaphores: both are files in /dev/shm."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
import time
from collections.abc import Iterator, Sequence
from typing import ClassVar

from pytest_infserver.launcher.leaks.finding import Finding
from pytest_infserver.launcher.leaks.holdings import Holdings, ObjectId, held_by_others

FOLDER = "/dev/shm"
_MAX_OBJECTS = 10_000


class SharedMemory:
    """Which objects in /dev/shm belong to a server.

    Its own are those that one of its processes was seen holding, that did not exist before it, that its owner never
    held, and that nobody else holds.
    """

    what: ClassVar[str] = "POSIX shared memory and semaphores"

    def __init__(self) -> None:
        self._not_ours = {identity for identity, _, _ in _objects()}
        self._held: dict[ObjectId, tuple[int, str]] = {}

    def look(self, tree: Sequence[Holdings], owner: Holdings | None) -> None:
        """Note what the server's processes hold now, and that what its owner holds is not the server's."""
        if owner is not None:
            self._not_ours |= owner.shm
        for held in tree:
            for identity in held.shm:
                self._held.setdefault(identity, (held.process.pid, held.command))

    def left(self) -> list[Finding]:
        """Return what is left now that the processes are gone, after removing what was the server's."""
        new = [entry for entry in _objects() if entry[0] not in self._not_ours]
        # Somebody else's that was never seen held by the server is nobody's business.
        suspects = [entry for entry in new if entry[0] in self._held or entry[2].st_uid == os.getuid()]
        # The look at every process of the machine is the dear part: 70 ms where there are 1,000.
        unclear = [identity for identity, path, _ in suspects if not _nobody_holds(path)]
        elsewhere = held_by_others(unclear) if unclear else set()
        return [
            self._finding(identity, path, status) for identity, path, status in suspects if identity not in elsewhere
        ]

    def _finding(self, identity: ObjectId, path: str, status: os.stat_result) -> Finding:
        kind = "semaphore" if os.path.basename(path).startswith("sem.") else "shm"  # noqa: PTH119
        size = _shown_size(status.st_size)
        seconds = max(0.0, time.time() - status.st_ctime)
        if identity not in self._held:
            detail = f"{size}, new since the server's start, holder unknown, left alone"
            return Finding(kind, path, detail, age=seconds, fails=False)
        pid, command = self._held[identity]
        return Finding(kind, path, size, pid, command, seconds, removed=_remove(path, identity))


def _objects() -> Iterator[tuple[ObjectId, str, os.stat_result]]:
    seen = 0
    for folder, _, names in os.walk(FOLDER):
        for name in names:
            seen += 1
            if seen > _MAX_OBJECTS:
                return
            with contextlib.suppress(OSError):
                path = os.path.join(folder, name)  # noqa: PTH118
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode):
                    yield (status.st_dev, status.st_ino), path, status


def _nobody_holds(path: str) -> bool:
    """Ask the kernel whether no process has the file open or mapped; a no may also mean that it does not tell."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Who opens it just now would end us by SIGIO, the usual signal.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        # A write lease is given only on a file that nobody else has.
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _remove(path: str, identity: ObjectId) -> bool:
    try:
        status = os.lstat(path)
        if (status.st_dev, status.st_ino) != identity:
            return True
        os.unlink(path)  # noqa: PTH108
    except FileNotFoundError:
        return True
    except OSError:
        return False
    folder = os.path.dirname(path)  # noqa: PTH120
    while folder != FOLDER:
        # Its own folder goes with the last file in it.
        try:
            os.rmdir(folder)  # noqa: PTH106
        except OSError:
            break
        folder = os.path.dirname(folder)  # noqa: PTH120
    return True


def _shown_size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
