"""Unix sockets: their files stay when nobody removes them."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from pytest_infserver.launcher.leaks.holdings import Holdings, ObjectId
from pytest_infserver.leak_finding import Finding
from pytest_infserver.system.disk.removal import Seen
from pytest_infserver.system.proc_net import unix_sockets


class _Bound(NamedTuple):
    name: str
    identity: ObjectId
    pid: int
    command: str


class UnixSockets:
    """Which socket files were bound by a server's processes."""

    what: ClassVar[str] = "unix sockets"

    def __init__(self) -> None:
        # A server may also be handed a socket.
        self._not_ours = set(unix_sockets().values())
        self._bound: dict[str, _Bound] = {}
        self._seen: set[str] = set()

    def look(self, tree: Sequence[Holdings], owner: Holdings | None) -> None:
        """Note the socket files of the server's processes, and that what its owner holds is not the server's."""
        names = unix_sockets()
        if owner is not None:
            self._not_ours.update(names[inode] for inode in owner.sockets & names.keys())
        seen: set[str] = set()
        for held in tree:
            own = held.sockets & names.keys()
            fresh = {names[inode] for inode in own - self._seen}
            for name in {names[inode] for inode in own}:
                self._note(name, held, name in fresh)
            seen |= own
        self._seen = seen

    def left(self) -> list[Finding]:
        """Return what is left now that the processes are gone, after removing it."""
        # Names are compared as they were bound: relative ones cannot be told apart, and are left alone.
        spared = self._not_ours | set(unix_sockets().values())
        found = []
        for path, bound in self._bound.items():
            status = _status(path)
            if status is not None and _identity(status) == bound.identity and bound.name not in spared:
                seconds = max(0.0, time.time() - status.st_ctime)
                found.append(
                    Finding(
                        "socket",
                        path,
                        "",
                        bound.pid,
                        bound.command,
                        seconds,
                        removed=Seen(path, *bound.identity).remove(),
                    )
                )
        return found

    def _note(self, name: str, held: Holdings, fresh: bool) -> None:
        pid, path = held.process.pid, name
        if not os.path.isabs(name):  # noqa: PTH117
            try:
                path = os.path.join(os.readlink(f"/proc/{pid}/cwd"), name)  # noqa: PTH115, PTH118
            except OSError:
                return
        # As the process sees it: with a mount namespace of its own the same path may be another file.
        status = _status(f"/proc/{pid}/root{path}")
        # An old socket may have lost its path to somebody else's.
        if status is not None and (fresh or path not in self._bound):
            self._bound[path] = _Bound(name, _identity(status), pid, held.command)


def _status(path: str) -> os.stat_result | None:
    """Return the status of a socket's file; None if it is no such thing."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status if stat.S_ISSOCK(status.st_mode) else None


def _identity(status: os.stat_result) -> ObjectId:
    return status.st_dev, status.st_ino
