"""The process group that a child of this process leads: its number is the child's own until that has been reaped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable

_FIRST_STEP = 0.0005
_LONGEST_STEP = 0.05


def wait_for_end(child: subprocess.Popen[bytes], limit: float, pointless: Callable[[], bool] = lambda: False) -> bool:
    """Wait until a child has ended, and do not reap it, so that `kill_group` may follow; return whether it has ended.

    Args:
        child: The child.
        limit: Seconds.
        pointless: Asked now and then; when it says so, the end is not waited for any more.
    """
    deadline = time.monotonic() + limit
    step = _FIRST_STEP
    while not _has_ended(child):
        left = deadline - time.monotonic()
        if left <= 0 or pointless():
            return False
        time.sleep(min(step, left))
        step = min(2 * step, _LONGEST_STEP)
    return True


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """Kill what there is of the group that a child leads; nothing once it is reaped: the number may be another's."""
    if not _is_reaped(child):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    if not hasattr(os, "waitid"):
        # macOS before Python 3.13: nothing but reaping tells.
        return child.poll() is not None
    try:
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:
        return True


def _is_reaped(child: subprocess.Popen[bytes]) -> bool:
    if child.returncode is not None:
        return True
    if hasattr(os, "waitid"):
        try:
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:
            # By somebody else, or by the system where SIGCHLD is ignored.
            return True
    return False
