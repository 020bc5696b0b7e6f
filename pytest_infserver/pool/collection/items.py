"""What the tests that pytest has collected say about the servers they use."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pytest

from pytest_infserver.pool.collection.selection import NEEDS

FIXTURE = "inference_server"
FIXTURE_HOME = "pytest_infserver.session.fixtures"
SEVERAL = "inference_servers"
"""The fixture that gives several servers together."""
WAYS = frozenset({FIXTURE, SEVERAL, "inference_server_factory", "inference_client", "request"})
"""Fixtures by which a test may come by a server; with ``request`` by way of ``getfixturevalue``."""
MARKER_NAMES = ("backend", "infserver")


class Unmatched:
    """Stands for the server of a test that no server fits."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def uses_fixture(item: pytest.Item) -> bool:
    """Return whether a test uses our fixture, not one of the same name that a project put in its place."""
    info = getattr(item, "_fixtureinfo", None)
    return info is not None and reaches_ours(info.name2fixturedefs.get(FIXTURE))


def uses_several(item: pytest.Item) -> bool:
    """Return whether a test uses our fixture for several servers, not a project's own."""
    info = getattr(item, "_fixtureinfo", None)
    definitions = info.name2fixturedefs.get(SEVERAL) if info is not None else None
    return definitions is not None and getattr(definitions[-1].func, "__module__", None) == FIXTURE_HOME


def reaches_ours(definitions: Sequence[pytest.FixtureDef[Any]] | None) -> bool:
    """Return whether the fixture that a test gets under our name is ours, or a project's that asks for ours."""
    for definition in reversed(definitions or ()):
        if is_ours(definition):
            return True
        if definition.params is not None or FIXTURE not in definition.argnames:
            return False
    return False


def is_ours(definition: pytest.FixtureDef[Any]) -> bool:
    """Return whether this is our own fixture."""
    return definition.argname == FIXTURE and getattr(definition.func, "__module__", None) == FIXTURE_HOME


def parameter(item: pytest.Item) -> object:
    """Return what a test was parametrised with, the name of a server as a rule, or None."""
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get(FIXTURE)


def markers(node: pytest.Item | Any) -> list[pytest.Mark]:
    """Return the marks on a test, its class and its module that choose servers, the closest first."""
    # Those of a parameter, which pytest gives after the function's own, are the closest.
    own = marks_of_parameters(node)
    rest = [mark for mark in node.iter_markers() if not any(mark is one for one in own)]
    return [mark for mark in (*own, *rest) if mark.name in MARKER_NAMES]


def marks_of_parameters(node: pytest.Item | Any) -> list[pytest.Mark]:
    """Return the marks on the parameters of a test."""
    return list(getattr(getattr(node, "callspec", None), "marks", ()))


def needs(item: pytest.Item) -> list[pytest.Mark]:
    """Return the marks that name servers which a test needs together."""
    return list(item.iter_markers(NEEDS))


def will_run(item: pytest.Item) -> bool:
    """Return whether pytest is going to run the test: no server is started for one that is skipped."""
    if item.config.getoption("setupplan", False):
        return False
    try:
        from _pytest.skipping import evaluate_skip_marks, evaluate_xfail_marks

        if evaluate_skip_marks(item) is not None:
            return False
        xfail = evaluate_xfail_marks(item)
    except ImportError:
        return item.get_closest_marker("skip") is None
    except (Exception, pytest.fail.Exception):
        # A condition that cannot be evaluated: pytest reports it in the setup, without a server.
        return False
    return xfail is None or xfail.run or bool(item.config.getoption("runxfail", False))


def is_of_unittest(item: pytest.Item | None) -> bool:
    """Return whether a test is a method of a `unittest.TestCase`."""
    # Where nobody has imported it there is none; it takes longer than the rest of this plugin.
    case = getattr(sys.modules.get("unittest"), "TestCase", None)
    return case is not None and issubclass(getattr(item, "cls", None) or object, case)


def unittest_skip(item: pytest.Item) -> str | None:
    """Return why ``@unittest.skip`` skips a test, which pytest itself learns only when its fixtures are made."""
    for place in (getattr(item, "obj", None), getattr(item, "cls", None)):
        if getattr(place, "__unittest_skip__", False) is True:
            return str(getattr(place, "__unittest_skip_why__", ""))
    return None
