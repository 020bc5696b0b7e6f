"""The order of tests, which are only their names here: a1 needs server a, ab1 needs both, -1 none."""

from __future__ import annotations

import random

import pytest

from pytest_infserver.pool.collection.order import Group, Order, Rearranged


def servers_of(test: str) -> Group:
    return tuple(test.strip("-0123456789"))


def names(*groups: tuple[str, int]) -> list[str]:
    return [f"{group}{number}" for group, count in groups for number in range(count)]


def taken(tests: list[str], ready: set[str]) -> list[str]:
    order, last, found = Order(tests, servers_of), (), []
    while len(order):
        test, last = order.pop(last, ready.__contains__)
        found.append(test)
    return found


def test_what_needs_no_server_comes_first_while_none_is_ready() -> None:
    tests = ["a0", "-0", "b0", "a1", "-1"]
    assert taken(tests, set()) == ["-0", "-1", "a0", "a1", "b0"]
    assert taken(tests, {"b"}) == ["b0", "-0", "-1", "a0", "a1"]
    assert taken(tests, {"a", "b"}) == ["a0", "a1", "b0", "-0", "-1"]


def test_a_test_of_several_servers_waits_for_all_of_them() -> None:
    tests = ["ab0", "-0", "b0"]
    assert taken(tests, {"a"}) == ["-0", "ab0", "b0"]
    assert taken(tests, {"a", "b"}) == ["ab0", "b0", "-0"]


def test_who_is_free_goes_where_nobody_is() -> None:
    order = Order(names(("a", 3), ("b", 3)), servers_of)
    everything = {"a", "b"}.__contains__
    assert order.pop((), everything) == ("a0", ("a",))
    assert order.pop((), everything, taken=[("a",)]) == ("b0", ("b",))
    # Who has a server stays with it.
    assert order.pop(("b",), everything, taken=[("b",)]) == ("b1", ("b",))


class Boots:
    """Servers that are ready from some moment on."""

    def __init__(self, **moments: int) -> None:
        self.moments = moments
        self.now = 0

    def __call__(self, name: str) -> bool:
        return self.now >= self.moments[name]


def units(tests: list[str], size: int = 1) -> list[tuple[Group, list[str]]]:
    """Cut tests into units of one server and this size."""
    found: list[tuple[Group, list[str]]] = []
    for test in tests:
        if not found or found[-1][0] != servers_of(test) or len(found[-1][1]) == size:
            found.append((servers_of(test), []))
        found[-1][1].append(test)
    return found


def run(tests: list[str], boots: Boots, size: int = 1) -> list[str]:
    """Run tests as pytest does: the next one is known when a test begins, and stands."""
    rearranged, found = Rearranged(tests, units(tests, size)), []
    announced = tests[0]
    for at, test in enumerate(tests):
        assert test == announced
        announced = tests[at + 1] if at + 1 < len(tests) else ""
        rearranged.begin(test, boots)
        boots.now += 1
        found.append(test)
    return found


def test_a_server_s_tests_run_when_it_is_ready_and_the_others_fill_the_time() -> None:
    tests = names(("-", 9), ("a", 3), ("b", 3))
    found = run(tests, Boots(a=2, b=9))
    assert found == ["-0", "-1", "-2", "-3", "a0", "a1", "a2", "-4", "-5", "-6", "-7", "b0", "b1", "b2", "-8"]


def test_a_unit_is_not_left_before_its_end() -> None:
    tests = names(("-", 9), ("a", 6))
    found = run(tests, Boots(a=1), size=3)
    assert found == ["-0", "-1", "-2", *names(("a", 6)), "-3", "-4", "-5", "-6", "-7", "-8"]


@pytest.mark.parametrize("seed", range(20))
def test_every_test_runs_once_whenever_what_is_ready(seed) -> None:
    draw = random.Random(seed)
    tests = names(("-", draw.randrange(8)), ("a", draw.randrange(8)), ("b", draw.randrange(4)), ("ab", 2))
    size = 1 + seed % 4
    found = run(list(tests), Boots(a=draw.randrange(12), b=draw.randrange(12)), size)
    assert sorted(found) == sorted(tests)
    for _, unit in units(tests, size):
        at = found.index(unit[0])
        assert found[at : at + len(unit)] == unit


def test_somebody_who_runs_them_in_another_way_is_left_alone() -> None:
    tests = names(("-", 4), ("a", 4))
    before = list(tests)
    rearranged = Rearranged(tests, units(tests))
    for test in reversed(before):
        rearranged.begin(test, lambda name: True)
    assert sorted(tests) == sorted(before)
