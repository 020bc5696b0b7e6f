"""When requests are due."""

from __future__ import annotations

import itertools
import statistics

import pytest

from pytest_infserver.load.arrivals import arrival_times, user_starts
from pytest_infserver.load.workload import make_workload


def test_a_constant_rate() -> None:
    assert list(arrival_times(make_workload(rate=4, requests=5, arrivals="constant"))) == [0, 0.25, 0.5, 0.75, 1.0]
    assert len(list(arrival_times(make_workload(rate=4, duration=2.0, arrivals="constant")))) == 8


@pytest.mark.parametrize("seed", range(5))
def test_poisson_has_the_rate_and_the_spread(seed: int) -> None:
    load = make_workload(rate=50, requests=4000, seed=seed)
    times = list(arrival_times(load))
    assert times == list(arrival_times(load))
    assert times == sorted(times)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert statistics.fmean(gaps) == pytest.approx(1 / 50, rel=0.08)
    # Of an exponential distribution both are the same.
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.1)


def test_a_ramp_grows_evenly_to_the_rate() -> None:
    times = list(arrival_times(make_workload(rate=100, duration=20.0, ramp=10.0, arrivals="constant")))
    assert len([one for one in times if one < 10]) == pytest.approx(500, abs=2)
    assert len([one for one in times if one < 5]) == pytest.approx(125, abs=2)
    assert len([one for one in times if one >= 10]) == pytest.approx(1000, abs=2)


def test_users_begin_one_after_another() -> None:
    assert user_starts(make_workload(concurrency=4, ramp=2.0)) == [0, 0.5, 1.0, 1.5]
    assert user_starts(make_workload(concurrency=2)) == [0, 0]
