"""Waits until a launched server is ready, or knows why it is not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_infserver.launcher.http_probe import Answer, ask
from pytest_infserver.launcher.log import ServerLog
from pytest_infserver.launcher.phases import Phase, newest_phase
from pytest_infserver.launcher.process import Exit, ServerProcess

_LOG_INTERVAL = 0.25
_LOG_WINDOW = 1024 * 1024
_MAX_LINE = 16 * 1024
_MAX_SEARCHED = 1024
"""Bytes of a line that patterns get to see: some take long on a line of many kilobytes."""
_REQUEST_LIMIT = 5.0
_MISPLACED_LIMIT = 3.0
"""Seconds that a server gets to listen also where it is asked, once it listens somewhere else on its port."""
_FATAL_GRACE = 5.0
"""Seconds that a server gets to end by itself, with its whole traceback, after a fatal line."""


@dataclass(frozen=True)
class Ready:
    """The server answers."""


@dataclass(frozen=True)
class NotReady:
    """The server will not become ready, or not in time.

    Attributes:
        problem: In words, to follow the server's name.
        exit: How it ended, if it did.
        timed_out: Whether the time was up.
        foreign_listener: Whether another process answers on its port.
        misplaced: Whether it listens where nobody asks it.
        status: The last HTTP status of its health check, if there was one.
    """

    problem: str
    exit: Exit | None = None
    timed_out: bool = False
    foreign_listener: bool = False
    misplaced: bool = False
    status: int | None = None


@dataclass(frozen=True)
class ReadinessCheck:
    """What to wait for.

    Attributes:
        health_url: URL that answers 2xx when the server is ready.
        startup_timeout: Limit in seconds, downloads not counted.
        download_timeout: Limit of the downloads, in seconds.
        request_timeout: Limit of one health request, in seconds.
        fatal: A log line that matches one of these means that the server will not become ready.
        downloading: While the newest log line matches one of these, weights are being downloaded.
        phases: Log lines that tell what the server is doing.
        on_wait: Called some four times a second with the newest phase, or None while the log tells of none.
        owns_port: Whether the listener on the port is the server's own; None if nobody can tell.
        elsewhere: Where it listens on its port, in words, if that is not where it is asked; else None.
        cancelled: Whether nobody wants the server any more.
        headers: Sent with the health request.
    """

    health_url: str
    startup_timeout: float
    download_timeout: float
    request_timeout: float
    fatal: Sequence[re.Pattern[bytes]] = ()
    downloading: Sequence[re.Pattern[bytes]] = ()
    phases: Sequence[Phase] = ()
    on_wait: Callable[[str | None], None] = lambda phase: None
    owns_port: Callable[[], bool | None] = lambda: True
    elsewhere: Callable[[], str | None] = lambda: None
    cancelled: Callable[[], bool] = lambda: False
    headers: dict[str, str] | None = None


def wait_until_ready(
    check: ReadinessCheck, process: ServerProcess, log: ServerLog, log_start: int = 0
) -> Ready | NotReady:
    """Wait for a server.

    Args:
        check: What to wait for.
        process: Its launched process; the wait ends at once when that exits.
        log: Its log.
        log_start: Byte of the log at which this launch begins.
    """
    begin = time.monotonic()
    watch = _LogWatch(check, log, log_start, begin)
    while True:
        if process.exit is not None:
            return NotReady(f"{process.exit}, before it was ready", process.exit)
        if check.cancelled():
            return NotReady("is not wanted any more")
        left = watch.time_left()
        limit = max(0.01, min(check.request_timeout, left, _REQUEST_LIMIT))
        answer = ask(
            check.health_url, limit, check.headers, pointless=lambda: process.exit is not None or check.cancelled()
        )
        now = time.monotonic()
        if answer.ok:
            owned = _confirm_owner(check, process)
            if owned is not None:
                return owned
            return Ready()
        watch.look(now)
        if watch.fatal_line and process.wait_exit(_FATAL_GRACE) is None:
            return NotReady("reported a fatal error and did not end")
        place = watch.misplaced(answer, now)
        if place is not None:
            return NotReady(f"listens on {place} only, and is asked at {check.health_url}", misplaced=True)
        if watch.time_left() <= 0:
            return NotReady(watch.timeout_text(answer), timed_out=True, status=answer.status)
        # Short steps at first, for quick servers; a share of the elapsed time later, for cheap waiting. A closed
        # port is asked more often than a server that has to answer each time.
        share = 0.002 if answer.status is None else 0.006
        process.wait_exit(min(max(0.005, (now - begin) * share), 0.25))


def _confirm_owner(check: ReadinessCheck, process: ServerProcess) -> NotReady | None:
    # A server that could not bind ends soon: its own reason is better than ours.
    if check.owns_port() is not False:
        return None
    if process.wait_exit(0.5) is not None:
        return NotReady(f"{process.exit}, before it was ready", process.exit, foreign_listener=True)
    if check.owns_port() is not False:
        return None
    return NotReady("does not listen on its port, but another process answers there", foreign_listener=True)


class _LogWatch:
    """Reads what is new in the log now and then, and keeps the two clocks."""

    def __init__(self, check: ReadinessCheck, log: ServerLog, start: int, begin: float) -> None:
        self.check = check
        self.log = log
        self.position = start
        self.begin = begin
        self.last_look = begin
        self.downloading = False
        self.download_seconds = 0.0
        self.fatal_line = False
        self.phase: str | None = None
        self.unfinished = b""
        self.misplaced_since: float | None = None
        self.next_search = begin + 1.0

    def misplaced(self, answer: Answer, now: float) -> str | None:
        """Return where the server listens, if it has done so for a while where nobody asks it."""
        if answer.status is not None or now < self.next_search:
            return None
        self.next_search = now + 1.0
        place = self.check.elsewhere()
        if place is None:
            self.misplaced_since = None
        elif self.misplaced_since is None:
            self.misplaced_since = now
        elif now - self.misplaced_since >= _MISPLACED_LIMIT:
            return place
        return None

    def look(self, now: float) -> None:
        if now - self.last_look < _LOG_INTERVAL:
            return
        if self.downloading:
            self.download_seconds += now - self.last_look
        self.last_look = now
        self._read_new()
        self.check.on_wait("downloading" if self.downloading else self.phase)

    def _read_new(self) -> None:
        data, left_out, self.position = self.log.read_new(self.position, _LOG_WINDOW)
        if not data:
            return
        pieces = re.split(rb"[\r\n]+", data if left_out else self.unfinished + data)
        self.unfinished = pieces[-1][-_MAX_LINE:]
        lines = [line[:_MAX_SEARCHED] for line in pieces if line.strip()]
        self.fatal_line = any(pattern.search(line) for line in lines for pattern in self.check.fatal)
        if lines:
            self.downloading = any(pattern.search(lines[-1]) for pattern in self.check.downloading)
            self.phase = newest_phase(lines, self.check.phases) or self.phase

    def time_left(self) -> float:
        if self.downloading:
            return self.check.download_timeout - self.download_seconds
        return self.begin + self.check.startup_timeout + self.download_seconds - time.monotonic()

    def timeout_text(self, answer: Answer) -> str:
        if self.downloading:
            return f"was still downloading after {self.check.download_timeout:g} s (download_timeout)"
        url = self.check.health_url
        last = f"; its log was last at: {self.phase}" if self.phase else ""
        return f"was not ready after {self.check.startup_timeout:g} s (startup_timeout): {url} {answer}{last}"
