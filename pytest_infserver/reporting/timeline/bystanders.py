"""Tests that nobody looks for in a report about servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST = 1000
"""So many tests that passed without a server are shown, or none of them."""


def without_bystanders(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the record of a run without the tests that passed without a server, where there are very many.

    Args:
        record: What `run.json` has, all tests.
    """
    tests = [test for test in record["tests"] if test["servers"] or test["outcome"] != "passed"]
    left_out = len(record["tests"]) - len(tests)
    if left_out <= MOST:
        return record
    note = f"{left_out} tests that passed without a server are not shown here; run.json has them"
    return {**record, "tests": tests, "incidents": [*record["incidents"], note]}
