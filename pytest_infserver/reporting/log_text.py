"""A part of a server's log as text that can be shown anywhere: clean and bounded."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_infserver.system.text import clean_part, margin

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_MAX_RUN = 5
_MAX_LINES = 400
_MAX_LINE = 2000


def excerpt(server: InferenceServer, start: int, end: int | None, limit: int) -> tuple[str, int]:
    """Return what stands in a server's log between two bytes, and how many bytes of that were left out.

    Args:
        server: The server.
        start: First byte.
        end: Byte behind the last one; None for the end of the log.
        limit: How many bytes are shown; the last ones count.
    """
    secrets = server.secrets
    begin = max(0, start - margin(secrets))
    data, left_out = server.read_log_bytes(begin, limit + margin(secrets), end)
    size = len(data) + left_out - (start - begin)
    # A log that was truncated meanwhile is shown from its beginning.
    shown = min(size if size >= 0 else len(data), limit)
    before, data = data[: len(data) - shown], data[len(data) - shown :]
    return bounded(clean_part(before, data, secrets)), max(0, size - shown)


def bounded(text: str) -> str:
    """Return a clean text with long lines, many lines and lines that say the same again and again cut short."""
    lines = text.strip("\n").rstrip().split("\n")
    shown = [line if len(line) <= _MAX_LINE else _shortened(line) for line in _collapsed(lines)]
    left_out = len(shown) - _MAX_LINES
    return "\n".join([f"[... {left_out} lines left out]", *shown[left_out:]] if left_out > 0 else shown)


def _shortened(line: str) -> str:
    return f"{line[:_MAX_LINE]} [... {len(line) - _MAX_LINE} characters left out]"


def _collapsed(lines: list[str]) -> Iterator[str]:
    """Return the lines with long runs of those that differ only in numbers cut short."""
    for _, group in itertools.groupby(lines, lambda line: re.sub(r"[0-9]+", "0", line)):
        run = list(group)
        if len(run) > _MAX_RUN:
            run = [run[0], f"[... {len(run) - 2} similar lines left out]", run[-1]]
        yield from run
