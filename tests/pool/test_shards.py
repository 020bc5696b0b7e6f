"""How tests are dealt to the jobs of a CI: made-up units, thousands of them."""

from __future__ import annotations

import itertools
import random
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_infserver.pool.collection.durations import Durations
from pytest_infserver.pool.collection.grouping import Unit
from pytest_infserver.pool.collection.shards import Shard, deal, parse_shard

NOTHING = Durations()


def units(tests: Mapping[str, int]) -> list[Unit]:
    """Return units of one test each: so many for each of some servers, which are joined by "+"; "" is none."""
    made = []
    for servers, number in tests.items():
        names = tuple(servers.split("+")) if servers else ()
        made += [unit(f"test_{servers or 'none'}.py::test_{index:03}", names) for index in range(number)]
    return made


def unit(test: str, servers: tuple[str, ...]) -> Unit:
    item: Any = SimpleNamespace(nodeid=test)
    return Unit(servers, [item])


def took(units: Iterable[Unit], seconds: Mapping[str, float], start: float = 10) -> Durations:
    """Return that each test of a server has taken so long, and each start."""
    tests = {one.tests[0].nodeid: seconds["+".join(one.servers)] for one in units}
    return Durations(tests, {name: start for servers in seconds for name in servers.split("+") if name})


def jobs_of(dealt: Sequence[Sequence[Unit]]) -> dict[str, int]:
    """Return the job of each test; none is in two."""
    found = [(one.tests[0].nodeid, number) for number, job in enumerate(dealt) for one in job]
    assert len(dict(found)) == len(found)
    return dict(found)


def starts(dealt: Sequence[Sequence[Unit]]) -> Counter[str]:
    """Return how many jobs start each server."""
    return Counter(name for job in dealt for name in {name for one in job for name in one.servers})


