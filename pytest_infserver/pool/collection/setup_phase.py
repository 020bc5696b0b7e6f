"""The wait for a server in a test's setup: after all hooks that may skip the test, and no part of the test's time."""

from __future__ import annotations

import contextlib
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pytest_infserver.compat import between_hooks_and_fixtures, without_faulthandler

_KNOWN = ("_pytest.", "pytest_infserver.", "pytest_dependency")
"""Modules whose hooks skip no test, or only one whose dependency has failed."""
_TIMER: pytest.StashKey[Any] = pytest.StashKey()
_WAITED: pytest.StashKey[float] = pytest.StashKey()


@contextlib.contextmanager
def before_fixtures(item: pytest.Item, action: Callable[[], object]) -> Iterator[None]:
    """Have something done between the hooks of a test's setup and its fixtures.

    Args:
        item: The test, whose setup takes place inside.
        action: What to do; its time is none of the test's.
    """

    def wait() -> None:
        begin = time.monotonic()
        try:
            with _unlimited(item):
                action()
        finally:
            item.stash[_WAITED] = time.monotonic() - begin

    item.stash[_WAITED] = 0.0
    with between_hooks_and_fixtures(item, wait):
        yield


def setup_may_skip(config: pytest.Config) -> bool:
    """Return whether a hook of the project's or of a plugin may skip tests in their setup, as far as its code tells."""
    hooks = (hook.function for hook in config.hook.pytest_runtest_setup.get_hookimpls())
    return any(_may_skip(hook, set()) for hook in hooks if not hook.__module__.startswith(_KNOWN))


def _may_skip(function: Callable[..., object], seen: set[object]) -> bool:
    """Return whether a function, or one of the project's that it calls, mentions something like ``pytest.skip``."""
    code = getattr(function, "__code__", None)
    if code is None or code in seen or function.__module__.partition(".")[0] in sys.stdlib_module_names:
        return False
    seen.add(code)
    names = set(_names(code))
    if any("skip" in name.lower() for name in names):
        return True
    near = _functions(function.__module__)
    return any(_may_skip(near[name], seen) for name in names if name in near)


def _names(code: types.CodeType) -> Iterator[str]:
    """Return the names that code uses, with those of the functions in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _functions(module: str) -> dict[str, types.FunctionType]:
    """Return the functions of a module and the methods of its classes by name."""
    members = vars(sys.modules.get(module, types))
    classes = [vars(one) for one in members.values() if isinstance(one, type) and one.__module__ == module]
    places = (*classes, members)
    return {name: one for place in places for name, one in place.items() if isinstance(one, types.FunctionType)}


def waited(item: pytest.Item) -> float:
    """Return for how many seconds a test has waited in its setup."""
    return item.stash.get(_WAITED, 0.0)


def note_timer(item: pytest.Item, settings: Any) -> None:
    """Note with which settings pytest-timeout sets a timer.

    Args:
        item: The test.
        settings: Its settings, as its hook `pytest_timeout_set_timer` gets them (pytest-timeout 2.0 to 2.4).
    """
    item.stash[_TIMER] = settings


@contextlib.contextmanager
def _unlimited(item: pytest.Item) -> Iterator[None]:
    """Stop the clocks that limit a test."""
    settings = item.stash.get(_TIMER, None)
    # One of the test's function alone is not set yet; this is the last one's of a test that is repeated.
    timed = settings is not None and not settings.func_only
    if timed:
        item.config.hook.pytest_timeout_cancel_timer(item=item)
    try:
        with without_faulthandler(item.config):
            yield
    finally:
        if timed:
            item.config.hook.pytest_timeout_set_timer(item=item, settings=settings)
