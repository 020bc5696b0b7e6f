"""Errors that turn up after a test has been reported."""

from __future__ import annotations

import pytest


def report_error(item: pytest.Item, text: str) -> None:
    """Report an error at the teardown of a test that has had its own teardown already.

    An exception instead would set off reruns of the test, and could hit another one.
    """
    report = pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome="failed",
        longrepr=text,
        when="teardown",
    )
    item.ihook.pytest_runtest_logreport(report=report)
