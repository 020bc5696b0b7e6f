"""Watches a ready server: asks for its health now and then and knows when it hangs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from pytest_infserver.launcher.http_probe import Answer


class Heartbeat:
    """A thread that checks one server.

    Attributes:
        last: The last answer, or None.
        latencies: Seconds of the last good answers.
    """

    def __init__(
        self,
        check: Callable[[], Answer],
        *,
        interval: float,
        hang_timeout: float,
        on_hang: Callable[[float], None],
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepare a heartbeat; `start` starts it.

        Args:
            check: Asks the server once.
            interval: Seconds between two checks.
            hang_timeout: Seconds of failing checks after which ``on_hang`` is called, once.
            on_hang: Called in the heartbeat's thread with the seconds since the first failing check began.
            is_busy: Tells whether the server has a reason to be slow, so that it is not asked.
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
        self.last: Answer | None = None
        self.latencies: deque[float] = deque(maxlen=10_000)
        self._thread = threading.Thread(target=self._run, name="infserver-heartbeat", daemon=True)

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
        except Exception as error:
            # A backend's own get_health_endpoint() must not end the watch.
            return Answer(None, f"could not be asked: {error!r}", 0.0)

    def _note(self, answer: Answer, begin: float) -> None:
        self.last = answer
        now = time.monotonic()
        if answer.ok:
            self._failing_since = None
            self.latencies.append(answer.seconds)
            return
        if self._failing_since is None:
            self._failing_since = begin
        if now - self._failing_since > self._hang_timeout:
            self._ended.set()
            self._on_hang(now - self._failing_since)
