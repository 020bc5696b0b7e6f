"""What one process holds open or mapped, read from /proc."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from pytest_infserver.system.processes.table import Process, command_line, read_file

ObjectId: TypeAlias = "tuple[int, int]"
"""Device and inode: a named semaphore is mapped under a name that has not been its own for long."""

_SHM = "/dev/shm/"
_SHM_MAPPING = re.compile(rb"^\S+ \S+ \S+ ([0-9a-f]+):([0-9a-f]+) ([0-9]+) +/dev/shm/", re.MULTILINE)
_USERS = re.compile(rb"^Uid:\s+(.*)$", re.MULTILINE)
_CHUNK = 1 << 18


class Holdings(NamedTuple):
    """What one process holds.

    Attributes:
        users: The user ids that it runs under.
        shm: Its objects in /dev/shm.
        sockets: The inodes of its sockets.
    """

    process: Process
    command: str
    users: frozenset[int]
    shm: frozenset[ObjectId]
    sockets: frozenset[str]


def read_holdings(process: Process) -> Holdings:
    """Return what a process holds; nothing of it if it has ended or cannot be seen."""
    pid = process.pid
    opened, sockets = _open_objects(pid)
    shm = frozenset(opened | _mapped_objects(pid))
    return Holdings(process, command_line(pid), _users(pid), shm, frozenset(sockets))


def held_by_others(wanted: Iterable[ObjectId]) -> set[ObjectId]:
    """Return which of the objects in /dev/shm any process but this one holds."""
    missing, found = set(wanted), set()
    for name in os.listdir("/proc"):  # noqa: PTH208
        if not missing:
            break
        if name.isdigit() and int(name) != os.getpid():
            held = missing & (_open_objects(int(name))[0] | _mapped_objects(int(name)))
            found |= held
            missing -= held
    return found


def _users(pid: int) -> frozenset[int]:
    line = _USERS.search(read_file(f"/proc/{pid}/status", 4096))
    return frozenset(map(int, line.group(1).split())) if line else frozenset()


def _open_objects(pid: int) -> tuple[set[ObjectId], set[str]]:
    objects, sockets = set(), set()
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208
            with contextlib.suppress(OSError):
                link = os.readlink(f"{folder}/{name}")  # noqa: PTH115
                if link.startswith("socket:["):
                    sockets.add(link[8:-1])
                elif link.startswith(_SHM):
                    status = os.stat(f"{folder}/{name}")  # noqa: PTH116
                    objects.add((status.st_dev, status.st_ino))
    return objects, sockets


def _mapped_objects(pid: int) -> set[ObjectId]:
    return {
        (os.makedev(int(major, 16), int(minor, 16)), int(inode))
        for text in _mappings(pid)
        for major, minor, inode in _SHM_MAPPING.findall(text)
    }


def _mappings(pid: int) -> Iterator[bytes]:
    """Yield those parts of a process's memory map, in whole lines, that may name shared memory."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb", buffering=0) as file:  # noqa: PTH123
        rest = b""
        while data := file.read(_CHUNK):
            lines, newline, rest = (rest + data).rpartition(b"\n")
            if b"/dev/shm/" in lines:
                yield lines + newline
