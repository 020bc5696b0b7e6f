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
_ORDERING_PLUGINS = {
    "pytest_order",
    "pytest_dependency",
    "pytest_randomly",
    "random_order",
    "pytest_random_order",
    "pytest_split",
    "pytest_django",
}
"""Top-level modules of plugins that order tests, or that need them in an order."""


def somebody_orders(config: pytest.Config) -> bool:
    """Return whether an option or a plugin of this run orders tests, or needs them in an order."""
    return any(config.getoption(name, None) for name in _ORDERING_OPTIONS) or bool(_plugins(config) & _ORDERING_PLUGINS)


def must_stay(config: pytest.Config) -> bool:
    """Return whether tests must stay where they are, because a plugin has put them there before or relies on it.

    pytest-randomly shuffles tests in the first hook of all; pytest-dependency needs them in the order of the source.
    """
    plugins = _plugins(config)
    shuffled = "pytest_randomly" in plugins and config.getoption("randomly_reorganize", False)
    return "pytest_dependency" in plugins or bool(shuffled)


def _plugins(config: pytest.Config) -> set[str]:
    """Return the top-level modules of all plugins."""
    plugins = config.pluginmanager.get_plugins()
    names = (getattr(plugin, "__name__", None) or type(plugin).__module__ for plugin in plugins)
    return {str(name).partition(".")[0] for name in names}


def reruns_on_change(config: pytest.Config) -> bool:
    """Return whether this is a run inside of xdist's ``-f``, as its `WorkerFailSession` tells (xdist 3.6 to 3.8)."""
    return any(type(plugin).__name__ == "WorkerFailSession" for plugin in config.pluginmanager.get_plugins())
