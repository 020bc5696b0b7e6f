"""Waits until a launched server is ready, or knows why it is not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_infserver.launcher.diagnosis.log import ServerLog
from pytest_infserver.launcher.startup.phases import Phase, newest_phase
from pytest_infserver.launcher.startup.probes.probe import Probe
from pytest_infserver.launcher.supervision.supervised_process import Exit, ServerProcess
from pytest_infserver.system.http.probe import Answer

_LOG_INTERVAL = 0.25
_ECHO = 0.1
"""Seconds in which a server writes down that it was asked; what it writes later is news."""
_TICK = 0.05
_LOG_WINDOW = 1024 * 1024
_MAX_LINE = 16 * 1024
_MAX_SEARCHED = 1024
"""Bytes of a line that patterns get to see: some take long on a line of many kilobytes."""
_MAX_PROGRESS = 200
_REQUEST_LIMIT = 5.0
"""Seconds that a health check gets at first; where they were not enough it gets more, up to its own limit."""
_FIRST_PATIENCE = 30.0
"""Seconds that the first request gets which a server has to compute something for."""
_MISPLACED_LIMIT = 3.0
"""Seconds that a server gets to listen also where it is asked, once it listens somewhere else on its port."""
_MAX_PLACES = 3
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
        stalled: Whether its download has made no progress for too long.
        own_probe: Whether the user has said what is asked.
        status: The last HTTP status of its health check, if there was one.
    """

    problem: str
    exit: Exit | None = None
    timed_out: bool = False
    foreign_listener: bool = False
    misplaced: bool = False
    stalled: bool = False
    own_probe: bool = False
    status: int | None = None


@dataclass(frozen=True)
class ReadinessCheck:
    """What to wait for.

    Attributes:
        probes: What must hold when the server is ready; asked in this order, and the next one when one holds.
        startup_timeout: Limit in seconds, downloads not counted.
        download_timeout: Limit of the downloads, in seconds.
        request_timeout: Limit of one health request, in seconds.
        fatal: A log line that matches one of these means that the server will not become ready.
        downloading: While the newest log line matches one of these, weights are being downloaded.
        phases: Log lines that tell what the server is doing.
        on_wait: Called some four times a second with the newest phase, or None while the log tells of none.
        owns_port: Whether the listener on the port is the server's own; None if nobody can tell.
        elsewhere: Where it listens on its port, in words, if that is not where it is asked; else None.
        listens_at: Where its processes listen, as HOST:PORT; of interest when nobody was where it is asked.
        cancelled: Whether nobody wants the server any more.
        own_probes: Whether the user has configured the probes.
        stall_timeout: A download whose progress stands still for so many seconds has failed; None allows that.
    """

    probes: Sequence[Probe]
    startup_timeout: float
    download_timeout: float
    request_timeout: float
    fatal: Sequence[re.Pattern[bytes]] = ()
    downloading: Sequence[re.Pattern[bytes]] = ()
    phases: Sequence[Phase] = ()
    on_wait: Callable[[str | None], None] = lambda phase: None
    owns_port: Callable[[], bool | None] = lambda: True
    elsewhere: Callable[[], str | None] = lambda: None
    listens_at: Callable[[], Sequence[str]] = tuple
    cancelled: Callable[[], bool] = lambda: False
    stall_timeout: float | None = None
    own_probes: bool = False


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
    round_of = _Round(check.probes, check.request_timeout)
    last: _Seen | None = None
    while True:
        if process.exit is not None:
            return NotReady(_early_end(process.exit), process.exit)
        if check.cancelled():
            return NotReady("is not wanted any more")
        left = watch.time_left()
        seen = round_of.ask(
            left,
            pointless=lambda: process.exit is not None or check.cancelled() or watch.ends_the_wait(time.monotonic()),
        )
        answer = seen.answer
        now = time.monotonic()
        if last is None or seen.complete or last.probe is not seen.probe or last.answer.refused:
            # Not where the time was up before the server had its time to answer.
            last = seen
        if answer.ok:
            owned = _confirm_owner(check, process)
            if owned is not None:
                return owned
            return Ready()
        watch.look(now)
        if watch.fatal_line and process.wait_exit(_FATAL_GRACE) is None:
            return NotReady("reported a fatal error and did not end")
        stalled = watch.stalled(now)
        if stalled is not None:
            return NotReady(stalled, timed_out=True, stalled=True)
        place = watch.misplaced(answer, now)
        if place is not None:
            return NotReady(f"listens on {place} only, and is asked at {seen.probe.subject}", misplaced=True)
        if watch.time_left() <= 0:
            return NotReady(
                watch.timeout_text(last), timed_out=True, status=last.answer.status, own_probe=check.own_probes
            )
        # Short steps at first, for quick servers; a share of the elapsed time later, for cheap waiting. A closed
        # port is asked more often than a server that has to answer each time, and writes it down.
        if answer.refused or (answer.status is None and seen.probe.quick):
            process.wait_exit(min(max(0.005, (now - begin) * 0.002), 0.25))
        else:
            _wait_for_news(check, process, watch, min(max(0.005, (now - begin) * 0.05), 1.0))


