"""POSIX shared memory and semaphores: both are files in /dev/shm."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import stat
import time
from collections.abc import Iterator, Sequence
from typing import ClassVar

from pytest_infserver.launcher.leaks.holdings import Holdings, ObjectId, held_by_others
from pytest_infserver.leak_finding import Finding
from pytest_infserver.system.disk.removal import Seen

FOLDER = "/dev/shm"
_MAX_OBJECTS = 10_000


class SharedMemory:
    """Which objects in /dev/shm belong to a server.

    Its own are those that one of its processes was seen holding as soon as they were there, that belong to a user its
    processes ran under, that did not exist before it, that its owner never held, and that nobody else holds. What
    nobody was seen holding may be its own if it is named after one of its processes: that is worth a warning. Files in
    folders there are no objects: caches and weights, for example.
    """

    what: ClassVar[str] = "POSIX shared memory and semaphores"

    def __init__(self) -> None:
        self._not_ours = {identity for identity, _, _ in _objects()}
        self._users = {os.getuid()}
        self._pids: set[int] = set()
        self._held: dict[ObjectId, tuple[int, str]] = {}
        self._fresh: set[ObjectId] = set()
        self._of_others: set[ObjectId] = set()

    def prepare(self) -> None:
        """Note what is new, before anybody asks which processes there are: who has made it must be among them."""
        self._fresh = {identity for identity, _, _ in _objects()} - self._not_ours - self._of_others - self._held.keys()

    def look(self, tree: Sequence[Holdings], owner: Holdings | None) -> None:
        """Note what the server's processes hold now, and that what its owner holds is not the server's."""
        if owner is not None:
            self._not_ours |= owner.shm
        # What the server has not made it may still hold later.
        self._of_others |= self._fresh.difference(*(held.shm for held in tree))
        self._fresh = set()
        for held in tree:
            self._pids.add(held.process.pid)
            self._users |= held.users
            for identity in held.shm - self._of_others:
                self._held.setdefault(identity, (held.process.pid, held.command))

    def left(self) -> list[Finding]:
        """Return what is left now that the processes are gone, after removing what was the server's."""
        new = [entry for entry in _objects() if entry[0] not in self._not_ours]
        users = [entry for entry in new if entry[2].st_uid in self._users]
        suspects = [entry for entry in users if entry[0] in self._held or self._names_a_process(entry[1])]
        # Only our own are opened to ask: whoever looks for a leak of his would take that for holding it.
        ours = {identity: path for identity, path, _ in suspects if identity in self._held}
        free = {identity for identity, path in ours.items() if _is_held(path) is False}
        # The look at every process of the machine is the dear part: 70 ms where there are 1,000.
        unclear = {identity for identity, _, _ in suspects} - free
        elsewhere = held_by_others(unclear) if unclear else set()
        # Not every process can be seen: another user's, or one in another container.
        elsewhere |= {identity for identity in unclear & ours.keys() if _is_held(ours[identity])}
        return [
            self._finding(identity, path, status) for identity, path, status in suspects if identity not in elsewhere
        ]

    def _finding(self, identity: ObjectId, path: str, status: os.stat_result) -> Finding:
        kind = "semaphore" if os.path.basename(path).startswith("sem.") else "shm"  # noqa: PTH119
        size = _shown_size(status.st_size)
        seconds = max(0.0, time.time() - status.st_ctime)
        if identity not in self._held:
            detail = f"{size}, new, named after a process of the server but never seen held, left alone"
            return Finding(kind, path, detail, age=seconds, fails=False)
        pid, command = self._held[identity]
        return Finding(kind, path, size, pid, command, seconds, removed=Seen(path, *identity).remove())

    def _names_a_process(self, path: str) -> bool:
        # Whoever else is at work on this machine makes new objects too: only such a name makes one suspicious.
        words = re.split("[^0-9A-Za-z]+", os.path.basename(path))  # noqa: PTH119
        return any(word.isdigit() and int(word) in self._pids for word in words)


def _objects() -> Iterator[tuple[ObjectId, str, os.stat_result]]:
    names = os.listdir(FOLDER)  # noqa: PTH208
    if len(names) > _MAX_OBJECTS:
        raise RuntimeError(f"more than {_MAX_OBJECTS} files in {FOLDER}")
    for name in names:
        with contextlib.suppress(OSError):
            path = os.path.join(FOLDER, name)  # noqa: PTH118
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                yield (status.st_dev, status.st_ino), path, status


def _is_held(path: str) -> bool | None:
    """Ask the kernel whether any process has the file open or mapped; None if it does not tell."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Who opens it just now would end us by SIGIO, the usual signal.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        # A write lease is given only on a file that nobody else has.
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def _shown_size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
