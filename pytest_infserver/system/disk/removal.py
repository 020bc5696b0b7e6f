"""Removes what an engine or another process has left: what was seen, and nothing that has taken its place since.

A path is no proof: between a look and the removal whoever may write in a folder on the way can put something else
there. Each thing is removed relative to the opened folder that it lies in, if it is the same file or folder as was
seen, and no link is ever followed.

Imports only the standard library, and little of it: the supervisor starts with it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import NamedTuple

from pytest_infserver.system.disk.files import Location, is_trusted, open_folder, parent_of

_READABLE = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_DEPTH = 64
"""Folders that are open at the same time; what lies deeper is moved up first."""
_MAX_MOVES = 10_000


class Seen(NamedTuple):
    """Something that was seen under a path.

    Attributes:
        path: The path.
        device: The number of its file system.
        inode: Its number there.
    """

    path: str
    device: int
    inode: int

    @classmethod
    def at(cls, path: Location | None) -> Seen | None:
        """Return what has a path now, a link itself; None if nothing has."""
        if path is None:
            return None
        try:
            status = os.lstat(path)
        except OSError:
            return None
        return cls(os.fspath(path), status.st_dev, status.st_ino)

    def remove(self) -> bool:
        """Remove it, a folder with all that is in it; return whether it is gone.

        What has its path by now and is something else stays, and so does a folder in which something is mounted.
        """
        try:
            with parent_of(self.path) as (parent, name):
                status = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if (status.st_dev, status.st_ino) != (self.device, self.inode):
                    return True
                if not stat.S_ISDIR(status.st_mode):
                    os.unlink(name, dir_fd=parent)
                    return True
                return _remove_folder(parent, name, status)
        except FileNotFoundError:
            return True
        except OSError:
            return False


def remove_own_folder(path: Location) -> bool:
    """Remove a folder with all that is in it, if it belongs to this user or to root; return whether it is gone.

    It is for a path of which nobody has noted what it was: see `Seen` for what an engine may have swapped.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    if not stat.S_ISDIR(status.st_mode) or not is_trusted(status.st_uid):
        return False
    return Seen(os.fspath(path), status.st_dev, status.st_ino).remove()


def make_accessible(path: Location) -> None:
    """Let this user read a folder of his, and remove what is in it, whatever its mode was."""
    with contextlib.suppress(OSError):
        handle = open_folder(path)
        try:
            _make_accessible(handle)
        finally:
            os.close(handle)


def _remove_folder(parent: int, name: str, seen: os.stat_result) -> bool:
    try:
        # Most are empty.
        os.rmdir(name, dir_fd=parent)
        return True
    except OSError:
        pass
    top = _open_same(parent, name, seen)
    try:
        if _is_mounted_below(top):
            return False
        for _ in range(_MAX_MOVES):
            if not _empty(top, top, _MAX_DEPTH):
                break
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)
    return True


def _empty(folder: int, top: int, depth: int) -> bool:
    """Remove what is in a folder, as far as possible; return whether something was moved up to be removed later."""
    moved = False
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                os.unlink(name, dir_fd=folder)
            elif not depth:
                os.rename(name, f"moved-{os.urandom(8).hex()}", src_dir_fd=folder, dst_dir_fd=top)
                moved = True
            else:
                moved |= _empty_below(folder, name, status, top, depth)
                os.rmdir(name, dir_fd=folder)
    return moved


def _empty_below(folder: int, name: str, seen: os.stat_result, top: int, depth: int) -> bool:
    if seen.st_dev != os.fstat(folder).st_dev:
        raise OSError(f"{name} is another file system")
    below = _open_same(folder, name, seen)
    try:
        return _empty(below, top, depth - 1)
    finally:
        os.close(below)


def _open_same(parent: int, name: str, seen: os.stat_result) -> int:
    """Return a descriptor of a folder, readable if that is possible, that is the one which was seen."""
    with contextlib.suppress(OSError):
        handle = os.open(name, (os.O_PATH if hasattr(os, "O_PATH") else 0) | _READABLE, dir_fd=parent)
        try:
            if _is_same(handle, seen):
                _make_accessible(handle)
        finally:
            os.close(handle)
    handle = os.open(name, _READABLE, dir_fd=parent)
    if not _is_same(handle, seen):
        os.close(handle)
        raise FileNotFoundError(f"{name} is another folder by now")
    return handle


def _is_same(handle: int, seen: os.stat_result) -> bool:
    return os.path.samestat(os.fstat(handle), seen)


def _make_accessible(folder: int) -> None:
    if os.fstat(folder).st_mode & stat.S_IRWXU != stat.S_IRWXU:
        # Through the descriptor, which leads to this very folder and to no link.
        os.chmod(f"/proc/self/fd/{folder}" if os.path.isdir("/proc/self/fd") else folder, 0o700)  # noqa: PTH101, PTH112


def _is_mounted_below(folder: int) -> bool:
    """Return whether anything is mounted in a folder (Linux), also of the same file system: that is not temporary."""
    try:
        path = os.readlink(f"/proc/self/fd/{folder}")  # noqa: PTH115
        with open("/proc/self/mountinfo", "rb") as file:  # noqa: PTH123
            places = [line.split()[4] for line in file]
    except OSError:
        return False
    # The kernel writes blanks so.
    inside = os.fsencode(path).replace(b" ", b"\\040") + b"/"
    return any(place.startswith(inside) for place in places)
