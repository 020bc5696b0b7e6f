"""The tests of a run: which servers each is going to use, and which has used a server last."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence


class PlannedTests:
    """The tests that are going to run, and the last uses of the servers; guarded by the pool's lock.

    Attributes:
        tests: Node id to the servers that the test needs.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.tests: dict[str, tuple[str, ...]] = {}
        self._left: Counter[str] = Counter()
        self._users: dict[str, str] = {}
        self._used: dict[str, float] = {}

    def add(self, test: str, names: Sequence[str]) -> None:
        """Note one run of a test, and the servers that it needs."""
        self.tests[test] = tuple(names)
        self._left[test] += 1

    def note_done(self, test: str | None, done: Callable[[str], object]) -> None:
        """Note that one run of a planned test is over.

        Args:
            test: The test; None for none.
            done: Gets the servers that it has needed.
        """
        if test is not None and self._left[test] > 0:
            self._left[test] -= 1
            for name in self.tests[test]:
                done(name)

    def used_by(self, test: str, names: Iterable[str]) -> None:
        """Note which test uses servers, or has used them."""
        self._users.update(dict.fromkeys(names, test))

    def used_until(self, names: Iterable[str], now: float) -> None:
        """Note when servers were given back."""
        self._used.update(dict.fromkeys(names, now))

    def user(self, name: str) -> str | None:
        """Return the test that has used a server last, or None."""
        return self._users.get(name)

    def unused_for(self, name: str) -> float:
        """Return how many seconds ago a server was given back; 0 if nobody has used it."""
        now = time.monotonic()
        return now - self._used.get(name, now)