def _early_end(how: Exit | None) -> str:
    text = f"{how}, before it was ready"
    if how is None or how.background is None:
        return text
    return f"{text}: it went into the background as process {how.background}: run it in the foreground"


@dataclass(frozen=True)
class _Seen:
    """The answer to a probe, and whether it had its full time."""

    probe: Probe
    answer: Answer
    complete: bool


class _Round:
    """Asks the probes in turn, until one does not hold."""

    def __init__(self, probes: Sequence[Probe], most: float) -> None:
        self._probes = list(probes)
        self._most = most
        self._held: set[int] = set()
        self._patience = [
            max(most, _FIRST_PATIENCE) if probe.once and not probe.quick else min(most, _REQUEST_LIMIT)
            for probe in self._probes
        ]

    def ask(self, left: float, pointless: Callable[[], bool]) -> _Seen:
        """Return what the first probe sees that does not hold, else the last one.

        Args:
            left: Seconds that are left of the whole start.
            pointless: Whether the answer is of no use any more.
        """
        seen: _Seen | None = None
        for index, probe in enumerate(self._probes):
            if index in self._held and seen is not None:
                continue
            if index in self._held:
                seen = _Seen(probe, Answer(None, "held before", 0.0, good=True), True)
                continue
            begin = time.monotonic()
            whole = self._patience[index]
            limit = max(0.01, min(whole, left))
            answer = probe.look(limit, pointless)
            in_time = answer.seconds < limit
            seen = _Seen(probe, answer, limit == whole or in_time)
            if not answer.ok:
                if not in_time:
                    self._give_more_time(index)
                return seen
            left -= time.monotonic() - begin
            if probe.once:
                self._held.add(index)
        assert seen is not None
        return seen

    def _give_more_time(self, index: int) -> None:
        """Let the next answer take twice as long; one that is asked for in heartbeats no longer than there."""
        longer = 2 * self._patience[index]
        once = self._probes[index].once
        self._patience[index] = longer if once else min(longer, max(self._most, self._patience[index]))


def _wait_for_news(check: ReadinessCheck, process: ServerProcess, watch: _LogWatch, seconds: float) -> None:
    """Wait so long, or until the server ends or writes something by itself."""
    begin = time.monotonic()
    if process.wait_exit(min(seconds, _ECHO)) is not None:
        return
    size = watch.log.size()
    while (left := begin + seconds - time.monotonic()) > 0 and watch.log.size() == size and not check.cancelled():
        if process.wait_exit(min(left, _TICK)) is not None:
            return
        watch.look(time.monotonic())


def _confirm_owner(check: ReadinessCheck, process: ServerProcess) -> NotReady | None:
    # A server that could not bind ends soon: its own reason is better than ours.
    if check.owns_port() is not False:
        return None
    if process.wait_exit(0.5) is not None:
        # One that went into the background answers itself.
        foreign = process.exit is None or process.exit.background is None
        return NotReady(_early_end(process.exit), process.exit, foreign_listener=foreign)
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
        self.progress = ""
        self.progress_at = begin
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
        self.fatal_line |= any(pattern.search(line) for line in lines for pattern in self.check.fatal)
        if lines:
            self.downloading = any(pattern.search(lines[-1]) for pattern in self.check.downloading)
            if self.downloading:
                self._note_progress(lines[-1])
            self.phase = newest_phase(lines, self.check.phases) or self.phase

    def ends_the_wait(self, now: float) -> bool:
        """Look, and return whether the log says that no answer is worth waiting for."""
        self.look(now)
        return self.fatal_line or self.stalled(now) is not None

    def time_left(self) -> float:
        if self.downloading:
            return self.check.download_timeout - self.download_seconds
        return self.begin + self.check.startup_timeout + self.download_seconds - time.monotonic()

    def stalled(self, now: float) -> str | None:
        """Return what to say of a download that has made no progress for too long, or None."""
        limit = self.check.stall_timeout
        if limit is None or not self.downloading or now - self.progress_at < limit:
            return None
        return f"downloads and made no progress for {limit:g} s (download_stall_timeout); last: {self.progress}"

    def _note_progress(self, line: bytes) -> None:
        # The time that a progress bar shows goes on also when nothing comes.
        progress = re.sub(rb"\[[^\]]*\]?\s*$", b"", line).decode("utf-8", "replace").strip()[-_MAX_PROGRESS:]
        if progress != self.progress:
            self.progress, self.progress_at = progress, time.monotonic()

    def timeout_text(self, seen: _Seen) -> str:
        if self.downloading:
            return f"was still downloading after {self.check.download_timeout:g} s (download_timeout)"
        last = f"; its log was last at: {self.phase}" if self.phase else ""
        told = seen.probe.told(seen.answer)
        places = self.check.listens_at() if seen.answer.refused else ()
        if places:
            told += f"; it listens on {' and '.join(places[:_MAX_PLACES])}"
        return f"was not ready after {self.check.startup_timeout:g} s (startup_timeout): {told}{last}"
