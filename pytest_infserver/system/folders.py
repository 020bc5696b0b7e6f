"""Folders that are made in a project, and that version control and backups leave alone."""

from __future__ import annotations

import contextlib
from pathlib import Path

_MARKS = {
    ".gitignore": "# Made by pytest-infserver.\n*\n",
    # https://bford.info/cachedir/
    "CACHEDIR.TAG": "Signature: 8a477f597d28d172789f06886806bc55\n# Made by pytest-infserver.\n",
}


def make_output_folder(top: Path, *below: str) -> Path:
    """Make a folder for output, and let tools ignore all that is in it if it was not there before.

    Args:
        top: The folder; one that is there already is the user's own and gets no such files.
        below: Names of folders to make in it, one in the other.

    Returns:
        The innermost folder.

    Raises:
        OSError: It cannot be made.
    """
    is_new = not top.exists()
    folder = top.joinpath(*below)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in _MARKS.items() if is_new else ():
        with contextlib.suppress(OSError):
            (top / name).write_text(text, encoding="utf-8")
    return folder
