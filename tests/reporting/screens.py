"""A terminal in memory: a file that shows what is written to it on an emulated screen."""

from __future__ import annotations

import io

import pyte


def lines_of(screen: pyte.HistoryScreen) -> list[str]:
    """Return all lines: what has scrolled away, and what is there, without the empty rest."""
    gone = ["".join(row[column].data for column in range(screen.columns)) for row in screen.history.top]
    lines = [line.rstrip() for line in [*gone, *screen.display]]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def resize(screen: pyte.HistoryScreen, columns: int, lines: int) -> None:
    """Change a screen's size as terminals do: what is below the cursor goes first; pyte takes away from the top."""
    fewer = max(0, screen.lines - lines)
    y, x = screen.cursor.y, screen.cursor.x
    below = min(fewer, screen.lines - 1 - y)
    screen.cursor_position(1, 1)
    if below:
        screen.insert_lines(below)
    for row in range(below, fewer):
        screen.history.top.append(screen.buffer[row].copy())
    screen.resize(lines, columns)
    screen.cursor.y, screen.cursor.x = y - (fewer - below), min(x, columns - 1)


class Tty(io.StringIO):
    """What is written to it appears on its screen, as if each write were flushed."""

    encoding = "utf-8"

    def __init__(self, columns: int = 60, lines: int = 10) -> None:
        super().__init__()
        self._screen = pyte.HistoryScreen(columns, lines, history=100_000, ratio=0.5)
        self._stream = pyte.Stream(self._screen)
        self._shown = 0
        self.writes: list[str] = []
        self.flushes = 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        # All at once, as a real file does it while other threads write.
        self.writes.append(text)
        return len(text)

    def flush(self) -> None:
        self.flushes += 1

    @property
    def screen(self) -> pyte.HistoryScreen:
        new, self._shown = self.writes[self._shown :], len(self.writes)
        # As a terminal's driver does it.
        self._stream.feed("".join(new).replace("\n", "\r\n"))
        return self._screen

    @property
    def lines(self) -> list[str]:
        return lines_of(self.screen)
