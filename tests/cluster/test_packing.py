from __future__ import annotations

import random
import time
from itertools import product

import pytest

from pytest_infserver.cluster.placement.packing import fits

NODES = [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 4.0}, {"CPU": 8.0}]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([], True),
        ([[{"GPU": 4}]], True),
        ([[{"GPU": 5}]], False),
        ([[{"GPU": 2}], [{"GPU": 4}]], True),
        # What comes first must not take the place of what fits nowhere else.
        ([[{"GPU": 2}], [{"GPU": 2}], [{"GPU": 2}]], True),
        ([[{"GPU": 3}], [{"GPU": 3}]], False),
        ([[{"CPU": 8}]], True),
        ([[{"CPU": 8, "GPU": 1}]], False),
        ([[{"other": 1}]], False),
        # Each bundle of a server is on a node of its own.
        ([[{"GPU": 2}, {"GPU": 2}]], True),
        ([[{"GPU": 1}, {"GPU": 1}, {"GPU": 1}]], False),
        ([[{"CPU": 1}, {"CPU": 1}, {"CPU": 1}]], True),
        ([[{"CPU": 0.5}]] * 32, True),
        ([[{"CPU": 0.5}]] * 33, False),
        ([[{}]], True),
    ],
)
def test_what_finds_room(groups: list[list[dict[str, float]]], expected: bool) -> None:
    assert fits(groups, NODES) is expected


def test_nothing_is_taken_from_the_nodes_that_were_given() -> None:
    nodes = [{"CPU": 2.0}]
    assert fits([[{"CPU": 2}]], nodes)
    assert nodes == [{"CPU": 2.0}]


def test_tenths_add_up() -> None:
    assert fits([[{"CPU": 0.1}]] * 10, [{"CPU": 1.0}])
    assert not fits([[{"CPU": 0.1}]] * 11, [{"CPU": 1.0}])


def by_trying_all(groups: list[list[dict[str, float]]], nodes: list[dict[str, float]]) -> bool:
    bundles = [(number, bundle) for number, group in enumerate(groups) for bundle in group]
    for places in product(range(len(nodes)), repeat=len(bundles)):
        used = [dict.fromkeys(node, 0.0) for node in nodes]
        of_group: dict[int, list[int]] = {}
        for (number, bundle), place in zip(bundles, places, strict=True):
            of_group.setdefault(number, []).append(place)
            for name, amount in bundle.items():
                used[place][name] = used[place].get(name, 0.0) + amount
        apart = all(len(set(chosen)) == len(chosen) for chosen in of_group.values())
        enough = all(
            amount <= node.get(name, 0.0) for node, one in zip(nodes, used, strict=True) for name, amount in one.items()
        )
        if apart and enough:
            return True
    return False


@pytest.mark.parametrize("seed", range(200))
def test_it_is_what_trying_all_finds(seed: int) -> None:
    chance = random.Random(seed)

    def some(low: int, high: int) -> dict[str, float]:
        return {name: float(chance.randint(low, high)) for name in ("CPU", "GPU") if chance.random() < 0.8}

    nodes = [some(0, 5) for _ in range(chance.randint(1, 3))]
    groups = [[some(0, 4)] * chance.choice((1, 1, 2)) for _ in range(chance.randint(1, 4))]
    assert fits(groups, nodes) == by_trying_all(groups, nodes)


def test_a_search_that_would_take_for_ever_is_left_to_ray() -> None:
    nodes = [{"CPU": 10.0 + index / 1000} for index in range(40)]
    groups = [[{"CPU": 3.4}] for _ in range(81)]
    begin = time.monotonic()
    assert fits(groups, nodes)
    assert time.monotonic() - begin < 20
