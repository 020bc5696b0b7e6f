"""Tests that overlap are put into rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_infserver.reporting.timeline.rows import rows


def test_overlapping_tests_get_rows_of_their_own_and_free_rows_are_used_again() -> None:
    assert rows([(0, 10), (5, 20), (10, 12), (12, 30), (20, 21)]) == [0, 1, 0, 0, 1]


def test_a_test_of_no_length_stands_where_it_is() -> None:
    assert rows([(0, 0), (0, 5), (5, 5), (5, 5)]) == [0, 0, 0, 0]
    assert rows([]) == []


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=60))
def test_in_a_row_one_ends_before_the_next_begins_and_no_row_is_wasted(spans: list[tuple[int, int]]) -> None:
    spans = sorted((begin, begin + length) for begin, length in spans)
    chosen = rows(spans)
    last: dict[int, int] = {}
    for (begin, end), row in zip(spans, chosen, strict=True):
        assert last.get(row, 0) <= begin
        last[row] = end
    # Any number of tests without length has room in one row.
    busy = [sum(begin <= at < end for begin, end in spans) + ((at, at) in spans) for at in range(80)]
    assert len(set(chosen)) <= max(busy)
