"""Tests put together by server; a class or a module stays whole unless parametrisation spreads it over servers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import pytest

from pytest_infserver.pool.collection.order import Group


class Unit(NamedTuple):
    """Tests that stay together, in the order in which they were collected.

    Attributes:
        servers: The servers that they need; of a module whose tests name several, those of the first one.
        tests: The tests.
    """

    servers: Group
    tests: list[pytest.Item]


def units_of(items: Iterable[pytest.Item], servers_of: Callable[[pytest.Item], Group]) -> list[Unit]:
    """Cut tests into what stays together: a module each, or a part of one for each server that it is spread over.

    Args:
        items: The tests.
        servers_of: Returns the servers that a test needs.
    """
    modules = itertools.groupby(items, key=lambda item: item.getparent(pytest.File) or item)
    return [unit for _, tests in modules for unit in _parts(list(tests), 0, servers_of)]


def pieces_of(items: Iterable[pytest.Item], servers_of: Callable[[pytest.Item], Group]) -> list[Unit]:
    """Cut tests into the smallest units that stay together: classes and functions, apart for each server of a variant.

    Args:
        items: The tests, in any order.
        servers_of: Returns the servers that a test needs.

    Returns:
        The units, each with all servers of its tests, in the order of their node ids.
    """
    ordered = sorted(items, key=lambda item: item.nodeid)
    tops = itertools.groupby(ordered, key=lambda item: (item.getparent(pytest.File) or item, _name_at(item, 0)))
    units = [unit for _, tests in tops for unit in _parts(list(tests), 0, servers_of)]
    return [
        Unit(tuple(sorted({name for test in unit.tests for name in servers_of(test)})), unit.tests) for unit in units
    ]


def grouped(units: Iterable[Unit], *, others_first: bool) -> list[Unit]:
    """Return units with those of the same servers together, where the first of them stood.

    Args:
        units: The units.
        others_first: Whether those without a server come first, to run while one is started; else each keeps its
            place.
    """
    groups: dict[object, list[Unit]] = {}
    others: list[Unit] = []
    for unit in units:
        if unit.servers or not others_first:
            groups.setdefault(unit.servers or id(unit.tests), []).append(unit)
        else:
            others.append(unit)
    return others + [unit for group in groups.values() for unit in group]


def _parts(tests: list[pytest.Item], depth: int, servers_of: Callable[[pytest.Item], Group]) -> list[Unit]:
    """Return the units of a module, or of a class or function in it, which lies so many classes deep."""
    if not any(map(servers_of, tests)):
        return [Unit((), tests)]
    classes = _classes(tests[0])
    if depth > len(classes):
        # One function, once for each of its servers.
        variants: dict[Group, list[pytest.Item]] = {}
        for test in tests:
            variants.setdefault(servers_of(test), []).append(test)
        return [Unit(servers, same) for servers, same in variants.items()]
    inner = itertools.groupby(tests, key=lambda test: _name_at(test, depth))
    children = [_parts(list(same), depth + 1, servers_of) for _, same in inner]
    first = next((unit.servers for child in children for unit in child if unit.servers), ())
    if all(len(child) == 1 for child in children):
        return [Unit(first, tests)]
    parts: dict[Group, list[pytest.Item]] = {}
    for unit in itertools.chain.from_iterable(children):
        parts.setdefault(unit.servers or first, []).extend(unit.tests)
    return [Unit(servers, same) for servers, same in parts.items()]


def _classes(test: pytest.Item) -> Sequence[pytest.Class]:
    return [node for node in test.listchain() if isinstance(node, pytest.Class)]


def _name_at(test: pytest.Item, depth: int) -> object:
    """Return the class of a test at a depth, or else its function."""
    classes = _classes(test)
    return classes[depth] if depth < len(classes) else getattr(test, "originalname", None) or test.name
