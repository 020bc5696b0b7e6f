"""Why a server failed: the one line of its log that says so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from pytest_infserver.launcher.diagnosis.log import ServerLog
from pytest_infserver.system.text import clean_part, margin, one_line, without_escapes

_HEAD = 2 * 1024 * 1024
_TAIL = 8 * 1024 * 1024
_LAST = 32 * 1024
_MAX_SEARCHED = 8 * 1024

ADDRESS_IN_USE = re.compile(rb"(?:address|port is) already in use|couldn't bind|EADDRINUSE", re.IGNORECASE)

_PORT = re.compile(rb"(?:port\W{1,3}|', |\d\.\d+:|[\]*]:|localhost:|::)(\d{2,5})\b", re.IGNORECASE)
"""A port, as programs write it: ``port: 1``, ``('127.0.0.1', 1)``, ``127.0.0.1:1``, ``:::1``; not a time of day."""

EXCEPTION = re.compile(rb"(?:^|[\s\])])(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)\b: .+")
"""The last line of a Python traceback, with or without a logger's prefix."""

GENERIC_CAUSES: tuple[re.Pattern[bytes], ...] = (
    re.compile(rb"CUDA error|out of memory|HIP error|NCCL error", re.IGNORECASE),
    ADDRESS_IN_USE,
    re.compile(rb"error: (?:unrecognized|invalid) arguments?.*|No module named .+", re.IGNORECASE),
    EXCEPTION,
    re.compile(rb"\b(?:error|fatal|critical|panic|failed)\b", re.IGNORECASE),
)
"""What names a cause in any program's log, the most telling first."""

_WITHOUT_CONTENT = re.compile(
    rb"See root cause above|Failed core proc\(s\)|resource_tracker"
    rb"|Traceback \(most recent call last\):\s*$|^\s*raise |^\s*File \"",
    re.IGNORECASE,
)


def root_cause(
    log: ServerLog,
    patterns: Sequence[re.Pattern[bytes]] = (),
    start: int = 0,
    secrets: frozenset[str] = frozenset(),
    noise: Sequence[re.Pattern[bytes]] = (),
) -> str | None:
    """Return the log line that best explains a failure.

    Args:
        log: The log; a very long one is read at its beginning and end only.
        patterns: What the backend's engine writes, the most telling first; tried before GENERIC_CAUSES.
        start: Byte from which on the log counts.
        secrets: Values to hide.
        noise: Lines of the backend's engine that look like a cause and are none.

    Returns:
        The line, shortened; None where no line names a cause.
    """
    best: dict[re.Pattern[bytes], bytes] = {}
    ranked = (*patterns, *GENERIC_CAUSES)
    for line in _lines(log, start):
        seen = without_escapes(line)
        if _WITHOUT_CONTENT.search(seen) or any(pattern.search(seen) for pattern in noise):
            continue
        for pattern in ranked:
            if pattern.search(seen):
                # Exceptions are chained: the last line of the last traceback is what reached the top.
                if pattern is EXCEPTION or pattern not in best:
                    best[pattern] = line
                break
    chosen = next((best[pattern] for pattern in ranked if pattern in best), None)
    return None if chosen is None else one_line(chosen, secrets, cut=len(chosen) >= _MAX_SEARCHED)


def reports_port_taken(
    log: ServerLog,
    relevant: Callable[[int | None], bool],
    start: int = 0,
    noise: Sequence[re.Pattern[bytes]] = (),
) -> bool:
    """Return whether a line of a log says that a port is taken that matters.

    Args:
        log: The log.
        relevant: Tells of a port whether it matters; asked with None for a line that names none.
        start: Byte from which on the log counts.
        noise: Lines that do not count.
    """
    for line in map(without_escapes, _lines(log, start)):
        if ADDRESS_IN_USE.search(line) and not any(pattern.search(line) for pattern in noise):
            named: list[int | None] = [int(digits) for digits in _PORT.findall(line)]
            if any(map(relevant, named or [None])):
                return True
    return False


def has_line(log: ServerLog, patterns: Sequence[re.Pattern[bytes]], start: int = 0) -> bool:
    """Return whether a line of the log matches one of some patterns."""
    return bool(patterns) and any(pattern.search(line) for line in _lines(log, start) for pattern in patterns)


def last_lines(log: ServerLog, count: int, start: int = 0, secrets: frozenset[str] = frozenset()) -> list[str]:
    """Return the last lines of the log that are not empty."""
    data, _ = log.read_bytes(start, _LAST + margin(secrets))
    text = clean_part(data[:-_LAST], data[-_LAST:], secrets)
    return [one_line(line) for line in text.split("\n") if line.strip()][-count:]


def _lines(log: ServerLog, start: int) -> Iterator[bytes]:
    # What is written meanwhile does not count: it would push out what stands at the beginning.
    size = log.size()
    if size - start <= _HEAD + _TAIL:
        windows = [log.read_bytes(start, _HEAD + _TAIL, size)[0]]
    else:
        # Without the lines that are not whole.
        windows = [
            log.read_head(start, _HEAD).rpartition(b"\n")[0],
            log.read_bytes(start, _TAIL, size)[0].partition(b"\n")[2],
        ]
    for window in windows:
        # Patterns must not meet a line of megabytes.
        yield from (line[:_MAX_SEARCHED] for line in re.split(rb"[\r\n]+", window))
