"""The processes of the machine, as /proc shows them: who descends from whom, told apart by pid and start time.

Imports only the standard library, and little of it: the supervisor starts with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from typing import NamedTuple

_MAX_COMMAND = 4096


class Process(NamedTuple):
    """A process that cannot be confused with a later one of the same pid.

    Attributes:
        start: When it began: clock ticks after the boot on Linux, ps's words elsewhere.
        zombie: Whether it has ended and only waits to be reaped.
        group: Its process group.
        session: Its session; -1 where the system does not tell.
    """

    pid: int
    parent: int
    start: str
    zombie: bool
    group: int
    session: int


def list_processes() -> list[Process]:
    """Return all processes of the machine that this one may see."""
    if not os.path.isdir("/proc/self"):  # noqa: PTH112 (pathlib costs start-up time)
        return _list_processes_by_ps()
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            process = read_process(int(name))
            if process is not None:
                found.append(process)
    return found


def read_process(pid: int) -> Process | None:
    """Return a process by its pid, on Linux; None if there is none."""
    # The command name may hold spaces and parentheses: fields count from the last one.
    fields = read_file(f"/proc/{pid}/stat", 2048).rpartition(b")")[2].split()
    if len(fields) < 20:
        return None
    # A process whose first thread has ended looks like a zombie while its other threads run.
    zombie = fields[0] in (b"Z", b"X") and int(fields[17]) < 2
    return Process(pid, int(fields[1]), fields[19].decode(), zombie, int(fields[2]), int(fields[3]))


def find_process(pid: int) -> Process | None:
    """Return a process by its pid, on every system; None if there is none."""
    if os.path.isdir("/proc/self"):  # noqa: PTH112
        return read_process(pid)
    return next((process for process in _list_processes_by_ps() if process.pid == pid), None)


def _list_processes_by_ps() -> list[Process]:
    with subprocess.Popen(["ps", "-A", "-o", "pid=,ppid=,pgid=,stat=,lstart="], stdout=subprocess.PIPE) as ps:
        output = ps.communicate()[0]
    rows = [line.split(None, 4) for line in output.decode("utf-8", "replace").splitlines()]
    found = [
        Process(int(row[0]), int(row[1]), row[4], row[3].startswith("Z"), int(row[2]), -1)
        for row in rows
        if len(row) == 5
    ]
    return [process for process in found if process.pid != ps.pid]


def descendants(root: int) -> list[Process]:
    """Return the processes below ``root``, parents first, zombies left out."""
    children: dict[int, list[Process]] = {}
    for process in list_processes():
        children.setdefault(process.parent, []).append(process)
    found, queue = [], [root]
    while queue:
        # Taken out: where pids are reused during the look, parents may form a circle.
        for child in children.pop(queue.pop(), []):
            queue.append(child.pid)
            if not child.zombie:
                found.append(child)
    return found


def send_signal(process: Process, number: int) -> None:
    """Signal a process unless it has ended, even if its pid has been given to another one since."""
    signal_process(process.pid, process.start, number)


def signal_process(pid: int, start: str, number: int) -> None:
    """Do the same for a process of which only these two are known; see `Process`."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        try:
            handle = os.pidfd_open(pid) if hasattr(signal, "pidfd_send_signal") else None
        except (OSError, AttributeError):
            handle = None
        try:
            if not is_alive(pid, start):
                return
            if handle is None:
                os.kill(pid, number)
            else:
                signal.pidfd_send_signal(handle, number)
        finally:
            if handle is not None:
                os.close(handle)


def kill_session(pid: int, start: str) -> None:
    """Kill a process that leads a session, its group and its descendants, unless its pid has been given to another one.

    Args:
        pid: Its pid.
        start: When it began; see `Process`.
    """
    if not _is_its_own(pid, start):
        return
    below = descendants(pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    for process in below:
        send_signal(process, signal.SIGKILL)


def _is_its_own(pid: int, start: str) -> bool:
    """Return whether what bears a number is still the process that began then, or the group that it left behind."""
    processes = list_processes()
    leader = next((process for process in processes if process.pid == pid), None)
    if leader is not None:
        return leader.start == start
    # Nobody gets the number while the group has members. A group that has it by chance is hardly in a session of that
    # number, too.
    return any(process.group == pid and process.session in (pid, -1) for process in processes)


def wait_until_stopped(processes: Iterable[Process], limit: float) -> None:
    """Wait until processes that got SIGSTOP stand still, on Linux: it reaches a thread that runs a moment later.

    Args:
        processes: These processes.
        limit: Seconds after which those that wait for a device are given up.
    """
    deadline = time.monotonic() + limit
    for process in processes:
        while not _stands_still(process.pid) and time.monotonic() < deadline:
            time.sleep(0.0005)


def _stands_still(pid: int) -> bool:
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208
    except OSError:
        return True
    states = [read_file(f"/proc/{pid}/task/{thread}/stat", 2048).rpartition(b")")[2].split()[:1] for thread in threads]
    # A thread that has ended has no state.
    return all(state[0] in (b"T", b"t", b"Z", b"X") for state in states if state)


def is_alive(pid: int, start: str) -> bool:
    """Return whether the process still exists, be it as a zombie."""
    process = find_process(pid)
    return process is not None and process.start == start


def ignores_sigterm(pid: int) -> bool:
    """Return whether SIGTERM cannot end a process (Linux; elsewhere the answer is no)."""
    return _sigterm_is_in(b"SigIgn:", pid)


def handles_sigterm(pid: int) -> bool:
    """Return whether a process does something of its own on SIGTERM (Linux; elsewhere the answer is no)."""
    return _sigterm_is_in(b"SigCgt:", pid)


def _sigterm_is_in(mask: bytes, pid: int) -> bool:
    for line in read_file(f"/proc/{pid}/status", 8192).splitlines():
        if line.startswith(mask):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def command_line(pid: int) -> str:
    """Return the first 4 KB of a process's command line, or "" if it has none (any more)."""
    words = read_file(f"/proc/{pid}/cmdline", _MAX_COMMAND)
    if len(words) == _MAX_COMMAND:
        # Half a secret would not be known for one.
        words = words.rpartition(b"\0")[0] or words
    return " ".join(words.replace(b"\0", b" ").decode("utf-8", "replace").split())


def age(process: Process) -> float | None:
    """Return for how many seconds a process has lived, on Linux."""
    if not process.start.isdigit():
        return None
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(process.start) / os.sysconf("SC_CLK_TCK"))


def read_file(path: str, limit: int) -> bytes:
    """Return at most the first ``limit`` bytes of a file of /proc, or nothing if there is none (any more)."""
    try:
        # Never waiting: the supervisor also reads what an engine has written, or made a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, limit)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
