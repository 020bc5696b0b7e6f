"""Values over time, no more of them than one can draw."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_infserver.reporting.record.series import Series, halved


@given(st.lists(st.integers(0, 10**6)), st.integers(2, 9))
def test_it_stays_short_in_order_and_keeps_the_peak(values: list[int], limit: int) -> None:
    series = Series[int](max, limit)
    for time, value in enumerate(values):
        series.add(time, value)
    points = series.points
    assert len(points) <= limit
    assert [time for time, _ in points] == sorted({time for time, _ in points})
    assert max((value for _, value in points), default=None) == max(values, default=None)
    if values:
        assert points[0][0] == 0


def test_few_values_stay_as_they_are() -> None:
    series = Series[int](max, 100)
    for time in range(50):
        series.add(time, time % 7)
    assert series.points == [(time, time % 7) for time in range(50)]


def test_a_last_single_point_is_kept() -> None:
    assert halved([(0, 1), (1, 5), (2, 3)], max) == [(0, 5), (2, 3)]
