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

    def next_group(self, last: Group, is_ready: Callable[[str], bool], taken: Sequence[Group] = ()) -> Group:
        """Return the servers of the test that `pop` would take out."""
        return self._choose(last, is_ready, taken)

    def pop(self, last: Group, is_ready: Callable[[str], bool], taken: Sequence[Group] = ()) -> tuple[Test, Group]:
        """Take out the test that is to run next, and return it with its servers.

        Args:
            last: The servers of the test before it.
            is_ready: Returns whether a server runs now.
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
    """A list of tests that somebody runs from its beginning, whose units are rearranged a little ahead of that."""

    def __init__(self, tests: list[Test], units: Sequence[tuple[Group, Sequence[Test]]]) -> None:
        """Begin with the list as it is.

        Args:
            tests: The list; its last part changes.
            units: What stays together, in the order of the list: the servers that it needs, and its tests.
        """
        self._tests = tests
        self._units = units
        self._at = 0
        self._last: Group = ()
        settled = self._settled = 0
        # The first two tests are known to whoever runs them before anything is ready.
        while self._settled < 2 and settled < len(units):
            self._last, unit = units[settled]
            self._settled += len(unit)
            settled += 1
        self._left = list(range(settled, len(units)))
        self._order = Order(self._left, lambda number: units[number][0])

    def begin(self, test: Test, is_ready: Callable[[str], bool]) -> None:
        """Note that a test begins, and decide which unit follows where the one of the next test ends with it.

        The next test itself stands: what the fixtures of the two have in common is kept for it.
        """
        if self._at >= len(self._tests) or self._tests[self._at] is not test:
            # Somebody runs them in another way.
            return
        self._at += 1
        while self._left and self._settled < self._at + 2:
            first = self._left[0]
            number, self._last = self._order.pop(self._last, is_ready)
            self._left.remove(number)
            if number != first:
                following = [number, *self._left]
                self._tests[self._settled :] = [test for each in following for test in self._units[each][1]]
            self._settled += len(self._units[number][1])
