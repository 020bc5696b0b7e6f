"""The lines that are new in a server's log, no more of them than a terminal can take."""

from __future__ import annotations

import re
import time
from pathlib import Path

from pytest_infserver.system.disk.files import open_read
from pytest_infserver.system.text import clean, clean_part, shortened

_WINDOW = 256 * 1024
_MAX_LINE = 16 * 1024
_MAX_SHOWN = 4096
"""Characters of a line that are shown."""


class LogFollower:
    """Reads on in a log where it stopped the last time."""

    def __init__(self, secrets: frozenset[str], burst: int = 1000, rate: float = 200.0) -> None:
        """Prepare to follow a log.

        Args:
            secrets: Values to hide.
            burst: So many lines are given at once; more are left out.
            rate: So many lines a second are given in the long run.
        """
        self._secrets = secrets
        self._burst = burst
        self._rate = rate
        self._budget = float(burst)
        self._refilled = time.monotonic()
        self._path: Path | None = None
        self._position = 0
        self._unfinished = b""
        self._inside_line = False
        self._leaving_out = False

    def new_lines(self, path: Path, start: int) -> list[str]:
        """Return the lines that have been added, without the last one if it is not complete yet.

        Args:
            path: The log.
            start: Byte from which on it counts, if it has not been read before.
        """
        if path != self._path:
            self._path, self._position, self._unfinished = path, start, b""
        try:
            data, skipped = self._read(path)
        except OSError:
            return []
        lines = self._split(data, skipped)
        self._refill()
        shown = lines[: int(self._budget)]
        self._budget -= len(shown)
        result = [self._shown(line) for line in shown]
        if skipped or len(shown) < len(lines):
            if not self._leaving_out:
                result.append(f"[... too many lines to show all of them, see {path}]")
            self._leaving_out = True
        elif lines:
            self._leaving_out = False
        return result

    def last_line(self) -> list[str]:
        """Return the line that has no end, now that nothing more will come."""
        line, self._unfinished = self._unfinished, b""
        return [self._shown(line, cut=True)] if line.strip() else []

    def _read(self, path: Path) -> tuple[bytes, bool]:
        size = path.stat().st_size
        # One that was truncated meanwhile is read from its beginning.
        self._position = self._position if self._position <= size else 0
        skipped = size - self._position > _WINDOW
        if skipped:
            self._position = size - _WINDOW
        if size == self._position:
            return b"", False
        with open_read(path) as file:
            file.seek(self._position)
            data = file.read(_WINDOW)
        self._position += len(data)
        return data, skipped

    def _split(self, data: bytes, skipped: bool) -> list[bytes]:
        if skipped:
            self._unfinished, self._inside_line = b"", True
        pieces = re.split(rb"[\r\n]+", self._unfinished + data)
        self._unfinished = pieces.pop()
        if pieces and self._inside_line:
            # The rest of a line whose beginning is shown already or was left out.
            pieces, self._inside_line = pieces[1:], False
        if self._inside_line:
            self._unfinished = b""
        elif len(self._unfinished) > _MAX_LINE:
            pieces.append(self._unfinished)
            self._unfinished, self._inside_line = b"", True
        return [piece for piece in pieces if piece.strip()]

    def _refill(self) -> None:
        now = time.monotonic()
        self._budget = min(self._burst, self._budget + (now - self._refilled) * self._rate)
        self._refilled = now

    def _shown(self, line: bytes, *, cut: bool = False) -> str:
        if cut or len(line) > _MAX_LINE:
            text = clean_part(b"", line[: 2 * _MAX_LINE], self._secrets)
        else:
            text = clean(line, self._secrets)
        return shortened(text.replace("\t", " ").rstrip(), _MAX_SHOWN)
