"""Measured values over time, no more of them than one can draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Value = TypeVar("Value")

MAX_POINTS = 600


class Series(Generic[Value]):
    """Grows until it is full; then each two neighbours become one, and so on."""

    def __init__(self, merge: Callable[[Value, Value], Value], limit: int = MAX_POINTS) -> None:
        """Begin with nothing.

        Args:
            merge: Makes one value of two.
            limit: How many points it has at most.
        """
        self._merge = merge
        self._limit = limit
        self._points: list[tuple[float, Value]] = []
        self._stride = 1
        self._pending: tuple[float, Value] | None = None
        self._merged = 0

    def add(self, time: float, value: Value) -> None:
        """Add a value that was measured after the others."""
        if self._pending is not None:
            time, value = self._pending[0], self._merge(self._pending[1], value)
        self._merged += 1
        if self._merged < self._stride:
            self._pending = time, value
            return
        self._pending, self._merged = None, 0
        self._points.append((time, value))
        if len(self._points) >= self._limit:
            self._points = halved(self._points, self._merge)
            self._stride *= 2

    @property
    def points(self) -> list[tuple[float, Value]]:
        """Time and value, in order."""
        return [*self._points, self._pending] if self._pending is not None else list(self._points)


def halved(points: Sequence[tuple[float, Value]], merge: Callable[[Value, Value], Value]) -> list[tuple[float, Value]]:
    """Return half as many points: of each two the earlier time, and their values merged."""
    pairs = zip(points[::2], points[1::2], strict=False)
    rest = points[-1:] if len(points) % 2 else []
    return [(first[0], merge(first[1], second[1])) for first, second in pairs] + list(rest)
