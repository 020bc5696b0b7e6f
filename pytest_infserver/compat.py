"""What is used of pytest's own inside, each with the versions it was checked with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest


def sorted_by_parameters(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return tests as pytest sorts them by the parameters of their session, package, module and class fixtures.

    That is ``_pytest.fixtures.reorder_items`` (pytest 8.4 to 9.2).
    """
    from _pytest.fixtures import reorder_items

    return list(reorder_items(items))


@contextlib.contextmanager
def unsorted(items: Iterable[pytest.Item], fixture: str | None = None) -> Iterator[None]:
    """Keep pytest from sorting tests by parameters, which pulls modules and classes apart.

    It looks at ``item.callspec._arg2scope`` for that (pytest 8.4 to 9.2).

    Args:
        items: The tests.
        fixture: The only fixture whose parameters do not count; None: those of no fixture count.
    """
    changed: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for item in items:
        scopes: dict[str, Any] = getattr(getattr(item, "callspec", None), "_arg2scope", {})
        names = [name for name in scopes if fixture in (None, name)]
        if names:
            changed.append((scopes, dict(scopes)))
            scopes.update((name, type(scopes[name]).Function) for name in names)
    try:
        yield
    finally:
        for scopes, before in changed:
            scopes.update(before)


_ORDERING_OPTIONS = ("stepwise", "failedfirst", "newfirst", "lf")
_ORDERING_MARKS = ("order", "dependency")
"""Those of pytest-order and pytest-dependency."""


def somebody_orders(config: pytest.Config, items: Iterable[pytest.Item]) -> bool:
    """Return whether an option, a plugin or a mark on a test orders the tests, or needs them in an order."""
    options = any(config.getoption(name, None) for name in _ORDERING_OPTIONS)
    return options or _is_shuffled(config) or _is_marked(items, *_ORDERING_MARKS)


def must_stay(config: pytest.Config, items: Iterable[pytest.Item]) -> bool:
    """Return whether tests must stay where they are, because a plugin has put them there before or relies on it.

    pytest-randomly shuffles tests in the first hook of all; pytest-dependency needs them in the order of the source.
    """
    return _is_shuffled(config) or ("pytest_dependency" in _plugins(config) and _is_marked(items, "dependency"))


def _is_shuffled(config: pytest.Config) -> bool:
    return "pytest_randomly" in _plugins(config) and bool(config.getoption("randomly_reorganize", False))


def _is_marked(items: Iterable[pytest.Item], *names: str) -> bool:
    return any(mark.name in names for item in items for mark in item.iter_markers())


def _plugins(config: pytest.Config) -> set[str]:
    """Return the top-level modules of all plugins."""
    plugins = config.pluginmanager.get_plugins()
    names = (getattr(plugin, "__name__", None) or type(plugin).__module__ for plugin in plugins)
    return {str(name).partition(".")[0] for name in names}


def reruns_on_change(config: pytest.Config) -> bool:
    """Return whether this is a run inside of xdist's ``-f``, as its `WorkerFailSession` tells (xdist 3.6 to 3.8)."""
    return any(type(plugin).__name__ == "WorkerFailSession" for plugin in config.pluginmanager.get_plugins())
