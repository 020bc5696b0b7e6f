"""Puts what a server did during a test into that test's report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_infserver.errors import UserCodeError
from pytest_infserver.launcher.liveness import notice_death
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.reporting.log_text import excerpt
from pytest_infserver.reporting.server_state import describe_state
from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pytest_infserver.launcher.follower import View
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.run import Run

_KEYED = (
    "API key: one of this run; inference_client brings it along, other requests need the header"
    " 'Authorization: Bearer ...' with inference_server.api_key"
)
MAX_LOG = 16 * 1024
"""Bytes of a server's log that one section shows."""


def add_server_sections(report: pytest.TestReport, run: Run) -> pytest.TestReport:
    """Make a test whose server died fail, and show in a failed one how its servers are and what they wrote.

    Args:
        report: The report of one phase.
        run: Knows the test's servers.
    """
    for server, log_start in run.servers_in_use():
        problem = _backend_problem(server, report)
        reason = run.death(server)
        if reason is not None:
            _fail(report, reason)
        if report.failed:
            view = run.view(server)
            _add_state(report, run, server, view)
            if problem is not None:
                report.sections.append((f"{server.name}: its backend failed while this was reported", problem))
            if not server.attached:
                # What was on its way from a node when the test began may never have come.
                begin = log_start if server.node is None else min(log_start, server.log_size)
                _add_log(report, run, server, begin, view.log_end)
    return report


def _backend_problem(server: InferenceServer, report: pytest.TestReport) -> str | None:
    """Wait for the news of an end that is on its way; return what the server's backend has raised when asked."""
    try:
        notice_death(server, thorough=report.failed)
    except UserCodeError as error:
        return str(error)
    return None


def _fail(report: pytest.TestReport, reason: str) -> None:
    if report.failed:
        report.sections.insert(0, ("inference server died during this test", reason))
        crash = getattr(report.longrepr, "reprcrash", None)
        if crash is not None:
            # What the summary shows in one line: the broken connection is only the consequence.
            crash.message = f"{reason.splitlines()[0]}: {crash.message}"
        return
    # A skip or an expected failure does not hide a dead server.
    report.outcome = "failed"
    report.longrepr = reason
    if hasattr(report, "wasxfail"):
        del report.wasxfail


def _add_state(report: pytest.TestReport, run: Run, server: InferenceServer, view: View) -> None:
    # Its start error says all about one that does not run.
    if _not_started(run, server):
        return
    text = clean(describe_state(view, attached=server.attached), server.secrets)
    if run.cluster is not None and server.name in run.cluster.keyed:
        text += f"\n{_KEYED}"
    # Where it runs stands above its log, if it has one.
    where = f" ({server.backend_name}, {server.server_url})" if server.attached else ""
    report.sections.append((f"{server.name}: state{where}", text))


def _add_log(report: pytest.TestReport, run: Run, server: InferenceServer, log_start: int, log_end: int | None) -> None:
    text = _log(server, log_start, log_end)
    if text or server.running:
        during = "start" if _not_started(run, server) else "this test"
        where = f"{server.backend_name}, {server.server_url}, {server.log_path}"
        report.sections.append((f"{server.name}: log during {during} ({where})", text or "(nothing)"))


def _not_started(run: Run, server: InferenceServer) -> bool:
    lease = run.leases.get(server.name)
    could_not_be_had = lease is not None and lease.server is server and lease.error is not None
    return not server.running and (could_not_be_had or server.state in (ServerState.NEW, ServerState.FAILED))


def _log(server: InferenceServer, log_start: int, log_end: int | None) -> str:
    text, left_out = excerpt(server, log_start, log_end, MAX_LOG)
    return f"[... {left_out} bytes left out, see {server.log_path}]\n{text}" if text and left_out else text
