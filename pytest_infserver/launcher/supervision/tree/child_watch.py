"""Notices when a process below a server's root ends by a signal while the server is in use (Linux)."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
from collections.abc import Collection
from typing import Any

from pytest_infserver.launcher.supervision.tree.server_tree import ServerTree
from pytest_infserver.system.processes.table import Process, command_line, read_file

_MAX_WATCHED = 256
_INFO = struct.Struct("=QQ11Ii")
_GET_INFO = 0xC040FF0B
"""PIDFD_GET_INFO; from Linux 6.15 on it tells how a process has ended, also when its parent has reaped it."""
_INFO_EXIT = 1 << 3
_MAX_COMMAND = 200


class ChildWatch:
    """Watches the processes that were there when the server became ready."""

    def __init__(self, tree: ServerTree) -> None:
        """Watch nobody yet; ``tree`` knows the processes."""
        self._tree = tree
        self._watched: dict[int, tuple[Process, str]] = {}
        self._reaped: dict[int, int] = {}

    def begin(self) -> None:
        """Watch those that are there now."""
        if not hasattr(os, "pidfd_open"):
            return
        for process in self._tree.processes()[:_MAX_WATCHED]:
            if process.pid != self._tree.root:
                with contextlib.suppress(OSError):
                    handle = os.pidfd_open(process.pid)
                    self._watched[handle] = process, command_line(process.pid)[:_MAX_COMMAND]

    def register(self, poller: select.poll) -> None:
        """Have a poller notice their ends."""
        for handle in self._watched:
            poller.register(handle, select.POLLIN)

    def note_reaped(self, pid: int, status: int) -> None:
        """Note how one has ended that had become a child of this process."""
        self._reaped[pid] = status

    def deaths(self, readable: Collection[int]) -> list[dict[str, Any]]:
        """Return those that have ended by a signal, and watch them no more.

        Args:
            readable: Descriptors about which the poller had news.
        """
        found = []
        for handle in [one for one in self._watched if one in readable]:
            process, command = self._watched.pop(handle)
            status = self._reaped.pop(process.pid, None)
            status = _status(handle, process.pid) if status is None else status
            os.close(handle)
            if status is not None and os.WIFSIGNALED(status):
                found.append({"pid": process.pid, "command": command, "signal": os.WTERMSIG(status)})
        return found

    def close(self) -> None:
        """Watch nobody any more."""
        for handle in self._watched:
            os.close(handle)
        self._watched.clear()


def signal_name(number: int) -> str:
    """Return a signal's name, or its number in words."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def describe_death(death: dict[str, Any]) -> str:
    """Return in words how such a process has ended."""
    return (
        f"process {death['pid']} ({death['command'] or 'no command line'}) was killed by {signal_name(death['signal'])}"
    )


def _status(handle: int, pid: int) -> int | None:
    """Return how a process has ended, as `os.wait` tells it, or None if that cannot be seen any more."""
    import fcntl

    with contextlib.suppress(OSError):
        asked = _INFO.pack(_INFO_EXIT, *[0] * 13)
        mask, *_, status = _INFO.unpack(fcntl.ioctl(handle, _GET_INFO, asked))
        if mask & _INFO_EXIT:
            return int(status)
    # Before Linux 6.15, as long as its parent has not asked: the last field is what it will be told.
    fields = read_file(f"/proc/{pid}/stat", 2048).rpartition(b")")[2].split()
    return int(fields[49]) if len(fields) > 49 and fields[0] == b"Z" else None
