"""A part of a server's log as text that can be shown anywhere: clean and bounded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_infserver.system.text import clean_part, margin

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_MAX_RUN = 5
_LONGEST_PERIOD = 4
_NUMBER = re.compile(r"[0-9a-f]*[0-9][0-9a-f]*")
MAX_LINES = 400
_MAX_LINE = 2000


def excerpt(
    server: InferenceServer, start: int, end: int | None, limit: int, lines: int = MAX_LINES
) -> tuple[str, int]:
    """Return what stands in a server's log between two bytes, and how many bytes of that were left out.

    Args:
        server: The server.
        start: First byte.
        end: Byte behind the last one; None for the end of the log.
        limit: How many bytes are shown; the last ones count.
        lines: How many lines are shown.
    """
    secrets = server.secrets
    begin = max(0, start - margin(secrets))
    data, left_out = server.runtime.read_log_bytes(begin, limit + margin(secrets), end)
    size = len(data) + left_out - (start - begin)
    # A log that was truncated meanwhile is shown from its beginning.
    shown = min(size if size >= 0 else len(data), limit)
    before, data = data[: len(data) - shown], data[len(data) - shown :]
    if size > shown and not before.endswith(b"\n"):
        cut = data.find(b"\n") + 1
        if data[cut:].strip():
            # From the next whole line on.
            before, data = before + data[:cut], data[cut:]
    return bounded(clean_part(before, data, secrets), lines), max(0, size - len(data))


def bounded(text: str, most: int = MAX_LINES) -> str:
    """Return a clean text with long lines, many lines and lines that say the same again and again cut short."""
    lines = text.strip("\n").rstrip().split("\n")
    shown = [line if len(line) <= _MAX_LINE else _shortened(line) for line in _collapsed(lines)]
    left_out = len(shown) - most
    return "\n".join([f"[... {left_out} lines left out]", *shown[left_out:]] if left_out > 0 else shown)


def _shortened(line: str) -> str:
    return f"{line[:_MAX_LINE]} [... {len(line) - _MAX_LINE} characters left out]"


def _collapsed(lines: list[str]) -> Iterator[str]:
    """Return the lines with long runs of one to four lines, which differ only in numbers, cut short."""
    alike = [_NUMBER.sub("0", line) for line in lines]
    at = 0
    while at < len(lines):
        period, length = _run(alike, at)
        if length:
            yield from lines[at : at + period]
            yield f"[... {length - 2 * period} similar lines left out]"
            at += length - period
            yield from lines[at : at + period]
        else:
            period = 1
            yield lines[at]
        at += period


def _run(alike: list[str], at: int) -> tuple[int, int]:
    """Return of how many lines those that are repeated from a place on consist, and how many they are together."""
    for period in range(1, _LONGEST_PERIOD + 1):
        end = at + period
        while end < len(alike) and alike[end] == alike[end - period]:
            end += 1
        times = (end - at) // period
        if times > _MAX_RUN:
            return period, times * period
    return 1, 0
