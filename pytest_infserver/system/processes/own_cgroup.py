"""A cgroup for one tree of processes, where one can be had: nothing leaves it by forking, and one word kills it.

The folder is named after whoever is responsible for it, a supervisor and the guard above that. It is swept away, with
all that is in it, only when both are known to have ended: what cannot be known counts as life.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from pytest_infserver.system.processes.table import read_process

_STEP = 0.01
_SWEEP_LIMIT = 0.2
"""Seconds that a start waits for what it has swept away; what takes longer to go is removed by the next one."""
SWITCH = "INFSERVER_CGROUPS"
"""The environment variable that switches these cgroups off with 0."""


def make_cgroup(guard: int | None = None) -> str | None:
    """Make a cgroup below this process's own one, and return its folder.

    It has no limits and counts nothing of its own: whatever holds for this process's cgroup holds for it, too. Those
    that ended processes of this user have left are removed, with what still runs in them.

    Args:
        guard: A process that is responsible for it beside this one.

    Returns:
        None where this user may not make one, or the kernel is older than 5.14 (``cgroup.kill``).
    """
    if os.environ.get(SWITCH) == "0" or not _sees_itself():
        return None
    name = _prefix() + "-".join(f"{pid}-{start_of(pid)}" for pid in (os.getpid(), guard) if pid is not None)
    for parent in _own_folders():
        with contextlib.suppress(OSError):
            _sweep(parent)
        with contextlib.suppress(OSError):
            os.mkdir(f"{parent}/{name}", 0o755)  # noqa: PTH102
            if os.access(f"{parent}/{name}/cgroup.kill", os.W_OK):
                return f"{parent}/{name}"
            os.rmdir(f"{parent}/{name}")  # noqa: PTH106
    return None


def enter_cgroup(folder: str) -> None:
    """Move this process into a cgroup; what it starts from then on is in it, too. See `is_in_cgroup`."""
    with contextlib.suppress(OSError):
        _write(f"{folder}/cgroup.procs", b"0")


def is_in_cgroup(pid: int, folder: str) -> bool:
    """Return whether a process has got into a cgroup: the kernel may have refused it."""
    name = folder.rpartition("/")[2]
    return any(line.startswith("0::") and line.endswith(f"/{name}") for line in _lines(f"/proc/{pid}/cgroup"))


def kill_cgroup(folder: str, timeout: float) -> bool:
    """Kill all processes in a cgroup and remove it, with the cgroups below it.

    Args:
        folder: What `make_cgroup` has returned.
        timeout: Seconds that they get to be gone.

    Returns:
        Whether that was done. One that is not there is none of ours: who knows where its processes are.
    """
    deadline = time.monotonic() + timeout
    try:
        _write(f"{folder}/cgroup.kill", b"1")
    except OSError:
        return False
    while not remove_cgroup(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(_STEP)
    return True


def remove_cgroup(folder: str) -> bool:
    """Remove a cgroup and those below it, if nothing runs in them; return whether it is gone."""
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(path)  # noqa: PTH106
    return not os.path.isdir(folder)  # noqa: PTH112


def cgroup_made_by(pid: int, start: str) -> str | None:
    """Return the folder of the cgroup that another process has made, which may have ended; None without one.

    Args:
        pid: The process.
        start: When it began; see `start_of`.
    """
    for parent in _own_folders():
        with contextlib.suppress(OSError):
            for entry in os.scandir(parent):
                if f"{entry.name}-".startswith(f"{_prefix()}{pid}-{start}-"):
                    return entry.path
    return None


def start_of(pid: int) -> str:
    """Return when a process began, in the kernel's ticks; "" if nobody says."""
    process = read_process(pid)
    return "" if process is None else process.start


def _sees_itself() -> bool:
    """Return whether /proc is that of this process's own pid namespace."""
    try:
        return os.readlink("/proc/self") == str(os.getpid()) and start_of(os.getpid()) != ""  # noqa: PTH115
    except OSError:
        return False


def _own_folders() -> Iterator[str]:
    """Yield the folder of this process's cgroup (version 2), as far as it is mounted here."""
    path = next((line[3:] for line in _lines("/proc/self/cgroup") if line.startswith("0::")), None)
    if path is None or "/.." in path:
        return
    for line in _lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 6 or not after.startswith("cgroup2 ") or "\\" in fields[3] + fields[4]:
            continue
        root = fields[3].rstrip("/")
        if path == root or path.startswith(f"{root}/"):
            yield f"{fields[4]}{path[len(root) :]}".rstrip("/")


def _sweep(parent: str) -> None:
    """Kill what is in the cgroups of processes that have ended, and remove those, as far as that takes no time."""
    abandoned = [entry.path for entry in os.scandir(parent) if _is_abandoned(entry)]
    for folder in abandoned:
        with contextlib.suppress(OSError):
            _write(f"{folder}/cgroup.kill", b"1")
    deadline = time.monotonic() + _SWEEP_LIMIT
    while (abandoned := [folder for folder in abandoned if not remove_cgroup(folder)]) and time.monotonic() < deadline:
        time.sleep(_STEP)


def _is_abandoned(entry: os.DirEntry[str]) -> bool:
    """Return whether all who are responsible for a cgroup of this user's are known to have ended."""
    if not entry.name.startswith(_prefix()):
        return False
    words = entry.name.removeprefix(_prefix()).split("-")
    responsible = list(zip(words[::2], words[1::2], strict=False))
    try:
        own = entry.stat(follow_symlinks=False).st_uid == os.getuid()
    except OSError:
        # It has gone meanwhile.
        return False
    return own and len(responsible) * 2 == len(words) and all(_has_ended(*one) for one in responsible)


def _has_ended(pid: str, start: str) -> bool:
    """Return whether a process is known to have ended."""
    if not pid.isdigit() or not start.isdigit():
        return False
    process = read_process(int(pid))
    if process is not None:
        return process.start != start or process.zombie
    # There is none, or it cannot be looked at.
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _prefix() -> str:
    """Return how the names begin of cgroups of processes that this one can see: those of its pid namespace."""
    return f"infserver-{os.stat('/proc/self/ns/pid').st_ino}-"  # noqa: PTH116


def _lines(path: str) -> list[str]:
    # Not `read_file`: the kernel gives a long list of mounts in several parts.
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
            return file.read().splitlines()
    except OSError:
        return []


def _write(path: str, text: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, text)
    finally:
        os.close(handle)
