"""Links in the report of pytest-html, if that is made: to the logs of a test's servers and to its traces."""

from __future__ import annotations

import html
import os
import urllib.parse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_infserver.reporting.paths import relative

if TYPE_CHECKING:
    from pytest_infserver.reporting.record.uses import Use


def add_html_extras(report: pytest.TestReport, config: pytest.Config, uses: Iterable[Use], traces: list[str]) -> None:
    """Add links to a report, if pytest-html 4 is going to write it.

    Args:
        report: That of the teardown: pytest-html shows what all reports of a test bring.
        config: pytest's configuration.
        uses: The test's servers.
        traces: Paths of what a profiler has written for it.
    """
    path = config.getoption("htmlpath", None)
    if not path:
        return
    # As pytest-html does it itself, and before a test could change the working directory.
    folder = (config.invocation_params.dir / Path(os.path.expandvars(path)).expanduser()).parent
    links = [_link(f"{use.label}: log", use.server.log_path, folder) for use in uses if not use.server.attached]
    links += [_link(Path(trace).name, trace, folder) for trace in traces]
    report.extras = [*getattr(report, "extras", ()), *links]  # type: ignore[attr-defined]


def _link(name: str, path: Path | str, folder: Path) -> dict[str, Any]:
    # It puts both into HTML as they are.
    target = urllib.parse.quote(relative(path, folder), errors="surrogateescape")
    return {"name": html.escape(name), "format_type": "url", "content": target, "mime_type": None, "extension": None}
