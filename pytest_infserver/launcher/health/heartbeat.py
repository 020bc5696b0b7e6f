"""Watches a ready server: asks for its health now and then and knows when it hangs."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from pytest_infserver.system.http.probe import Answer

Samples: TypeAlias = "deque[tuple[float, float | None]]"
"""When a server was checked, in seconds since the epoch, and in how many seconds it answered; None if it did not."""
MAX_SAMPLES = 10_000


@dataclass(frozen=True)
class Pulse:
    """What a heartbeat knows at one moment.

    Attributes:
        last: The last answer, or None.
        age: Seconds since that came.
        good_age: Seconds since the last good answer came; None if there was none.
        failing_for: Seconds since the first of the failing checks began; None if the last one was good.
        interval: Seconds between two checks.
        hang_timeout: Seconds of failing checks after which the server counts as hung.
        still: Whether nobody asks now, as under a debugger or a profiler.
    """

    last: Answer | None
    age: float | None
    good_age: float | None
    failing_for: float | None
    interval: float
    hang_timeout: float
    still: bool = False

    def later(self, seconds: float) -> Pulse:
        """Return what is still known some seconds later."""
        moments = {name: getattr(self, name) for name in ("age", "good_age", "failing_for")}
        shifted = {name: moment + seconds for name, moment in moments.items() if moment is not None}
        return dataclasses.replace(self, **shifted)


class Heartbeat:
    """A thread that checks one server.

    Attributes:
        last: The last answer, or None.
        samples: What it has seen, the last 10,000 of it.
    """

    def __init__(
        self,
        check: Callable[[], Answer],
        *,
        interval: float,
        hang_timeout: float,
        on_hang: Callable[[float], None],
        is_busy: Callable[[], bool] = lambda: False,
        samples: Samples | None = None,
    ) -> None:
        """Prepare a heartbeat; `start` starts it.

        Args:
            check: Asks the server once.
            interval: Seconds between two checks.
            hang_timeout: Seconds of failing checks after which ``on_hang`` is called, once.
            on_hang: Called in the heartbeat's thread with the seconds since the first failing check began.
            is_busy: Returns whether the server has a reason to be slow, so that it is not asked.
            samples: To be continued, if it was watched before.
        """
        self._check = check
        self._interval = interval
        self._hang_timeout = hang_timeout
        self._on_hang = on_hang
        self._is_busy = is_busy
        self._ended = threading.Event()
        self._paused = 0
        self._failing_since: float | None = None
        self._pause_changed = 0.0
        self._last_at: float | None = None
        self._good_at: float | None = None
        self.last: Answer | None = None
        self.samples: Samples = deque(maxlen=MAX_SAMPLES) if samples is None else samples
        self._thread = threading.Thread(target=self._run, name="infserver-heartbeat", daemon=True)

    def pulse(self) -> Pulse:
        """Return what is known now; nobody is asked."""
        now = time.monotonic()

        def since(moment: float | None) -> float | None:
            return None if moment is None else now - moment

        still = self._paused > 0 or self._is_busy()
        return Pulse(
            last=self.last,
            age=since(self._last_at),
            good_age=since(self._good_at),
            failing_for=since(self._failing_since),
            interval=self._interval,
            hang_timeout=self._hang_timeout,
            still=still,
        )

    def start(self) -> None:
        """Begin to check."""
        self._thread.start()

    def end(self) -> None:
        """Stop checking; a check under way is not waited for."""
        self._ended.set()

    def pause(self) -> None:
        """Let time stand still, as under a debugger or a profiler; may be nested."""
        self._paused += 1
        self._pause_changed = time.monotonic()

    def resume(self) -> None:
        """Undo one `pause`."""
        self._paused = max(0, self._paused - 1)
        self._pause_changed = time.monotonic()
        self._failing_since = None

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            if self._paused or self._is_busy():
                self._failing_since = None
                continue
            begin = time.monotonic()
            answer = self._checked()
            if self._paused or self._pause_changed > begin or self._ended.is_set():
                continue
            self._note(answer, begin)

    def _checked(self) -> Answer:
        try:
            return self._check()
        except BaseException as error:
            # A backend's own get_health_endpoint() must not end the watch, whatever it raises.
            return Answer(None, f"could not be asked: {str(error) or repr(error)}".partition("\n")[0], 0.0)

    def _note(self, answer: Answer, begin: float) -> None:
        self.last = answer
        now = self._last_at = time.monotonic()
        self.samples.append((time.time() - (now - begin), answer.seconds if answer.ok else None))
        if answer.ok:
            self._good_at = now
            self._failing_since = None
            return
        if self._failing_since is None:
            self._failing_since = begin
        if now - self._failing_since > self._hang_timeout:
            self._ended.set()
            self._on_hang(now - self._failing_since)
