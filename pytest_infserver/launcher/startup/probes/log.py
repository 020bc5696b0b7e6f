"""A line of the server's log."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import ClassVar

from pytest_infserver.launcher.startup.probes.probe import Pointless, Probe
from pytest_infserver.system.http.probe import Answer

Read = Callable[[int, int], tuple[bytes, int, int]]
_WINDOW = 1024 * 1024
_MAX_LINE = 16 * 1024
_LINE_ENDS = re.compile(rb"[\r\n]+")


class LogProbe(Probe):
    """Searches what is new in the log, line by line; of a long line its first 16 KB."""

    once: ClassVar[bool] = True

    def __init__(self, pattern: str, read: Read, start: int) -> None:
        """Read nothing yet.

        Args:
            pattern: Regular expression.
            read: Returns what is new from a byte on, as `ServerLog.read_new`.
            start: Byte of the log at which this launch begins.
        """
        self._shown = pattern
        self._pattern = re.compile(pattern.encode())
        self._read = read
        self._position = start
        self._unfinished = b""

    def look(self, limit: float, pointless: Pointless = lambda: False) -> Answer:
        """Read what is new."""
        begin = time.monotonic()
        data, left_out, self._position = self._read(self._position, _WINDOW)
        pieces = _LINE_ENDS.split(data if left_out else self._unfinished + data)
        # A line is complete when the next one begins; one that matches already need not be.
        self._unfinished = pieces[-1][:_MAX_LINE]
        found = any(self._pattern.search(piece[:_MAX_LINE]) for piece in pieces)
        what = "has such a line" if found else "has no such line so far"
        return Answer(None, what, time.monotonic() - begin, good=found)

    @property
    def subject(self) -> str:
        """The log."""
        return "its log"

    @property
    def expects(self) -> str:
        """The pattern."""
        return f"a line that matches {self._shown!r}"
