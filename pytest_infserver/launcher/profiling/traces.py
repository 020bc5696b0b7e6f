"""The files that profilers write: their names, and whether they are complete."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePath

from pytest_infserver.system.disk.files import open_new, remove_file
from pytest_infserver.system.disk.folders import make_output_folder

_MAX_NAME = 120


def stem_of(name: str) -> str:
    """Return a file name for what somebody has called a test or a profile.

    `tests/test_a.py::TestB::test_c[llama-1]` becomes `test_a.TestB.test_c-llama-1`.
    """
    path, *parts = name.split("::")
    text = ".".join([PurePath(path).stem, *parts]) if parts else path
    stem = re.sub(r"[^\w.+=-]+", "-", text, flags=re.ASCII).strip("-.") or "profile"
    if len(stem) > _MAX_NAME or not text.isascii():
        # Two long or foreign names must not become one.
        digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:8]
        stem = f"{stem[: _MAX_NAME - 9].strip('-.')}-{digest}"
    return stem


def claim(folder: Path, name: str, suffix: str) -> Path:
    """Make an empty file, or a folder if there is no suffix, under a name that nothing has yet.

    Raises:
        OSError: It cannot be made.
    """
    make_output_folder(folder.parent, folder.name)
    stem = stem_of(name)
    for number in itertools.count(1):
        path = folder / f"{stem}{'' if number == 1 else f'-{number}'}{suffix}"
        with contextlib.suppress(FileExistsError):
            if suffix:
                os.close(open_new(path))
            else:
                path.mkdir(0o755)
            return path
    raise AssertionError


def discard_if_empty(target: Path) -> None:
    """Remove what `claim` has made if nothing has been written there."""
    with contextlib.suppress(OSError):
        if target.is_dir():
            for folder in sorted((path for path in target.rglob("*") if path.is_dir()), reverse=True):
                folder.rmdir()
            target.rmdir()
        elif not target.stat().st_size:
            remove_file(target)


def files_of(target: Path) -> list[Path]:
    """Return the files of a trace."""
    if target.is_dir():
        return sorted(path for path in target.rglob("*") if path.is_file())
    return [target] if target.exists() else []


def problem_of(target: Path, pids: Iterable[int]) -> str | None:
    """Return why a trace is not complete, or None.

    Args:
        target: Its file or folder.
        pids: Processes that may still be writing it.
    """
    files = files_of(target)
    empty = [path for path in files if not path.stat().st_size]
    if not files or empty == [target]:
        return f"it has written nothing to {target}"
    if empty:
        return f"{empty[0]} is empty"
    still = held_open(files, pids)
    return f"{still[0]} is still being written" if still else None


def held_open(paths: Iterable[Path], pids: Iterable[int]) -> list[Path]:
    """Return those of the files that one of the processes has open (Linux; elsewhere none)."""
    wanted = {os.path.realpath(path): path for path in paths}
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    path = wanted.get(str(entry.readlink()))
                    if path is not None:
                        found.append(path)
    return found
