"""What is said of what a server has left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_infserver.errors import LeakError, ProfileError
from pytest_infserver.launcher.diagnosis import messages
from pytest_infserver.launcher.leaks.report import as_known_text, as_text, finding_line, is_allowed
from pytest_infserver.launcher.leaks.temporary_files import PYTORCH_CACHES
from pytest_infserver.launcher.user_code import asked

if TYPE_CHECKING:
    from pytest_infserver.launcher.handle import ServerHandle
    from pytest_infserver.launcher.supervision.exit import Exit


def report_leftovers(server: ServerHandle, profile_problems: list[ProfileError]) -> None:
    """Report on a server that came to its end in order, so that what it has left is its own fault.

    Args:
        server: The server.
        profile_problems: What is wrong with its traces.

    Raises:
        LeakError: It has left something behind.
        ProfileError: A trace is not complete.
    """
    report = server.leak_report
    if report is not None and report.findings:
        text = as_text(str(server), report.findings)
        if report.failed:
            warn_of_profiles(server, profile_problems)
            raise LeakError(text, report.findings)
        known = [*PYTORCH_CACHES, *asked(server).known_leftovers]
        if all(is_allowed(finding, known) for finding in report.findings):
            text = as_known_text(str(server), report.findings)
        server.warn(text)
    elif report is None and server.survivors:
        server.warn(messages.survivors(str(server), server.survivors, server.settings.stop_timeout))
    if profile_problems:
        warn_of_profiles(server, profile_problems[1:])
        raise profile_problems[0]


def warn_of_leftovers(server: ServerHandle) -> None:
    """Say what a server has left behind that had no chance to clean up."""
    report = server.leak_report
    # Its processes were ended before their time: they are not worth a word.
    left = [one for one in report.findings if one.kind not in ("process", "port")] if report is not None else []
    if left:
        server.warn(as_text(str(server), [one._replace(fails=False) for one in left]))


def warn_of_profiles(server: ServerHandle, problems: list[ProfileError]) -> None:
    """Say what is wrong with the traces of a server that had no chance to end in order."""
    for problem in problems:
        server.warn(str(problem))


def end_fields(server: ServerHandle, how: Exit | None) -> dict[str, Any]:
    """Return what the journal says of the end of a server's process.

    Args:
        server: The server.
        how: How its process has ended.
    """
    report = server.leak_report
    fields: dict[str, Any] = {}
    if how is not None:
        fields |= {"how": str(how), "max_rss_bytes": how.max_rss or None}
    if server.survivors:
        fields["survivors"] = [str(process) for process in server.survivors]
    if report is not None and report.findings:
        fields["leaks"] = [{"kind": one.kind, "text": finding_line(one), "fails": one.fails} for one in report.findings]
    return fields
