"""Unix sockets: their files stay when nobody removes them."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Sequence
from typing import ClassVar

from pytest_infserver.launcher.leaks.finding import Finding
from pytest_infserver.launcher.leaks.holdings import Holdings, ObjectId
from pytest_infserver.launcher.proc_net import unix_sockets


class UnixSockets:
    """Which socket files were bound by a server's processes."""

    what: ClassVar[str] = "unix sockets"

    def __init__(self) -> None:
        self._bound: dict[str, tuple[ObjectId, int, str]] = {}

    def look(self, tree: Sequence[Holdings], owner: Holdings | None) -> None:
        """Note the socket files of the server's processes."""
        paths = unix_sockets()
        for held in tree:
            for inode in held.sockets & paths.keys():
                with contextlib.suppress(OSError):
                    path = _absolute(paths[inode], held.process.pid)
                    identity = _identity(path)
                    if identity is not None:
                        self._bound.setdefault(path, (identity, held.process.pid, held.command))

    def left(self) -> list[Finding]:
        """Return what is left now that the processes are gone, after removing it."""
        in_use = set(unix_sockets().values())
        found = []
        for path, (identity, pid, command) in self._bound.items():
            if _identity(path) == identity and path not in in_use:
                seconds = max(0.0, time.time() - os.lstat(path).st_ctime)
                removed = False
                with contextlib.suppress(OSError):
                    os.unlink(path)  # noqa: PTH108
                    removed = True
                found.append(Finding("socket", path, "", pid, command, seconds, removed=removed))
        return found


def _absolute(path: str, pid: int) -> str:
    if os.path.isabs(path):  # noqa: PTH117
        return path
    return os.path.join(os.readlink(f"/proc/{pid}/cwd"), path)  # noqa: PTH115, PTH118


def _identity(path: str) -> ObjectId | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None
