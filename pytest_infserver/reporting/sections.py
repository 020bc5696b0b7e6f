"""Puts what a server did during a test into that test's report."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

import pytest

from pytest_infserver.errors import ServerStartupTimeout, UserCodeError
from pytest_infserver.launcher.health.liveness import notice_death
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.reporting.log_text import MAX_LINES, excerpt
from pytest_infserver.reporting.proxy_note import proxy_note
from pytest_infserver.reporting.server_state import describe_state
from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pytest_infserver.launcher.runtime.view import View
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.run import Run

_KEYED = (
    "API key: one of this run; inference_client brings it along, other requests need the header"
    " 'Authorization: Bearer ...' with inference_server.api_key"
)
_LINES_OF_A_WAIT = 20
"""Of a server that was never ready little is said but that it was asked again and again."""
_BYTES_OF_A_LINE = 200
_MAX_WANTED = 4 * 1024 * 1024
"""Bytes that --infserver-log-lines may make of it."""
MAX_LOG = 16 * 1024
"""Bytes of a server's log that one section shows."""


def add_server_sections(report: pytest.TestReport, run: Run) -> pytest.TestReport:
    """Make a test whose server died fail, and show in a failed one how its servers are and what they wrote.

    Args:
        report: The report of one phase.
        run: Knows the test's servers.
    """
    if report.failed and run.item is not None:
        report.sections += [(f"{name}: ended before this test", text) for name, text in run.holds.left_behind(run.item)]
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
    # Who has put it to sleep is this process, not the one that runs it.
    view = dataclasses.replace(view, awake=server.runtime.status.awake)
    text = clean(describe_state(view, attached=server.attached), server.secrets)
    if run.cluster is not None and server.name in run.cluster.keyed:
        text += f"\n{_KEYED}"
    proxy = None if server.reach.uds is not None else proxy_note(server.server_url, os.environ)
    if proxy is not None:
        text += f"\n{proxy}"
    # Where it runs stands above its log, if it has one.
    where = f" ({server.backend_name}, {server.server_url})" if server.attached else ""
    report.sections.append((f"{server.name}: state{where}", text))


def _add_log(report: pytest.TestReport, run: Run, server: InferenceServer, log_start: int, log_end: int | None) -> None:
    lease = run.leases.get(server.name)
    never_ready = lease is not None and isinstance(lease.error, ServerStartupTimeout)
    wanted = run.settings.log_lines
    most = wanted or (_LINES_OF_A_WAIT if never_ready else MAX_LINES)
    limit = MAX_LOG if wanted is None else max(MAX_LOG, min(wanted * _BYTES_OF_A_LINE, _MAX_WANTED))
    text, left_out = excerpt(server, log_start, log_end, limit, most)
    if text and left_out:
        text = f"[... {left_out} bytes left out, see {server.log_path}]\n{text}"
    if text or server.running:
        during = "start" if _not_started(run, server) else "this test"
        where = f"{server.backend_name}, {server.server_url}, {server.log_path}"
        report.sections.append((f"{server.name}: log during {during} ({where})", text or "(nothing)"))


def _not_started(run: Run, server: InferenceServer) -> bool:
    lease = run.leases.get(server.name)
    could_not_be_had = lease is not None and lease.server is server and lease.error is not None
    return not server.running and (could_not_be_had or server.state in (ServerState.NEW, ServerState.FAILED))
