"""When code of the user's may run beside pytest's main thread: not while a test may have patched what it uses."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_PATIENCE = 10.0
"""Seconds after which a test no longer waits for code of the user's that does not come to an end."""


class SafeMoments:
    """Lets other threads run code of the user's between tests, and while the main thread waits for servers."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._in_test = False
        self._waiting = 0
        self._running = 0
        self._given_up = 0
        self._own = threading.local()

    @property
    def is_in_moment(self) -> bool:
        """Return whether this thread runs code of the user's in a `moment`."""
        return getattr(self._own, "depth", 0) > 0

    @contextlib.contextmanager
    def test(self) -> Iterator[None]:
        """Run a test; who has waited for the end of the last one goes first."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        """Wait for something in the main thread, perhaps in the middle of a test: nothing is patched meanwhile."""
        inside = self._in_test
        if inside:
            self._leave()
        try:
            yield
        finally:
            if inside:
                self._enter()

    @contextlib.contextmanager
    def moment(self) -> Iterator[None]:
        """Run code of the user's in another thread as soon as that is safe."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._in_test)
                self._running += 1
            finally:
                self._waiting -= 1
        self._own.depth = getattr(self._own, "depth", 0) + 1
        try:
            yield
        finally:
            self._own.depth -= 1
            with self._changed:
                self._running -= 1
                self._given_up = min(self._given_up, self._running)
                self._changed.notify_all()

    def _enter(self) -> None:
        with self._changed:
            if not self._is_quiet() and not self._changed.wait_for(self._is_quiet, _PATIENCE):
                # Once, and not again at each test.
                self._given_up = self._running
            self._in_test = True

    def _is_quiet(self) -> bool:
        return not self._waiting and self._running <= self._given_up

    def _leave(self) -> None:
        with self._changed:
            self._in_test = False
            self._changed.notify_all()
