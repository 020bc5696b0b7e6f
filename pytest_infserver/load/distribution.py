"""Distribution: many times as a few numbers, and as a histogram whose bins are all as exact."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from pytest_infserver.load.statistics import mean_interval, quantile

_BINS = 32
"""For each doubling: each bin is at most 3 % wide, as in an HDR histogram of two digits."""
_LEAST = 1e-6


@dataclass(frozen=True)
class Distribution:
    """Times in seconds; where there are none, all but the count are not a number.

    Attributes:
        count: How many.
        mean: Their mean.
        low: Where the mean's 95 % interval of confidence begins.
        high: Where it ends.
        p50: The median.
        p90: What 90 % of them are below.
        p99: What 99 % of them are below.
        most: The longest.
        histogram: Upper end of a bin to how many are in it.
    """

    count: int
    mean: float
    low: float
    high: float
    p50: float
    p90: float
    p99: float
    most: float
    histogram: dict[float, int]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON, which knows no "not a number"."""
        told = {name: _number(value) for name, value in asdict(self).items() if name != "histogram"}
        return {**told, "histogram": [[end, count] for end, count in self.histogram.items()]}


def distribution(values: Iterable[float | None]) -> Distribution:
    """Return that of the values that are known."""
    ordered = sorted(value for value in values if value is not None)
    bins = Counter(max(0, math.ceil(_BINS * math.log2(max(value, _LEAST) / _LEAST))) for value in ordered)
    mean, low, high = mean_interval(ordered)
    p50, p90, p99, most = (quantile(ordered, share) for share in (0.5, 0.9, 0.99, 1.0))
    return Distribution(
        len(ordered),
        mean,
        low,
        high,
        p50,
        p90,
        p99,
        most,
        {float(f"{_LEAST * 2 ** (number / _BINS):.4g}"): count for number, count in sorted(bins.items())},
    )


def _number(value: float) -> float | None:
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    return value
