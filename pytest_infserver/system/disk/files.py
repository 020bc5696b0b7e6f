"""Files in folders that others may write: no link that another user has planted is followed, and nothing blocks.

Every path is gone through folder by folder, each opened relative to the one before it, so that nobody can swap one of
them on the way. A link in the place of a folder is followed only if somebody put it there who may: see `open_folder`.
The last name of a path is never followed, and must be that of an ordinary file: a pipe with that name would keep
whoever opens it waiting for ever.

Imports only the standard library, and little of it: the supervisor starts with it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO, NoReturn, TypeAlias

Location: TypeAlias = "str | os.PathLike[str]"

FOR_ALL = 0o644
"""The mode of what anybody may read and nobody else may write, whatever the umask."""
_WALKS = hasattr(os, "O_PATH")
"""Whether this system (Linux) lets us open folders that we may pass through and not read."""
_FOLDER = os.O_DIRECTORY | os.O_CLOEXEC | (os.O_PATH if _WALKS else os.O_RDONLY)
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MAX_LINKS = 40
_ALL_USERS = 2**32 - 1
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
}


class UnsafePathError(OSError):
    """A file or folder is used for nothing because somebody else may have put it there; the text says what to do."""

    def __str__(self) -> str:
        """Return the text alone: the number of the error says nothing more."""
        return str(self.strerror)


def refuse(text: str) -> NoReturn:
    """Raise an `UnsafePathError`."""
    raise UnsafePathError(errno.EPERM, text)


def open_folder(path: Location) -> int:
    """Return a descriptor of a folder, for use as ``dir_fd``.

    A link on the way is followed if it belongs to root or to this user. An ordinary user also follows a link of
    whoever owns the folder that it lies in, who could as well have put a folder there; root does not, since a link
    would turn root's files elsewhere into the ones that are written or removed.

    Raises:
        UnsafePathError: A link of somebody else is on the way.
        OSError: There is no such folder.
    """
    if not _WALKS:
        return os.open(path, _FOLDER)
    text = os.fspath(path)
    left = text.split("/")[::-1]
    links = 0
    at = os.open("/" if text.startswith("/") else ".", _FOLDER)
    try:
        while left:
            name = left.pop()
            if name in ("", "."):
                continue
            try:
                below = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
            except NotADirectoryError:
                target = _target(at, name, text)
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
                left += target.split("/")[::-1]
                if not target.startswith("/"):
                    continue
                below = os.open("/", _FOLDER)
            at, before = below, at
            os.close(before)
        return at
    except BaseException as error:
        os.close(at)
        _name(error, text)
        raise


@contextlib.contextmanager
def parent_of(path: Location) -> Iterator[tuple[int, str]]:
    """Give the descriptor of the folder in which something lies or will lie, and its name there.

    Raises:
        OSError: See `open_folder`.
    """
    folder, name = os.path.split(os.fspath(path))
    handle = open_folder(folder or ".")
    try:
        yield handle, name
    except OSError as error:
        _name(error, os.fspath(path))
        raise
    finally:
        os.close(handle)


def open_regular(path: Location, flags: int, mode: int = FOR_ALL) -> int:
    """Open an ordinary file, and nothing else; never wait for it.

    Args:
        path: The file.
        flags: As for `os.open`. With ``O_TRUNC`` it is emptied once it has turned out to be what it should be.
        mode: The mode of a new file, from which the umask takes away.

    Returns:
        Its descriptor, which programs do not inherit.

    Raises:
        UnsafePathError: It is a link or no file; or it is to be written and has a second name, under which it may be
            any other file of this user.
        OSError: It cannot be opened.
    """
    with parent_of(path) as (folder, name):
        try:
            handle = os.open(name, (flags & ~os.O_TRUNC) | _SAFELY, mode, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EMLINK):
                _refuse_kind(path, os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
            raise
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                _refuse_kind(path, status.st_mode)
            if flags & os.O_ACCMODE != os.O_RDONLY:
                # In one look: the name leads to this file, and there is no other one.
                seen = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if (seen.st_dev, seen.st_ino) != (status.st_dev, status.st_ino) or seen.st_nlink > 1:
                    refuse(f"{path} is also another file (a hard link): remove it")
                if flags & os.O_TRUNC:
                    os.ftruncate(handle, 0)
            # An engine that gets it as its output expects nothing else.
            os.set_blocking(handle, True)
        except BaseException:
            os.close(handle)
            raise
        return handle


def open_append(path: Location, mode: int = FOR_ALL, *, empty: bool = False) -> int:
    """Open a file to write at its end, and make it if it is not there; see `open_regular`.

    Args:
        path: The file.
        mode: The mode of a new file.
        empty: Whether what stands there goes first.
    """
    return open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | (os.O_TRUNC if empty else 0), mode)


def open_new(path: Location, mode: int = FOR_ALL) -> int:
    """Make a file that nothing has the name of yet, and open it for writing.

    Raises:
        FileExistsError: Something has that name.
        OSError: It cannot be made.
    """
    return open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)


def open_read(path: Location) -> BinaryIO:
    """Open a file for reading; see `open_regular`."""
    return open(open_regular(path, os.O_RDONLY), "rb")


def read_start(path: Location, limit: int) -> bytes:
    """Return at most the first ``limit`` bytes of a file; see `open_regular`."""
    with open_read(path) as file:
        return file.read(limit)


@contextlib.contextmanager
def whole_file(path: Location, mode: int = FOR_ALL) -> Iterator[BinaryIO]:
    """Write a file of which others see all or nothing: it takes its name when the block ends without an error.

    Args:
        path: Where; what has that name is replaced, be it a link.
        mode: The mode of the file, from which the umask takes away.

    Raises:
        OSError: It cannot be written.
    """
    with parent_of(path) as (folder, name):
        # A name that nobody can know beforehand, in the same folder because it is renamed there.
        part = f".{name[:40]}.{os.urandom(8).hex()}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(part, flags, mode, dir_fd=folder)
        try:
            with open(handle, "wb") as file:  # noqa: PTH123
                yield file
            os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part, dir_fd=folder)
            raise


def write_whole(path: Location, data: bytes, mode: int = FOR_ALL) -> None:
    """Write a file of which others see all or nothing; see `whole_file`."""
    with whole_file(path, mode) as file:
        file.write(data)


def move_file(source: Location, target: Location) -> None:
    """Give a file another name on the same disk; what has that name is replaced.

    Raises:
        OSError: It cannot be moved.
    """
    with parent_of(source) as (here, old), parent_of(target) as (there, new):
        os.replace(old, new, src_dir_fd=here, dst_dir_fd=there)


def remove_file(path: Location) -> None:
    """Remove a file, or a link itself, if it is there.

    Raises:
        OSError: It cannot be removed.
    """
    with contextlib.suppress(FileNotFoundError), parent_of(path) as (folder, name):
        os.unlink(name, dir_fd=folder)


def is_trusted(uid: int) -> bool:
    """Return whether a user may change what we rely on: root, who can anyway, and this user."""
    return uid in (0, os.geteuid()) or uid == unknown_user()


@functools.lru_cache(maxsize=1)
def unknown_user() -> int | None:
    """Return the id under which a user namespace shows all users that it does not know, None outside of one.

    In a container without rights of its own that is whom the machine's root appears as: ``/tmp`` and the folders
    above the user's own belong to it, and nobody could be told from it.
    """
    try:
        with open("/proc/self/uid_map", "rb") as file:  # noqa: PTH123
            known = sum(int(line.split()[2]) for line in file)
        with open("/proc/sys/kernel/overflowuid", "rb") as file:  # noqa: PTH123
            return None if known >= _ALL_USERS else int(file.read(32))
    except (OSError, ValueError, IndexError):
        return None


def _target(folder: int, name: str, path: str) -> str:
    """Return where a link leads that may be followed."""
    link = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        status = os.fstat(link)
        if not stat.S_ISLNK(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        as_owner = os.geteuid() != 0 and status.st_uid == os.fstat(folder).st_uid
        if not as_owner and not is_trusted(status.st_uid):
            refuse(
                f"{path}: '{name}' on the way is a link of another user (uid {status.st_uid}), and is not followed:"
                " give the path that it leads to, or remove it"
            )
        return os.readlink("", dir_fd=link)
    finally:
        os.close(link)


def _refuse_kind(path: Location, mode: int) -> NoReturn:
    refuse(
        f"{os.fspath(path)} is {_KINDS.get(stat.S_IFMT(mode), 'something else')} and not an ordinary file: remove it"
    )


def _name(error: BaseException, path: str) -> None:
    """Let an error say the whole path, not only the name below a descriptor."""
    if isinstance(error, OSError) and isinstance(error.filename, str) and "/" not in error.filename:
        error.filename, error.filename2 = path, None
