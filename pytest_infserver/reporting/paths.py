"""How paths are written: as one would type them here, or relative to a file that names them."""

from __future__ import annotations

import os
from pathlib import Path


def from_here(path: os.PathLike[str] | str) -> str:
    """Return a path as one would type it here; in full, where it is outside of the working directory."""
    full = os.path.normpath(path)
    try:
        short = os.path.relpath(full)
    except (OSError, ValueError):
        return full
    return full if short.startswith("..") else short


def relative(path: os.PathLike[str] | str, folder: Path) -> str:
    """Return a path as seen from a folder, or as it is where that cannot be said."""
    try:
        return os.path.relpath(path, folder)
    except (OSError, ValueError):
        return os.fspath(path)
