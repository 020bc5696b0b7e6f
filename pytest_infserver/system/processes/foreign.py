"""Processes that are not our children, and children that are not ours any more."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time

from pytest_infserver.system.processes.table import find_process, send_signal

_INTERVAL = 0.02
"""Seconds between two looks where the system does not tell of a process's end."""
_left_behind: list[int] = []


class ForeignProcess:
    """Processes that somebody else has started and that end together: what subprocess.Popen is for our own.

    Attributes:
        pid: The first one, whose end ends the others.
    """

    def __init__(self, *pids: int) -> None:
        """Remember them; they must be alive, so that a pid means the right one."""
        self.pid = pids[0]
        self._handles: dict[int, int | None] = {pid: _handle(pid) for pid in pids}
        # Without a handle a pid would mean whoever has it then.
        self._first = find_process(self.pid) if self._handles[self.pid] is None else None

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the end of all.

        Args:
            timeout: Limit in seconds, or None.

        Raises:
            subprocess.TimeoutExpired: They have not ended in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for pid, handle in self._handles.items():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not (_is_over(pid, left) if handle is None else _is_readable(handle, left)):
                raise subprocess.TimeoutExpired("supervisor", timeout or 0.0)

    def kill(self) -> None:
        """Kill the first one."""
        handle = self._handles.get(self.pid)
        with contextlib.suppress(ProcessLookupError):
            if handle is not None:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            elif self._handles and self._first is not None:
                send_signal(self._first, signal.SIGKILL)

    def close(self) -> None:
        """Forget them: from now on they count as ended."""
        handles, self._handles = self._handles, {}
        for handle in handles.values():
            if handle is not None:
                os.close(handle)


def leave_behind(child: subprocess.Popen[bytes]) -> None:
    """Let a child live on that nobody here waits for."""
    # Or Popen complains about it.
    child.returncode = 0
    _left_behind.append(child.pid)


def reap_left_behind() -> None:
    """Let those go that have ended meanwhile."""
    for pid in list(_left_behind):
        try:
            ended = os.waitpid(pid, os.WNOHANG)[0] == pid
        except OSError:
            ended = True
        if ended:
            with contextlib.suppress(ValueError):
                _left_behind.remove(pid)


def _handle(pid: int) -> int | None:
    with contextlib.suppress(OSError, AttributeError):
        return os.pidfd_open(pid)
    return None


def _is_readable(handle: int, timeout: float | None) -> bool:
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    return bool(poller.poll(None if timeout is None else timeout * 1000))


def _is_over(pid: int, timeout: float | None) -> bool:
    """Wait where there are no handles; where there are, one that has none had ended before we looked."""
    if hasattr(os, "pidfd_open"):
        return True
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            os.kill(pid, 0)
        except OSError:
            return True
        if deadline is not None and time.monotonic() >= deadline:
            return False
        time.sleep(_INTERVAL)
