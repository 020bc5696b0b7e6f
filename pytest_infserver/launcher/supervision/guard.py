"""The process above a supervisor: if the supervisor is killed, its whole tree falls to the guard, which ends it.

If both are killed, the owner kills the root's session, what it has seen of the rest (`last_seen`), and all that is in
the server's cgroup, where one could be had (`own_cgroup`). Without one, as in the scope of a login session and in
containers whose cgroups are read-only, what has left the session and was never seen is nobody's then, and the server's
end says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Adopt every descendant whose own parent ends (Linux; elsewhere they go to pid 1)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def fork_guard() -> int | None:
    """Fork, and leave the parent behind as guard.

    Returns:
        0 in the process that supervises, that process's pid in the guard; None if there can be no guard.
    """
    child = _fork()
    if child == 0:
        # Whoever kills the guard's process group does not kill this process with it.
        os.setsid()
        become_subreaper()
    return child


def await_supervisor(child: int, listen: Callable[[], object]) -> None:
    """Wait in the guard for the supervisor's end, and end with it, unless it was killed.

    Args:
        child: The supervisor's pid.
        listen: Called before signals are not passed on to the supervisor any more.
    """

    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    # Not reaped: until nothing is passed on any more the pid must be the child's.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    listen()
    if os.waitpid(child, 0)[1] == 0:
        os._exit(0)


def _fork() -> int | None:
    try:
        return os.fork()
    except OSError:
        # Better without a guard than without a server.
        return None
