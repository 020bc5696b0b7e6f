"""When requests are sent: pure functions of a workload."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

from pytest_infserver.load.workload import Workload


def arrival_times(load: Workload) -> Iterator[float]:
    """Yield when the requests of an open loop are due, in seconds from its begin on; as many as there are to be."""
    assert load.rate is not None
    chance = random.Random(f"arrivals {load.seed}")
    due, waited = 0.0, 0.0
    for number in itertools.count():
        # Both in units of expected requests, which the ramp stretches in time.
        waited += chance.expovariate(1.0) if load.arrivals == "poisson" else float(number > 0)
        due = _when(waited, load.rate, load.ramp)
        if (load.requests is not None and number >= load.requests) or (
            load.duration is not None and due >= load.duration
        ):
            return
        yield due


def _when(expected: float, rate: float, ramp: float) -> float:
    """Return when so many requests are expected to have come, if the rate grows evenly during the ramp."""
    in_ramp = rate * ramp / 2
    return math.sqrt(2 * ramp * expected / rate) if expected < in_ramp else ramp + (expected - in_ramp) / rate


def user_starts(load: Workload) -> list[float]:
    """Return when each user of a closed loop begins."""
    assert load.concurrency is not None
    return [load.ramp * user / load.concurrency for user in range(load.concurrency)]
