"""Private folders of processes that may be killed: each is removed by its owner, or else by who makes the next one."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pytest_infserver.system.disk.locks import take_lock
from pytest_infserver.system.disk.removal import Seen

_MIN_AGE = 60.0
"""Seconds after which a folder without a lock is not one that is just being made."""


def work_folder(prefix: str, longest: int | None = None) -> Path:
    """Make a folder for this process, and remove those of which all processes were killed.

    Args:
        prefix: How its name begins.
        longest: Length of the path of the temporary directory beyond which it is made in ``/tmp``, for what has to
            have a short path.
    """
    parent = Path(tempfile.gettempdir())
    if longest is not None and len(os.fsencode(parent)) > longest and os.access("/tmp", os.W_OK):
        parent = Path("/tmp")
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            status = left.lstat()
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > _MIN_AGE and _is_left(left):
                Seen(str(left), status.st_dev, status.st_ino).remove()
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    # Held as long as this process lives.
    take_lock(folder / ".lock")
    return folder


def _is_left(folder: Path) -> bool:
    locks: Sequence[Path] = [folder / ".lock", *folder.glob("logs/*/.lock")]
    for path in locks:
        lock = take_lock(path)
        if lock is None:
            return False
        os.close(lock)
    return True
