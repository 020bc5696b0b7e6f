"""Puts tests that overlap in time into rows, so that in each row one ends before the next begins."""

from __future__ import annotations

import heapq
from collections.abc import Iterable


def rows(spans: Iterable[tuple[int, int]]) -> list[int]:
    """Return the row of each span of time: the lowest one that is free.

    Args:
        spans: Begin and end, in any unit, in the order of their begins. An end may be the next one's begin.
    """
    free: list[int] = []
    busy: list[tuple[int, int]] = []
    chosen = []
    count = 0
    for begin, end in spans:
        while busy and busy[0][0] <= begin:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            row = heapq.heappop(free)
        else:
            row, count = count, count + 1
        heapq.heappush(busy, (max(begin, end), row))
        chosen.append(row)
    return chosen
