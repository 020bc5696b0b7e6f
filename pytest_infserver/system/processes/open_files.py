"""Which files processes write, as /proc tells."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from pytest_infserver.system.processes.table import read_file

_MAX_READ = 4096


def identity(path: str) -> tuple[int, int] | None:
    """Return device and inode of a file, or None if it cannot be seen."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def open_for_writing(pids: Iterable[int]) -> set[tuple[int, int]]:
    """Return device and inode of the files that processes have open for writing; none where nobody can tell."""
    found: set[tuple[int, int]] = set()
    for pid in pids:
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                if _is_for_writing(pid, entry.name):
                    with contextlib.suppress(OSError):
                        status = Path(entry.path).stat()
                        found.add((status.st_dev, status.st_ino))
    return found


def _is_for_writing(pid: int, number: str) -> bool:
    lines = read_file(f"/proc/{pid}/fdinfo/{number}", _MAX_READ).splitlines()
    flags = next((line.split()[1] for line in lines if line.startswith(b"flags:")), b"0")
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY
