"""What is made of samples."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest

from pytest_infserver.load.distribution import distribution
from pytest_infserver.load.results import LoadResult
from pytest_infserver.load.samples import Sample, sample_from
from pytest_infserver.load.statistics import mean_interval, t_quantile
from pytest_infserver.load.table import result_lines
from pytest_infserver.load.workload import make_workload


def sample(**changes):
    return Sample(
        **{"due": 0, "sent": 0, "first": 0.1, "ended": 0.4, "gaps": (0.1, 0.2), "output_tokens": 4, **changes}
    )


def result(*samples, seconds=2.0, **load):
    return LoadResult(make_workload(**load), "mine", samples, seconds)


def test_several_tokens_in_one_part_are_one_latency() -> None:
    found = result(sample(output_tokens=9))
    assert found.itl.count == 2
    assert found.tpot.mean == pytest.approx(0.3 / 8)
    assert "3.0 tokens came at a time" in found.notes[0]


def test_tokens_are_those_of_usage_or_not_known() -> None:
    found = result(sample(output_tokens=None), sample(output_tokens=None, gaps=(0.1,) * 40))
    assert math.isnan(found.output_tokens_per_second)
    assert found.tpot.count == 0
    assert "no usage in 2 of 2 answers" in found.notes[0]
    assert found.as_dict()["output_tokens_per_second"] is None


def test_an_answer_in_one_part_has_no_time_between_tokens() -> None:
    assert sample(gaps=()).tpot is None
    assert sample(output_tokens=1).tpot is None
    assert sample(first=None).ttft is None


def test_rates_goodput_and_failures() -> None:
    failed = [sample(failure="timeout", text="first"), sample(failure="timeout", text="second")]
    found = result(sample(), sample(first=0.9), *failed, limits={"ttft": 0.5})
    assert (found.completed, found.failed) == (2, 2)
    assert found.failures == {"timeout": (2, "first")}
    assert found.requests_per_second == 1.0
    assert found.goodput == 0.5
    assert found.output_tokens_per_second == 4.0


def test_an_open_loop_counts_from_when_a_request_was_due() -> None:
    found = result(sample(due=0.0, sent=0.05, first=0.2, ended=0.5), rate=3.0)
    assert found.ttft.p50 == pytest.approx(0.2)
    assert any("coordinated omission is corrected" in note for note in found.notes)
    assert any("the generator was late: p99 50 ms" in note for note in found.notes)


def test_nothing_sent_is_no_number_and_no_limit_holds_for_it() -> None:
    found = result()
    assert not found.ttft.p99 < 1
    assert "no request was sent" in found.notes
    json.dumps(found.as_dict(), allow_nan=False)
    assert result_lines(found.as_dict())


def test_samples_travel_as_json() -> None:
    one = sample(failure="x", text="y")
    assert sample_from({**json.loads(json.dumps(one.as_dict())), "later": 1}) == one


def test_percentiles_and_the_histogram() -> None:
    values = [number / 1000 for number in range(1, 1001)]
    found = distribution(values)
    assert (found.p50, found.p99, found.most) == pytest.approx((0.5005, 0.99001, 1.0))
    assert sum(found.histogram.values()) == 1000
    ends = list(found.histogram)
    assert ends == sorted(ends)
    # Each value is at most 3 % below the end of its bin.
    for value in (0.0123, 0.5, 0.77):
        end = next(iter(distribution([value]).histogram))
        assert value * 0.999 <= end <= value * 1.03
    assert distribution([0.0, -1e-9, 3600.0]).count == 3


@pytest.mark.parametrize(
    ("share", "freedom", "known"),
    [(0.975, 1, 12.7062), (0.975, 10, 2.22814), (0.9995, 3, 12.924), (0.995, 30, 2.74999), (0.975, 1000, 1.95996)],
)
def test_student_s_t(share: float, freedom: int, known: float) -> None:
    assert t_quantile(share, freedom) == pytest.approx(known, rel=2e-4)


def test_the_interval_of_the_mean_holds_as_often_as_it_says() -> None:
    chance = random.Random(7)
    held = 0
    for _ in range(1000):
        _, low, high = mean_interval([chance.gauss(5, 2) for _ in range(8)])
        held += low <= 5 <= high
    assert 0.93 < held / 1000 < 0.97
    assert math.isnan(mean_interval([1.0])[1])
    assert mean_interval([1.0, 3.0])[0] == statistics.fmean([1.0, 3.0])
