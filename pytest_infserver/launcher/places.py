"""Where this package keeps what it shares between runs on one machine."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from pathlib import Path


def state_dir() -> Path | None:
    """Return a private folder for sockets and locks, made if needed; None if there is no place for one.

    ``INFSERVER_STATE_DIR``, else a folder in ``XDG_RUNTIME_DIR``, else one per user in the temporary directory.
    """
    candidates = []
    if os.environ.get("INFSERVER_STATE_DIR"):
        candidates.append(Path(os.environ["INFSERVER_STATE_DIR"]))
    if os.environ.get("XDG_RUNTIME_DIR"):
        candidates.append(Path(os.environ["XDG_RUNTIME_DIR"]) / "pytest-infserver")
    candidates.append(Path(tempfile.gettempdir()) / f"pytest-infserver-{os.getuid()}")
    return next((folder for folder in candidates if _is_private(folder)), None)


def servers_dir() -> Path | None:
    """Return the private folder for the sockets on which supervisors answer; None if there is no place for one."""
    folder = state_dir()
    if folder is None or not _is_private(folder / "servers"):
        return None
    # Absolute: a supervisor, or who asks it, may have another working directory.
    return (folder / "servers").absolute()


def _is_private(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def take_lock(path: Path) -> int | None:
    """Open ``path`` and lock it against every other process without waiting.

    Returns:
        The locked file descriptor: the lock lasts until it and all its duplicates are closed. None if somebody
        else holds the lock.

    Raises:
        OSError: The file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        # A file system without locks: better no lock than no server.
        return descriptor
    return descriptor


def shared_dir() -> Path | None:
    """Return a folder in which all users of the machine may make locks; None if there is no place for one.

    A folder in ``INFSERVER_STATE_DIR`` if that is set, else in ``/tmp``, whatever TMPDIR says: all must find it.
    """
    own = os.environ.get("INFSERVER_STATE_DIR")
    folder = Path(own or "/tmp") / "pytest-infserver-devices"
    try:
        if own:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) != 0o1777:
            # Against the umask: anybody may add a file, nobody may remove another's.
            folder.chmod(0o1777)
    except OSError:
        return None
    return folder if stat.S_ISDIR(status.st_mode) else None


def take_shared_lock(path: Path) -> int | None:
    """Lock a file in `shared_dir` against every other process of the machine without waiting.

    Returns:
        The locked file descriptor, or None if somebody else holds the lock or the file cannot be used.
    """
    try:
        descriptor = _open_shared(path)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError:
        os.close(descriptor)
        return None
    except BaseException:
        # An interrupt: nobody would know of the lock.
        os.close(descriptor)
        raise


def _open_shared(path: Path) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        # Without O_CREAT: in a sticky folder Linux refuses it for a file of somebody else (fs.protected_regular).
        return os.open(path, flags)
    except FileNotFoundError:
        pass
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return os.open(path, flags)
    os.fchmod(descriptor, 0o666)
    return descriptor
