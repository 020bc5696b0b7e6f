"""The text of what is waited for, fit for a terminal's size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pytest_infserver.compat import width_of, width_of_character

_LEAST = 8
"""Columns that the name and what it does keep, each, as long as the terminal is wide enough for that."""
_CUT = "..."


class Row(NamedTuple):
    """One server, as text without control characters.

    Attributes:
        label: Its name and backend.
        doing: What it is doing.
        time: For how long.
        last: How long that took the last time, or empty.
    """

    label: str
    doing: str
    time: str
    last: str


def cut(text: str, width: int) -> str:
    """Return text that takes no more columns of a terminal than that; what is left out is marked if there is room."""
    if width_of(text) <= width:
        return text
    mark = _CUT if width > 2 * len(_CUT) else ""
    left, kept = width - len(mark), ""
    for char in text:
        left -= max(0, width_of_character(char))
        if left < 0:
            break
        kept += char
    return kept + mark


def pad(text: str, width: int) -> str:
    """Return text with as many spaces as fill so many columns of a terminal."""
    return text + " " * (width - width_of(text))


def table(rows: Sequence[Row], columns: int, lines: int) -> list[str]:
    """Return one line per row, in columns.

    Args:
        rows: The rows.
        columns: The terminal's width; the last column stays free.
        lines: How many lines there may be; if that is not enough the last one says how many are left out.
    """
    if lines < 1:
        return []
    shown = rows if len(rows) <= lines else rows[: lines - 1]
    room = columns - 1
    label, doing, time = (max((width_of(row[column]) for row in shown), default=0) for column in range(3))
    last = max((width_of(row.last) for row in shown), default=0)
    rest = room - time - 4
    if label + doing + last > rest:
        last = 0
    if label + doing > rest:
        doing = max(_LEAST, min(doing, rest - label))
        label = max(_LEAST, min(label, rest - doing))
    if rest < 2 * _LEAST:
        # The time and what it does tell most.
        text = [f"{row.time} {row.doing}" for row in shown]
    else:
        text = [
            f"{pad(cut(row.label, label), label)}  {pad(cut(row.doing, doing), doing)}  {row.time.rjust(time)}"
            f"{row.last if last else ''}"
            for row in shown
        ]
    if len(shown) < len(rows):
        text.append(f"... and {len(rows) - len(shown)} more")
    return [cut(line, room) for line in text]