def sizes(dealt: Sequence[Sequence[Unit]]) -> list[int]:
    return [len(job) for job in dealt]


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_each_server_is_started_in_one_job(count: int) -> None:
    dealt = deal(units(dict.fromkeys("abcdef", 6)), count, NOTHING)
    assert starts(dealt) == dict.fromkeys("abcdef", 1)
    assert sizes(dealt) == [36 // count] * count


def test_tests_without_a_server_fill_up() -> None:
    made = units({"a": 30, "b": 10, "": 40})
    dealt = deal(made, 2, took(made, {"a": 1, "b": 1, "": 1}))
    assert starts(dealt) == {"a": 1, "b": 1}
    assert sizes(dealt) == [40, 40]
    # Those of a module stay together, but for the one at the border.
    for job in dealt:
        names = [one.tests[0].nodeid for one in job if not one.servers]
        assert names == sorted(names)


def test_without_any_server_all_jobs_have_work() -> None:
    assert sizes(deal(units({"": 31}), 3, NOTHING)) == [10, 11, 10]


def test_more_jobs_than_servers_and_tests() -> None:
    dealt = deal(units({"a": 2, "": 3}), 8, NOTHING)
    assert starts(dealt) == {"a": 1}
    assert sum(sizes(dealt)) == 5
    assert deal([], 3, NOTHING) == [[], [], []]


def test_jobs_take_equally_long_by_the_last_durations() -> None:
    seconds = {"a": 30.0, "b": 1.0, "c": 1.0, "d": 8.0, "e": 7.0, "": 0.5}
    made = units({"a": 2, "b": 10, "c": 10, "d": 5, "e": 5, "": 50})
    known = took(made, seconds)
    dealt = deal(made, 3, known)
    loads = [
        sum(known.tests[one.tests[0].nodeid] for one in job) + 10 * len({name for one in job for name in one.servers})
        for job in dealt
    ]
    assert starts(dealt) == dict.fromkeys("abcde", 1)
    assert max(loads) - min(loads) < 1


def test_a_long_start_counts_as_well() -> None:
    made = units(dict.fromkeys("abc", 10))
    known = Durations(took(made, dict.fromkeys("abc", 1)).tests, {"a": 300, "b": 10, "c": 10})
    assert [starts([job]) for job in deal(made, 2, known)] == [{"a": 1}, {"b": 1, "c": 1}]


def test_a_server_whose_tests_take_too_long_for_one_job_is_started_in_several() -> None:
    made = units({"a": 300, "b": 10})
    dealt = deal(made, 3, took(made, {"a": 1, "b": 1}))
    assert starts(dealt) == {"a": 3, "b": 1}
    assert max(sizes(dealt)) < 120
    # Not for less than a start.
    dealt = deal(made, 3, took(made, {"a": 1, "b": 1}, start=300))
    assert starts(dealt) == {"a": 1, "b": 1}


def test_what_needs_several_servers_stays_with_the_tests_of_each() -> None:
    dealt = deal(units({"a": 6, "b": 6, "c": 6, "d": 6, "a+b": 2, "b+c": 2}), 2, NOTHING)
    assert starts(dealt) == dict.fromkeys("abcd", 1)


@pytest.mark.parametrize("measured", [False, True])
def test_new_tests_move_none(measured: bool) -> None:
    made = units({"a": 6, "b": 4, "c": 9, "d": 6, "e": 2, "f": 7, **({"": 20} if measured else {})})
    known = took(made, {"a": 3, "b": 5, "c": 1, "d": 2, "e": 9, "f": 4, "": 1}) if measured else NOTHING
    before = jobs_of(deal(made, 3, known))
    for servers in "abcdef":
        new = [unit(f"test_{servers}.py::test_001_new", (servers,)), unit(f"test_{servers}.py::test_zzz", (servers,))]
        after = jobs_of(deal([*made, *new], 3, known))
        assert {test: after[test] for test in before} == before
    if measured:
        # A server of its own, too, and tests without one, however many.
        new = [*units({"x": 50}), *(unit(f"test_more.py::test_{number}", ()) for number in range(50))]
        after = jobs_of(deal([*made, *new], 3, known))
        assert {test: after[test] for test in before} == before


def test_new_tests_without_a_server_move_few_where_nothing_was_measured() -> None:
    made = units({"a": 6, "b": 6, "": 60})
    before = jobs_of(deal(made, 3, NOTHING))
    after = jobs_of(deal([*made, unit("test_none.py::test_030_new", ())], 3, NOTHING))
    assert sum(after[test] != before[test] for test in before) <= 2


def test_the_same_tests_in_any_order_are_dealt_alike_and_each_once() -> None:
    drawn = random.Random(7)
    for _ in range(200):
        names = drawn.sample(string.ascii_lowercase, drawn.randint(0, 8))
        tests = {name: drawn.randint(1, 40) for name in [*names, *(f"{a}+{b}" for a, b in itertools.pairwise(names))]}
        made = units({**tests, "": drawn.randint(0, 60)})
        seconds = {servers: drawn.choice([0, 0.01, 1, 50]) for servers in [*tests, ""]}
        measured = [one for one in made if drawn.random() < drawn.choice([0, 0.5, 1])]
        known = took(measured, seconds, start=drawn.choice([0, 1, 100]))
        count = drawn.randint(1, 9)
        before = jobs_of(deal(made, count, known))
        assert len(before) == len(made)
        drawn.shuffle(made)
        assert jobs_of(deal(made, count, known)) == before


@pytest.mark.parametrize(("text", "shard"), [("1/3", Shard(1, 3)), (" 3 / 3 ", Shard(3, 3)), ("1/1", Shard(1, 1))])
def test_shard_of_a_text(text: str, shard: Shard) -> None:
    assert parse_shard(text) == shard
    assert parse_shard(str(shard)) == shard


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "-1/3", "1", "1/", "/3", "a/b", "1/3/5", "1.0/3", "", "²/3"])
def test_text_that_names_no_shard(text: str) -> None:
    with pytest.raises(ValueError):
        parse_shard(text)
