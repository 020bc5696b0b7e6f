"""A plugin of pytest that notes in which order the locks of this package are taken, and fails the run on a circle.

Two threads that take two locks in opposite orders wait for each other for ever, if they ever meet. That they have not
met in a run of tests proves nothing; that the orders never differ does. Use with ``-p lock_order``.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

_PACKAGE = "/pytest_infserver/"
_real_lock, _real_rlock = threading.Lock, threading.RLock
_held = threading.local()
_orders: dict[tuple[str, str], str] = {}
"""(The lock that was held, the one that was taken) to where that was."""


class Watched:
    """A lock that notes which ones its thread holds when it is taken."""

    def __init__(self, lock: Any, name: str) -> None:
        self._lock, self._name = lock, name

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if blocking and timeout < 0:
            # Whoever waits with a limit, or not at all, waits for nobody for ever.
            self._note()
        taken: bool = self._lock.acquire(blocking, timeout)
        if taken:
            _stack().append(self)
        return taken

    def release(self) -> None:
        _forget(self)
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def locked(self) -> bool:
        return bool(self._lock.locked())

    # What `threading.Condition` asks of a lock.

    def _is_owned(self) -> bool:
        return self in _stack()

    def _release_save(self) -> tuple[int, Any]:
        count = _stack().count(self)
        for _ in range(count):
            _forget(self)
        return count, self._lock._release_save() if hasattr(self._lock, "_release_save") else self._lock.release()

    def _acquire_restore(self, state: tuple[int, Any]) -> None:
        count, inner = state
        self._note()
        if hasattr(self._lock, "_acquire_restore"):
            self._lock._acquire_restore(inner)
        else:
            self._lock.acquire()
        _stack().extend([self] * count)

    def _at_fork_reinit(self) -> None:
        self._lock._at_fork_reinit()

    def _note(self) -> None:
        held = _stack()
        if self in held:
            return
        for other in held:
            _orders.setdefault((other._name, self._name), _place(sys._getframe(2)))


def _stack() -> list[Watched]:
    if not hasattr(_held, "locks"):
        _held.locks = []
    found: list[Watched] = _held.locks
    return found


def _forget(lock: Watched) -> None:
    held = _stack()
    for index in range(len(held) - 1, -1, -1):
        if held[index] is lock:
            del held[index]
            return


def _place(frame: FrameType | None) -> str:
    """Return the innermost line of this package that a frame was reached from, or ""."""
    while frame is not None:
        name = frame.f_code.co_filename
        if _PACKAGE in name:
            return f"{name.rpartition(_PACKAGE)[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _watching(real: Callable[[], Any]) -> Callable[[], Any]:
    def make() -> Any:
        frame: FrameType | None = sys._getframe(1)
        if frame is not None and frame.f_code.co_filename == threading.__file__:
            # A Condition's own lock, or that of an Event, which nobody holds while taking another one.
            if frame.f_code.co_qualname.startswith("Condition") if sys.version_info >= (3, 11) else True:
                frame = frame.f_back
        name = "" if frame is None else frame.f_code.co_filename
        if frame is None or _PACKAGE not in name:
            return real()
        return Watched(real(), f"{name.rpartition(_PACKAGE)[2]}:{frame.f_lineno}")

    return make


def circles() -> Iterator[list[str]]:
    """Yield the circles among the orders that were seen, each as the locks on it."""
    after: dict[str, set[str]] = {}
    for first, second in _orders:
        after.setdefault(first, set()).add(second)
    for start in after:
        path, seen = [start], {start}
        yield from _walk(start, path, seen, after)


def _walk(start: str, path: list[str], seen: set[str], after: dict[str, set[str]]) -> Iterator[list[str]]:
    for following in after.get(path[-1], ()):
        if following == start:
            yield [*path, start]
        elif following not in seen and following > start:
            # Each circle once: from the first of its names.
            seen.add(following)
            yield from _walk(start, [*path, following], seen, after)


def pytest_configure(config: pytest.Config) -> None:
    threading.Lock, threading.RLock = _watching(_real_lock), _watching(_real_rlock)  # type: ignore[misc]


def pytest_sessionfinish(session: pytest.Session) -> None:
    found = list(circles())
    for circle in found:
        steps = [f"{first} -> {second} at {_orders[first, second]}" for first, second in itertools.pairwise(circle)]
        print("\nlocks in a circle:", "; ".join(steps))
    print(f"\norders of locks: {len(_orders)}")
    if found:
        session.exitstatus = 1
