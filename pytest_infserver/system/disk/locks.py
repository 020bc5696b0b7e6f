"""Lock files: the kernel keeps a lock until the last descriptor of it is closed, however its holder ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path

from pytest_infserver.system.disk.files import is_trusted, open_read, open_regular, read_start

_MAX_READ = 32
"""Bytes of a lock file that are read: the others of the machine may have put anything there."""
_EFFECTIVE_USER = re.compile(rb"^Uid:\s+\d+\s+(\d+)", re.MULTILINE)
_LARGEST_PID = 1 << 22
_STEP = 0.02
_MODE_LIMIT = 0.2
"""Seconds after which a lock file that another user has just made has the mode that it is to have."""


def take_lock(path: Path) -> int | None:
    """Lock a file of this user's against every other process without waiting.

    Returns:
        The locked file descriptor: the lock lasts until it and all its duplicates are closed. None if somebody
        else holds the lock.

    Raises:
        OSError: The file cannot be opened, or is no ordinary file: nobody knows then whether the lock is held.
    """
    descriptor = open_regular(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        return _locked(descriptor)
    except OSError:
        # A file system without locks: better no lock than no server.
        return descriptor


def take_shared_lock(path: Path) -> int | None:
    """Lock a file that `places.shared_lock_file` names against all processes of the machine without waiting.

    Returns:
        The locked file descriptor, or None if somebody else holds the lock.

    Raises:
        OSError: The file cannot be opened or locked, or is no ordinary file: nobody knows then whether it is held.
    """
    descriptor = _open_shared(path)
    try:
        return _locked(descriptor)
    except OSError:
        os.close(descriptor)
        raise


def wait_for_lock(path: Path, limit: float) -> int:
    """Lock a file of this user's as soon as nobody else holds the lock.

    Args:
        path: The file.
        limit: Seconds to wait.

    Returns:
        The locked file descriptor.

    Raises:
        TimeoutError: Somebody else still holds it; the text says how long it was waited for.
        OSError: See `take_lock`.
    """
    deadline = time.monotonic() + limit
    while True:
        lock = take_lock(path)
        if lock is not None:
            return lock
        if time.monotonic() > deadline:
            pid = named_holder(path)
            who = "another process" if pid is None else f"another process (pid {pid})"
            raise TimeoutError(f"{who} has held {path} for more than {limit:g} s")
        time.sleep(_STEP)


def sign(lock: int) -> None:
    """Write this process's id into a lock file, for those who find it locked."""
    with contextlib.suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)


def named_holder(path: Path) -> int | None:
    """Return the process that a lock file names as its holder, if that is to be believed.

    Any user may write into a shared lock file, and name a process that has to do with nothing. Only a process of the
    user whose file it is counts; one that cannot be seen, only in a file of this user's or of root's.
    """
    try:
        with open_read(path) as file:
            owner = os.fstat(file.fileno()).st_uid
            text = file.read(_MAX_READ)
        pid = int(text)
    except (OSError, ValueError):
        return None
    if not 0 < pid <= _LARGEST_PID:
        return None
    user = _user_of(pid)
    believed = is_trusted(owner) if user is None else user == owner
    return pid if believed else None


def _user_of(pid: int) -> int | None:
    try:
        found = _EFFECTIVE_USER.search(read_start(f"/proc/{pid}/status", 4096))
    except OSError:
        return None
    return None if found is None else int(found.group(1))


def _locked(descriptor: int) -> int | None:
    """Lock an open file, or close it if somebody else holds the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        raise
    except BaseException:
        # An interrupt: nobody would know of the lock.
        os.close(descriptor)
        raise


def _open_shared(path: Path) -> int:
    deadline = time.monotonic() + _MODE_LIMIT
    while True:
        try:
            return _open_or_make(path)
        except PermissionError:
            # Between the two steps in which another user makes it nobody else may open it.
            if time.monotonic() > deadline:
                raise
        time.sleep(_STEP)


def _open_or_make(path: Path) -> int:
    try:
        # Without O_CREAT: in a sticky folder Linux refuses it for a file of somebody else (fs.protected_regular).
        return open_regular(path, os.O_RDWR)
    except FileNotFoundError:
        pass
    try:
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return open_regular(path, os.O_RDWR)
    try:
        os.fchmod(descriptor, 0o666)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
