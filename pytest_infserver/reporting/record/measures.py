"""What tests have measured, loads and scores, on its way from a test into its reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

LOADS, SCORES = "loads", "scores"
"""Keys of what is measured, also in run.json."""
ATTRIBUTE = "infserver_measures"
"""Of a report."""
_ON_ITEM: pytest.StashKey[dict[str, list[dict[str, Any]]]] = pytest.StashKey()
_INTERRUPTED: pytest.StashKey[list[tuple[str, Mapping[str, Any]]]] = pytest.StashKey()


def note(item: pytest.Item, kind: str, found: dict[str, Any], properties: Mapping[str, object]) -> None:
    """Note what a test has measured.

    Args:
        item: The test.
        kind: `LOADS` or `SCORES`.
        found: What it has measured, for JSON; it may still be changed until the test is over.
        properties: The properties of the test that say it, also in JUnit's XML.
    """
    if _ON_ITEM not in item.stash:
        empty: dict[str, list[dict[str, Any]]] = {LOADS: [], SCORES: []}
        item.stash[_ON_ITEM] = empty
    item.stash[_ON_ITEM][kind].append(found)
    item.user_properties += [(f"infserver_{name}", value) for name, value in properties.items()]


def note_interrupted(item: pytest.Item, found: Mapping[str, Any]) -> None:
    """Note the load of a test that has no report, since Ctrl-C has ended the run."""
    item.config.stash.setdefault(_INTERRUPTED, []).append((item.nodeid, {LOADS: [found], SCORES: []}))


def attach(report: pytest.TestReport, item: pytest.Item) -> None:
    """Let the report of a test's call, or of a phase that failed before, say what it has measured."""
    found = item.stash.get(_ON_ITEM, None)
    if found is None:
        return
    if report.when == "call" or (report.failed and report.when == "setup"):
        setattr(report, ATTRIBUTE, {kind: list(ones) for kind, ones in found.items()})
    if report.when == "teardown":
        # A test that is repeated measures anew.
        del item.stash[_ON_ITEM]


def measures_of(report: object) -> Mapping[str, Any]:
    """Return what a report says; nothing for other reports."""
    return getattr(report, ATTRIBUTE, None) or {LOADS: (), SCORES: ()}


def all_measures(reports: Iterable[Any], config: pytest.Config) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the tests that have measured something, with what they have measured."""
    found = [(report.nodeid, getattr(report, ATTRIBUTE)) for report in reports if hasattr(report, ATTRIBUTE)]
    return found + config.stash.get(_INTERRUPTED, [])
