"""In which order tests run: those of the same servers together, those without one while a server starts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

Test = TypeVar("Test")
Group = tuple[str, ...]
"""The servers that tests have in common; () for those that need none."""


class Order(Generic[Test]):
    """The tests that have not been given out yet."""

    def __init__(self, tests: Iterable[Test], servers_of: Callable[[Test], Group]) -> None:
        """Sort tests into groups, which keep the order of their first tests.

        Args:
            tests: The tests.
            servers_of: Returns the servers that a test needs.
        """
        self._groups: dict[Group, deque[Test]] = {}
        for test in tests:
            self._groups.setdefault(servers_of(test), deque()).append(test)

    def __len__(self) -> int:
        """Return how many tests are left."""
        return sum(map(len, self._groups.values()))

    def pop(self, last: Group, is_ready: Callable[[str], bool], taken: Sequence[Group] = ()) -> tuple[Test, Group]:
        """Take out the test that is to run next, and return it with its servers.

        Args:
            last: The servers of the test before it.
            is_ready: Tells whether a server runs now.
            taken: The servers of what others run at the same time.
        """
        group = self._choose(last, is_ready, taken)
        tests = self._groups[group]
        test = tests.popleft()
        if not tests:
            del self._groups[group]
        return test, group

    def _choose(self, last: Group, is_ready: Callable[[str], bool], taken: Sequence[Group]) -> Group:
        def runs_now(group: Group) -> bool:
            return bool(group) and all(map(is_ready, group))

        if last in self._groups and runs_now(last):
            return last
        ready = [group for group in self._groups if runs_now(group)]
        if ready:
            # Where nobody is yet, so that all servers have something to do.
            return min(ready, key=taken.count)
        # What needs no server fills the time until one is ready.
        if () in self._groups:
            return ()
        return last if last in self._groups else next(iter(self._groups))


class Rearranged(Generic[Test]):
    """A list of tests that somebody runs from its beginning, rearranged a little ahead of where that is."""

    def __init__(self, tests: list[Test], servers_of: Callable[[Test], Group]) -> None:
        """Begin with the list as it is.

        Args:
            tests: The list; its last part changes.
            servers_of: Returns the servers that a test needs.
        """
        self._tests = tests
        self._servers_of = servers_of
        self._order = Order(tests[2:], servers_of)
        self._at = 0

    def begin(self, test: Test, is_ready: Callable[[str], bool]) -> None:
        """Note that a test begins, and decide which one comes after the next.

        The next one itself stands: what the fixtures of the two have in common is kept for it.
        """
        tests, at = self._tests, self._at
        if at >= len(tests) or tests[at] is not test:
            # Somebody runs them in another way.
            return
        self._at += 1
        if at + 2 < len(tests) and len(self._order):
            chosen, _ = self._order.pop(self._servers_of(tests[at + 1]), is_ready)
            tests.insert(at + 2, tests.pop(tests.index(chosen, at + 2)))
