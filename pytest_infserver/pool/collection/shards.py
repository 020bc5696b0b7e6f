"""Tests dealt to the jobs of a CI, so that each server is started in one of them and all end at about the same time."""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pytest

from pytest_infserver.pool.collection.durations import Durations
from pytest_infserver.pool.collection.grouping import Unit, pieces_of

_START = 60.0
"""Seconds that a start is taken to need while none has been measured."""
_TEST = 3.0
"""The same for a test."""
_LEAST = 0.001
"""Seconds that each measured test counts for, however short it was."""
_FEW = 12
"""Below so many tests of a server that were not measured its start decides, not their number."""


@dataclass(frozen=True)
class Shard:
    """One of the jobs, counted from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Return the shard that a text such as ``1/3`` names.

    Raises:
        ValueError: It names none.
    """
    found = re.fullmatch(r"\s*(\d{1,4})\s*/\s*(\d{1,4})\s*", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(text)
    return Shard(int(found[1]), int(found[2]))


def share_of(
    items: Sequence[pytest.Item],
    servers_of: Callable[[pytest.Item], tuple[str, ...]],
    shard: Shard,
    durations: Durations,
) -> set[pytest.Item]:
    """Return which tests one job runs; the same for the same tests, whatever their order.

    Args:
        items: The tests of all jobs.
        servers_of: Returns the servers that are started for a test.
        shard: Which job this is.
        durations: What tests and starts took the last time.
    """
    jobs = deal(pieces_of(items, servers_of), shard.count, durations)
    return {test for unit in jobs[shard.number - 1] for test in unit.tests}


def deal(units: Iterable[Unit], count: int, durations: Durations) -> list[list[Unit]]:
    """Return the tests of each of so many jobs.

    The same tests are dealt in the same way in each job, whatever their order. A server's tests stay together unless
    they take so much longer than a job's share that another start pays; what needs several servers stays with the
    tests of each of them. Then come the tests without a server, to where room is left. A new test moves none that was
    measured.

    Args:
        units: Tests that stay together, each with all servers that it starts.
        count: How many jobs there are.
        durations: What tests and starts took the last time; the rest is guessed.
    """
    ordered = sorted(units, key=lambda unit: (unit.servers, unit.tests[0].nodeid))
    costs = _Costs(ordered, durations)
    bundles, others = _bundles(ordered), [unit for unit in ordered if not unit.servers]
    fair = costs.all_tests / count
    jobs = [_Job() for _ in range(count)]
    parts = [part for bundle in bundles for part in _cut(bundle, fair, count, costs)]
    # What was measured comes first, so that nothing new can move it.
    _deal_parts([part for part in parts if costs.measured(part)], jobs, costs)
    if costs.measured(others):
        _fill_up(others, jobs, costs)
    _deal_parts([part for part in parts if not costs.measured(part)], jobs, costs)
    if not costs.measured(others):
        _fill_up(others, jobs, costs)
    return [job.units for job in jobs]


class _Job:
    """What one job has got so far, and the seconds that it is going to take."""

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.parts = 0
        self.seconds = 0.0

    def take(self, part: Sequence[Unit], costs: _Costs) -> None:
        self.units += part
        self.parts += any(unit.servers for unit in part)
        self.seconds += costs.tests(part) + costs.starts(part)


def _deal_parts(parts: Iterable[Sequence[Unit]], jobs: Sequence[_Job], costs: _Costs) -> None:
    """Give each part, the longest ones first, to the job that has least to do."""
    for part in sorted(parts, key=costs.rank):
        # While nothing is measured small differences are chance, and a new test must not move others by one.
        slack = 0.0 if costs.measured(part) else costs.start / 2
        least = min(job.seconds for job in jobs)
        near = [job for job in jobs if job.seconds <= least + slack]
        min(near, key=lambda job: job.parts).take(part, costs)


def _fill_up(units: Sequence[Unit], jobs: Sequence[_Job], costs: _Costs) -> None:
    """Give tests without a server to where room is left."""
    room = _room([job.seconds for job in jobs], costs.tests(units))
    for job, share in zip(jobs, _spread(units, room, costs), strict=True):
        job.take(share, costs)


class _Costs:
    """How long tests and starts are going to take."""

    def __init__(self, units: Sequence[Unit], durations: Durations) -> None:
        self._durations = durations
        known = [seconds for unit in units for seconds in self._known(unit)]
        self._test = _mean(known, _TEST)
        self.start = _mean(list(durations.starts.values()), _START)
        self.all_tests = sum(known) or self.tests(units)

    def tests(self, units: Sequence[Unit]) -> float:
        """Return the seconds of some tests, of which new ones count nothing unless all are new."""
        return sum(self.each(units))

    def each(self, units: Sequence[Unit]) -> list[float]:
        """Return the same for each unit."""
        if self.measured(units):
            return [sum(self._known(unit)) for unit in units]
        return [self._test * len(unit.tests) for unit in units]

    def starts(self, units: Iterable[Unit]) -> float:
        """Return the seconds in which the servers of some tests start."""
        names = {name for unit in units for name in unit.servers}
        return sum(self._durations.starts.get(name, self.start) for name in names)

    def measured(self, units: Iterable[Unit]) -> bool:
        """Return whether any of the tests was measured."""
        return any(map(self._known, units))

    def rank(self, part: Sequence[Unit]) -> float:
        """Return by what parts are dealt: the longest ones first, or the many tests first of servers with many."""
        if self.measured(part):
            return -self.tests(part)
        number = sum(len(unit.tests) for unit in part)
        return 0 if number < _FEW else -math.floor(math.log(number / _FEW, 4)) - 1

    def _known(self, unit: Unit) -> list[float]:
        known = self._durations.tests
        return [max(known[test.nodeid], _LEAST) for test in unit.tests if test.nodeid in known]


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _bundles(units: Iterable[Unit]) -> list[list[Unit]]:
    """Return the units that start servers; those that have one in common together."""
    same: dict[tuple[str, ...], list[Unit]] = {}
    for unit in units:
        if unit.servers:
            same.setdefault(unit.servers, []).append(unit)
    bundles: list[tuple[set[str], list[Unit]]] = []
    for servers, members in same.items():
        near = [bundle for bundle in bundles if not bundle[0].isdisjoint(servers)]
        bundles = [bundle for bundle in bundles if bundle[0].isdisjoint(servers)]
        names = set(servers).union(*(bundle[0] for bundle in near))
        bundles.append((names, [unit for bundle in near for unit in bundle[1]] + members))
    return [members for _, members in bundles]


def _cut(bundle: list[Unit], fair: float, count: int, costs: _Costs) -> list[list[Unit]]:
    """Return a bundle as it is, or in parts if it is so long that it pays to start its servers in several jobs."""
    seconds = costs.tests(bundle)
    if seconds - fair <= costs.starts(bundle):
        return [bundle]
    number = min(count, math.ceil(seconds / fair))
    return [part for part in _spread(bundle, [seconds / number] * number, costs) if part]


def _room(loads: Sequence[float], seconds: float) -> list[float]:
    """Return how much of so many seconds goes to each job, so that all come as close to each other as can be."""
    ordered = sorted(loads)
    filled = [(seconds + sum(ordered[:number])) / number for number in range(1, len(ordered) + 1)]
    # The more jobs share, the lower it stands, until it would stand below the next one's load.
    level = min(filled)
    return [max(0.0, level - load) for load in loads]


def _spread(units: Sequence[Unit], sizes: Sequence[float], costs: _Costs) -> list[list[Unit]]:
    """Return units in consecutive parts of about so many seconds each."""
    parts: list[list[Unit]] = [[] for _ in sizes]
    ends = list(itertools.accumulate(sizes))
    done = 0.0
    for unit, seconds in zip(units, costs.each(units), strict=True):
        # What lies across a border belongs to where the most of it lies; what takes no time, to what is before it.
        parts[min(bisect.bisect_left(ends, done + seconds / 2), len(parts) - 1)].append(unit)
        done += seconds
    return parts
