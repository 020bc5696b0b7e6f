"""Puts what a server did during a test into that test's report."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

import pytest

from pytest_infserver.launcher.liveness import notice_death
from pytest_infserver.launcher.redaction import redact

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.run import Run

MAX_LOG = 16 * 1024
"""Bytes of a server's log that one section shows."""
_MAX_RUN = 5


def add_server_sections(report: pytest.TestReport, run: Run) -> pytest.TestReport:
    """Make a test whose server died fail, and show a failed test's server logs.

    Args:
        report: The report of one phase.
        run: Knows the test's servers.
    """
    for server, log_start in run.servers_in_use():
        notice_death(server, thorough=report.failed)
        reason = run.death(server)
        if reason is not None:
            _fail(report, reason)
        if report.failed and not server.attached:
            _add_log(report, server, log_start)
    return report


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


def _add_log(report: pytest.TestReport, server: InferenceServer, log_start: int) -> None:
    text = _log(server, log_start)
    if text or server.running:
        report.sections.append((_title(server, report.when), text or "(nothing)"))


def _title(server: InferenceServer, when: str | None) -> str:
    during = "start" if when == "setup" and not server.running else "this test"
    return f"{server.name}: log during {during} ({server.get_backend_name()}, {server.server_url}, {server.log_path})"


def _log(server: InferenceServer, log_start: int) -> str:
    text = server.read_log(log_start, MAX_LOG).rstrip()
    if not text:
        return ""
    secrets = server.secrets
    if server.log_size - log_start > MAX_LOG:
        # What is left of a secret that the limit has cut in two must go as well.
        note, _, rest = text.partition("\n")
        text = f"{note}\n{rest[max(map(len, secrets), default=0) :]}"
    return _collapsed(redact(text, secrets))


def _collapsed(text: str) -> str:
    """Return the text with long runs of lines that differ only in numbers cut short."""
    lines: list[str] = []
    for _, group in itertools.groupby(text.split("\n"), lambda line: re.sub(r"[0-9]+", "0", line)):
        run = list(group)
        if len(run) > _MAX_RUN:
            run = [run[0], f"[... {len(run) - 2} similar lines left out]", run[-1]]
        lines += run
    return "\n".join(lines)
