"""Lines on a terminal that are rewritten in place, and that give way to everything else that is written there."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

_AT_MOST_EVERY = 0.01
"""Seconds between two drawings that others cause by what they write."""

# Index moves down in the same column, and scrolls at the bottom. The position is saved after that: what scrolls does
# not take it along. Without automatic margins a line that is too long, as in a terminal that has just become smaller,
# is cut.
_INDEX, _UP, _SAVE, _RESTORE = "\x1bD", "\x1b[{}A", "\x1b7", "\x1b8"
_PLAIN_STYLE, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[m", "\x1b[K", "\x1b[J"
_NO_MARGINS, _MARGINS = "\x1b[?7l", "\x1b[?7h"


def terminal_size(file: TextIO) -> os.terminal_size | None:
    """Return the size of the terminal that a file is; None if it is none, or a dumb one, or does not know its size."""
    # pytest's own width is at least 40, and COLUMNS may say anything.
    if os.environ.get("TERM", "dumb") in ("", "dumb", "unknown"):
        return None
    try:
        size = os.get_terminal_size(file.fileno())
    except (OSError, ValueError, AttributeError):
        return None
    return size if size.columns > 0 and size.lines > 0 else None


def drawing(lines: Sequence[str], *, wipe: bool) -> str:
    """Return what draws lines below the cursor and leaves it where it is; whatever stood there goes.

    Args:
        lines: The lines, none of them wider than the terminal, fewer than it has; without lines it only erases.
        wipe: Whether to erase what stands to the right of the cursor, too. It is on one of the lines that were drawn
            before where the echo of a key, as ``^C`` at the end of a full line, has moved it there.
    """
    # To erase room is made as well: the terminal may have become smaller meanwhile.
    rows = max(1, len(lines))
    body = "".join(f"\r\n{line}{_REST_OF_LINE}" for line in lines) or "\r\n"
    begin = _PLAIN_STYLE + (_REST_OF_LINE if wipe else "") + _NO_MARGINS
    return f"{_INDEX * rows}{_UP.format(rows)}{_SAVE}{begin}{body}{_REST_OF_SCREEN}{_MARGINS}{_RESTORE}"


class LiveLines:
    """Keeps lines below the cursor; any thread may show them, and any may write meanwhile.

    What this process writes on the terminal erases them first: they return with the next flush, or when they are shown
    again. While none are shown nobody is bothered.
    """

    def __init__(self, file: TextIO, *, wipe: bool) -> None:
        """Show nothing yet.

        Args:
            file: What pytest's terminal writer writes to; the writer itself is to know nothing of these lines.
            wipe: Whether nothing stands to the right of the cursor but what somebody has typed.
        """
        self._file = file
        self._wipe = wipe
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._lines: Sequence[str] = ()
        self._guarded: list[_Guarded] = []
        self._drawn = False
        self._drawing = False
        self._drawn_at = 0.0

    def show(self, lines: Sequence[str]) -> None:
        """Show lines in place of those that are shown; no lines end it."""
        with self._lock:
            if not lines:
                self._end()
                return
            self._lines = lines
            if not self._guarded:
                self._guarded = [_Guarded(file, self) for file in _terminals(self._file)]
            self._draw()

    def before_write(self) -> None:
        """Give way to what is about to be written; under the lock."""
        if self._drawn and not self._drawing:
            self._drawn = False
            self._put(drawing((), wipe=self._wipe))

    def after_flush(self) -> None:
        """Return below what has been written; under the lock."""
        gone = self._lines and not self._drawn and not self._drawing
        if gone and time.monotonic() - self._drawn_at > _AT_MOST_EVERY:
            self._draw()

    @contextlib.contextmanager
    def turn(self) -> Iterator[bool]:
        """Hold the lock, and tell so; not in a forked child, where nobody may be left to give it back."""
        if os.getpid() != self._pid:
            yield False
            return
        with self._lock:
            yield True

    def _end(self) -> None:
        self._lines = ()
        self.before_write()
        for one in self._guarded:
            one.restore()
        self._guarded = []

    def _draw(self) -> None:
        # First: whoever interrupts this finds it to be erased.
        self._drawn = True
        self._put(drawing(self._lines, wipe=self._wipe))
        self._drawn_at = time.monotonic()

    def _put(self, text: str) -> None:
        self._drawing = True
        try:
            self._file.write(text)
            self._file.flush()
        finally:
            self._drawing = False


class _Guarded:
    """A file whose writers are noticed: as pytest's reports do, and ``print`` where output is not captured."""

    def __init__(self, file: TextIO, lines: LiveLines) -> None:
        self._names: dict[str, tuple[Callable[..., Any], Any]] = {}
        self._file = file
        write, flush = file.write, file.flush

        def guarded_write(text: str) -> int:
            with lines.turn() as ours:
                if ours:
                    lines.before_write()
                return write(text)

        def guarded_flush() -> None:
            with lines.turn() as ours:
                flush()
                if ours:
                    lines.after_flush()

        for name, function in (("write", guarded_write), ("flush", guarded_flush)):
            self._names[name] = function, vars(file).get(name)
            setattr(file, name, function)

    def restore(self) -> None:
        """Let them alone, unless somebody else has come in between."""
        for name, (function, before) in self._names.items():
            if vars(self._file).get(name) is not function:
                continue
            if before is None:
                delattr(self._file, name)
            else:
                setattr(self._file, name, before)


def _terminals(file: TextIO) -> list[TextIO]:
    """Return a file, and those of the process's own that are terminals."""
    others: Iterable[Any] = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    found = [file]
    for other in others:
        try:
            if (
                other is not None
                and other.isatty()
                and all(other is not one for one in found)
                and vars(other) is not None
            ):
                found.append(other)
        except (AttributeError, TypeError, ValueError):
            # Closed, or something that only looks like a file.
            continue
    return found
