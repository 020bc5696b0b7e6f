"""Where this package keeps what it shares between runs on one machine."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from pytest_infserver.system.disk.files import is_trusted, parent_of, refuse
from pytest_infserver.system.disk.folders import make_private_folder

_FOR_ALL_USERS = "/tmp"
_PREFIX = "pytest-infserver-"


def state_dir() -> Path | None:
    """Return a private folder for sockets and locks, made if needed; None if there is no place for one.

    ``INFSERVER_STATE_DIR``, else a folder in ``XDG_RUNTIME_DIR``, else one per user in the temporary directory.
    """
    try:
        return require_state_dir()
    except OSError:
        return None


def require_state_dir() -> Path:
    """Return the same folder as `state_dir`.

    Raises:
        OSError: There is no place for one; the text says why, and what to do.
    """
    candidates = []
    if os.environ.get("INFSERVER_STATE_DIR"):
        candidates.append(Path(os.environ["INFSERVER_STATE_DIR"]))
    if os.environ.get("XDG_RUNTIME_DIR"):
        candidates.append(Path(os.environ["XDG_RUNTIME_DIR"]) / "pytest-infserver")
    candidates.append(Path(tempfile.gettempdir()) / f"{_PREFIX}{os.getuid()}")
    for folder in candidates[:-1]:
        if _is_made_private(folder):
            return folder
    try:
        _make_private(candidates[-1])
    except OSError as error:
        refuse(f"no private folder for locks: {error}; set INFSERVER_STATE_DIR to a folder of your own")
    return candidates[-1]


def servers_dir() -> Path | None:
    """Return the private folder for the sockets on which supervisors answer; None if there is no place for one."""
    folder = state_dir()
    if folder is None or not _is_made_private(folder / "servers"):
        return None
    # Absolute: a supervisor, or who asks it, may have another working directory.
    return (folder / "servers").absolute()


def shared_lock_file(name: str) -> Path:
    """Return the path of a lock that all users of the machine share; its folder is there, the file may not be.

    It is in ``INFSERVER_STATE_DIR`` if that is set, else in ``/tmp`` itself, whatever TMPDIR says: all must find it.
    A folder of ours there would belong to whoever came first, who could remove the locks of all others.

    Args:
        name: What is locked, with the file's ending.

    Raises:
        UnsafePathError: Somebody else than root and this user owns the folder, or may remove files of others there.
        OSError: There is no such folder, and none can be made.
    """
    own = os.environ.get("INFSERVER_STATE_DIR")
    if not own:
        _check(Path(_FOR_ALL_USERS))
        return Path(_FOR_ALL_USERS) / f"{_PREFIX}{name}"
    folder = Path(own) / f"{_PREFIX}devices"
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    _check(folder)
    return folder / name


def _check(folder: Path) -> None:
    """Refuse a folder in which somebody could remove the locks of others; open one of our own to all users."""
    with parent_of(folder) as (parent, name):
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            refuse(f"{folder}, the folder for locks, is no folder{' but a link' * stat.S_ISLNK(status.st_mode)}")
        handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        status = os.fstat(handle)
        if not is_trusted(status.st_uid):
            refuse(
                f"{folder}, the folder for locks, belongs to another user (uid {status.st_uid}), who could remove them"
            )
        if status.st_uid == os.geteuid() and str(folder) != _FOR_ALL_USERS and stat.S_IMODE(status.st_mode) != 0o1777:
            # Against the umask: anybody may add a file, nobody may remove another's.
            os.fchmod(handle, 0o1777)
        elif status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
            refuse(f"anybody could remove locks in {folder}, which is not sticky: `chmod +t` it")
    finally:
        os.close(handle)


def _is_made_private(folder: Path) -> bool:
    try:
        _make_private(folder)
    except OSError:
        return False
    return True


def _make_private(folder: Path) -> None:
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_private_folder(folder)
