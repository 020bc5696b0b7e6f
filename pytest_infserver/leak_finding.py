"""One thing that a server has left behind."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that a server has left behind.

    Attributes:
        kind: process, port, shm, semaphore, sysv, socket, file or gpu.
        name: What it is: a path, an address, an id, for a process its command line.
        detail: What else is to be said of it, in words.
        pid: The process that it is or that held it; None if nobody knows.
        command: The command line of that process.
        age: For how many seconds it had existed, or None.
        fails: Whether it is an error; otherwise it is a warning.
        removed: Whether it is gone now.
    """

    kind: str
    name: str
    detail: str = ""
    pid: int | None = None
    command: str = ""
    age: float | None = None
    fails: bool = True
    removed: bool = False
