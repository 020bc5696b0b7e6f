"""What a test's reports carry about the servers it has used: from the process that runs it to the one that shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.run import Run

ATTRIBUTE = "infserver"
"""Of a report: what xdist passes on has to be made of plain values."""
SERVER, BACKEND, URL, LOG = "infserver_server", "infserver_backend", "infserver_url", "infserver_log"
NODE = "infserver_node"
"""Names of the properties of a test, also in JUnit's XML."""
FACTORY = " (factory)"
"""Behind the name of a server that a test has started with `inference_server_factory`."""


@dataclass(frozen=True)
class Use:
    """A test's use of one server.

    Attributes:
        label: What the server is called among those of the run.
        server: The server.
        launch: Which launch of it the test began with.
        log_start: Size of its log, in bytes, when the test began.
    """

    label: str
    server: InferenceServer
    launch: int
    log_start: int


def uses_in(run: Run) -> list[Use]:
    """Return the running test's use of its servers."""
    leased = [Use(*use) for use in run.uses()]
    return leased + [
        Use(f"{server.name}{FACTORY}", server, server.launches, start) for server, start in run.extra_servers
    ]


def add_properties(report: pytest.TestReport, item: pytest.Item, uses: Iterable[Use]) -> None:
    """Make it known on which servers a test runs, once for each server.

    Args:
        report: That of the phase that has ended.
        item: The test; the reports of its next phases take its properties.
        uses: Its servers.
    """
    known = {value for name, value in item.user_properties if name == SERVER}
    for use in uses:
        if use.label in known:
            continue
        server = use.server
        found = [
            (SERVER, use.label),
            (BACKEND, server.backend_name),
            # Only what the user wrote may hold a secret; looking for those takes its time in each test.
            (URL, clean(server.server_url, server.secrets) if server.attached else server.server_url),
        ]
        if not server.attached:
            found.append((LOG, str(server.log_path)))
        if server.node is not None:
            found.append((NODE, server.node))
        secrets = server.secrets
        found = [(name, clean(value, secrets)) for name, value in found]
        item.user_properties += found
        report.user_properties += found


def attach_uses(
    report: pytest.TestReport, uses: Iterable[Use], count: Callable[[Use], dict[str, float] | None]
) -> None:
    """Let a report carry what the test has used so far.

    Args:
        report: The report.
        uses: The test's servers.
        count: Returns what an engine has counted during the test.
    """
    found = [
        {
            "name": use.label,
            "launch": use.launch,
            "log_start": use.log_start,
            "log_end": max(use.log_start, use.server.log_size),
            # After the end of the log: engines log that they are asked.
            "metrics": count(use),
        }
        for use in uses
    ]
    setattr(report, ATTRIBUTE, found)


def uses_of(report: pytest.TestReport) -> list[dict[str, Any]]:
    """Return what a report carries; nothing, if it is one of a call that went well."""
    return list(getattr(report, ATTRIBUTE, ()))
