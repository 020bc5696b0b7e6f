"""Whether servers find room on some nodes: a small search, without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

Bundle: TypeAlias = "Mapping[str, float]"
"""Amounts by name, as of CPU and GPU, that are needed on one node."""

_MAX_STEPS = 2_000
"""Some 0.1 s on 40 nodes: whoever asks holds the lock of the pool."""
_NOTHING = 1e-6


def fits(groups: Sequence[Sequence[Bundle]], nodes: Sequence[Mapping[str, float]]) -> bool:
    """Return whether all of these find room at the same time.

    A search that takes too long counts as successful: Ray has the last word.

    Args:
        groups: For each server what it needs, each bundle on a node of its own.
        nodes: What each node has.
    """
    if not _has(_sum(nodes), _sum([bundle for group in groups for bundle in group])):
        return False
    left = [dict(node) for node in nodes]
    # What is hardest to place comes first.
    ordered = sorted(groups, key=lambda group: (len(group), sum(map(_size, group))), reverse=True)
    steps = 0

    def place(at: int, rank: int, used: frozenset[int]) -> bool:
        nonlocal steps
        steps += 1
        if at == len(ordered) or steps > _MAX_STEPS:
            return True
        if rank == len(ordered[at]):
            return place(at + 1, 0, frozenset())
        tried: list[dict[str, float]] = []
        for index, node in enumerate(left):
            # Nodes that have the same left are as good as each other.
            if index in used or node in tried or not _has(node, ordered[at][rank]):
                continue
            tried.append(dict(node))
            _change(node, ordered[at][rank], -1)
            if place(at, rank + 1, used | {index}):
                return True
            _change(node, ordered[at][rank], 1)
        return False

    return place(0, 0, frozenset())


def _sum(bundles: Sequence[Bundle]) -> dict[str, float]:
    total: dict[str, float] = {}
    for bundle in bundles:
        _change(total, bundle, 1)
    return total


def _size(bundle: Bundle) -> float:
    return sum(bundle.values())


def _has(node: Mapping[str, float], bundle: Bundle) -> bool:
    return all(amount <= node.get(name, 0.0) + _NOTHING for name, amount in bundle.items())


def _change(node: dict[str, float], bundle: Bundle, sign: int) -> None:
    for name, amount in bundle.items():
        node[name] = round(node.get(name, 0.0) + sign * amount, 4)
