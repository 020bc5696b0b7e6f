"""Folders that are made in a project, that nobody else may write, and that version control and backups leave alone."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from pytest_infserver.system.disk.files import is_trusted, open_folder, refuse, write_whole

_MODE = 0o755
"""Of the folders that we make: the umask can only take away from it."""
_MARKS = {
    ".gitignore": "# Made by pytest-infserver.\n*\n",
    # https://bford.info/cachedir/
    "CACHEDIR.TAG": "Signature: 8a477f597d28d172789f06886806bc55\n# Made by pytest-infserver.\n",
}


def make_output_folder(top: Path, *below: str) -> Path:
    """Make a folder for output, and let tools ignore all that is in it if it was not there before.

    Nobody but this user, root and this user's group may be able to change what is in it, since its files are written,
    read and given to programs by their names. So a folder is refused that anybody may write and that is not sticky as
    ``/tmp`` is, and one that belongs to neither root nor this user. A folder of our own that the group may write is
    fine: that is how an umask of 002 makes them. What we make is written by us alone, whatever the umask says.

    Root may write into everybody's folders, and has to: in a container the project is often mounted from a user whom
    nobody knows there. For root a folder may belong to anybody, and those in it to the same user. That is safe for
    all that this package opens itself, since no link of that user is followed (`files.open_folder`) and what we make
    in it is root's; programs that root starts, as profilers, open their files by name. Whose tests root runs could do
    more than that.

    Args:
        top: The folder; one that is there already is the user's own and gets no such files.
        below: Names of folders to make in it, one in the other.

    Returns:
        The innermost folder.

    Raises:
        UnsafePathError: Others may change what is in one of them; the text says what to do.
        OSError: It cannot be made.
    """
    is_new = not top.exists()
    _make(top)
    owner = _check(top, None)
    folder = top
    for name in below:
        if name in ("", ".", ".."):
            refuse(f"{folder / name} is not in {folder}")
        folder /= name
        _make(folder)
        _check(folder, owner)
    for mark, text in _MARKS.items() if is_new else ():
        with contextlib.suppress(OSError):
            write_whole(top / mark, text.encode())
    return folder


def make_private_folder(folder: Path) -> None:
    """Make a folder for this user alone, if it is not there.

    Raises:
        UnsafePathError: There is one that is not his alone.
        OSError: It cannot be made.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    if not is_private(folder):
        refuse(f"{folder} is not a folder of this user alone: remove it, or let nobody else into it")


def is_private(folder: Path) -> bool:
    """Return whether something is a folder, no link, and only this user can look into it."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def check_folder(folder: Path) -> None:
    """Make sure that only root and this user may change what is in a folder; see `make_output_folder`.

    Raises:
        UnsafePathError: Others may.
        OSError: It cannot be seen.
    """
    _check(folder, None)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(_MODE)
    except FileNotFoundError:
        _make(folder.parent)
        folder.mkdir(_MODE, exist_ok=True)
    except FileExistsError:
        # Or a file: that shows when it is opened.
        pass


def _check(folder: Path, owner_above: int | None) -> int:
    """Refuse a folder in which others may change something; return its owner.

    Args:
        folder: The folder.
        owner_above: The owner of the folder for output that it lies in, None for that folder itself.
    """
    handle = open_folder(folder)
    try:
        status = os.fstat(handle)
        owner = status.st_uid
        roots_choice = os.geteuid() == 0 and owner_above in (None, owner)
        if not is_trusted(owner) and not roots_choice:
            refuse(
                f"{folder} belongs to another user (uid {owner}), who could replace what is written there: use a"
                " folder of your own"
            )
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX and _keeps_modes(handle):
            refuse(
                f"{folder} can be written by anybody, who could replace what is written there: `chmod o-w` it, or use"
                " a new folder in it"
            )
        return owner
    finally:
        os.close(handle)


def _keeps_modes(folder: int) -> bool:
    """Return whether the file system has modes: on some (WSL's, FAT) all files are anybody's, and no chmod helps."""
    name = f".{os.urandom(8).hex()}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(name, flags, 0o600, dir_fd=folder)
    except OSError:
        return True
    try:
        return not os.fstat(handle).st_mode & 0o077
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)
