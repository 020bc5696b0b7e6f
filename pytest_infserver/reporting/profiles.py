"""Where the traces are: in the report of the test that asked for one, and in the summary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver.launcher.profiling.viewers import with_viewer
from pytest_infserver.reporting.paths import from_here

PROPERTY = "infserver_profile"
"""The name of the property of a test, also in JUnit's XML, that holds the path of a trace."""


def paths_of(report: pytest.TestReport) -> list[str]:
    """Return the traces that a test has had made."""
    # Warnings, too, are among the terminal's reports.
    return [str(value) for name, value in getattr(report, "user_properties", ()) if name == PROPERTY]


def add_profiles(report: pytest.TestReport, item: pytest.Item, paths: Iterable[Path]) -> None:
    """Name traces in the report of the test that had them made, and make them properties of it.

    Args:
        report: That of the phase that has ended.
        item: The test.
        paths: What was made in this phase.
    """
    found = [(PROPERTY, str(path)) for path in paths]
    if found:
        report.sections.append(("infserver profile", "\n".join(shown(path) for _, path in found)))
        # The next phases' reports take them from the test.
        report.user_properties += found
        item.user_properties += found


def show_profiles(terminal: Any, of_servers: Mapping[str, str]) -> None:
    """Write a line for each trace of the run.

    Args:
        terminal: pytest's terminal reporter, which has the reports of all tests.
        of_servers: Path of a trace to the server that it shows.
    """
    reports = [report for reports in terminal.stats.values() for report in reports]
    makers = {**of_servers, **{path: report.nodeid for report in reports for path in paths_of(report)}}
    if makers:
        terminal.ensure_newline()
        terminal.section("infserver profiles")
        for path, maker in sorted(makers.items(), key=_age):
            terminal.write_line(f"{maker}: {shown(path)}")


def _age(trace: tuple[str, str]) -> float:
    # The notes of several workers are in no order.
    try:
        return Path(trace[0]).stat().st_mtime
    except OSError:
        return 0.0


def shown(path: str) -> str:
    """Return a path as one would type it here, and what opens it."""
    return with_viewer(from_here(path))
