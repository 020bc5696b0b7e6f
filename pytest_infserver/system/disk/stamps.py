"""Stamps of files: what changes when somebody changes a file, without reading it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

_SOURCES = (".py", ".pyi", ".so", ".pyd", ".cu", ".cuh", ".c", ".cc", ".cpp", ".h", ".hpp", ".json", ".yaml", ".toml")
"""How the names of files end that an engine is made of."""
_NOT_SOURCES = frozenset({"__pycache__", "node_modules"})
_MAX_DEPTH = 40


def file_stamp(path: str | Path) -> str:
    """Return size and time of a file, or "" if it cannot be seen."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return ""
    return f"{status.st_size}:{status.st_mtime_ns}"


def source_stamp(folder: str | Path) -> str:
    """Return what changes with any source file below a folder; some 6 us per file.

    Hidden folders, ``__pycache__``, ``node_modules`` and virtual environments do not count.
    """
    return _tree_stamp(str(folder), lambda name: name.endswith(_SOURCES))


def path_stamp(path: str | Path) -> str:
    """Return what changes with a file, or with any file below a folder; "" if there is nothing."""
    return _tree_stamp(str(path), lambda name: True) if os.path.isdir(path) else file_stamp(path)  # noqa: PTH112


def _tree_stamp(folder: str, counts: Callable[[str], bool]) -> str:
    digest = hashlib.sha256()
    # In an order of its own: that of the directory may change.
    for line in sorted(_files(folder, "", counts, _MAX_DEPTH)):
        digest.update(line.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def _files(folder: str, prefix: str, counts: Callable[[str], bool], depth: int) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = list(entries)
        if any(entry.name == "pyvenv.cfg" for entry in found):
            return
        for entry in found:
            name = entry.name
            if entry.is_dir(follow_symlinks=False):
                if depth and name not in _NOT_SOURCES and not name.startswith("."):
                    yield from _files(entry.path, f"{prefix}{name}/", counts, depth - 1)
            elif counts(name):
                # Where a link leads: a model in a cache is links to files.
                with contextlib.suppress(OSError):
                    status = entry.stat()
                    yield f"{prefix}{name} {status.st_size}:{status.st_mtime_ns}"
