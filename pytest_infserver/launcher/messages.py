"""The texts that tell a user what went wrong with a server, why, where to look and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pytest_infserver.errors import PortInUseError, ServerStartupError, ServerStartupTimeout
from pytest_infserver.launcher import diagnosis
from pytest_infserver.launcher.command import Command
from pytest_infserver.launcher.log import ServerLog
from pytest_infserver.launcher.process import Survivor
from pytest_infserver.launcher.readiness import NotReady
from pytest_infserver.launcher.redaction import redact

_LAST_LINES = 5


def startup_error(
    who: str,
    outcome: NotReady,
    command: Command,
    log: ServerLog,
    log_start: int,
    patterns: Sequence[re.Pattern[bytes]],
) -> ServerStartupError:
    """Return the error for a server that did not become ready."""
    cause = diagnosis.root_cause(log, patterns, log_start)
    lines = [f"{who} {outcome.problem}"]
    if cause:
        lines.append(f"  cause:   {cause}")
    else:
        lines.append("  cause:   unknown, it wrote nothing")
    lines += [f"  command: {command}", f"  log:     {log.path}"]
    tail = [line for line in diagnosis.last_lines(log, _LAST_LINES, log_start) if line != cause]
    lines += [f"  | {line}" for line in tail]
    if outcome.timed_out:
        lines.append("  If it only needs more time, raise startup_timeout (--infserver-startup-timeout).")
    text = redact("\n".join(lines), command.secrets)
    code = None if outcome.exit is None else outcome.exit.code
    kind: type[ServerStartupError] = ServerStartupTimeout if outcome.timed_out else ServerStartupError
    # A server that reports a taken port is started again elsewhere, if the port was not the user's choice.
    if outcome.foreign_listener or (
        outcome.exit is not None and diagnosis.matches(log, diagnosis.ADDRESS_IN_USE, log_start)
    ):
        kind = PortInUseError
    return kind(text, exit_code=code, log_path=log.path)


def death(who: str, how: str, cause: str | None, log_path: Path, command: Command) -> str:
    """Return how and why a server that had been ready ended."""
    lines = [f"{who} {how}, while it was in use"]
    if cause:
        lines.append(f"  cause:   {cause}")
    lines.append(f"  log:     {log_path}")
    return redact("\n".join(lines), command.secrets)


def survivors(who: str, processes: Sequence[Survivor], stop_timeout: float) -> str:
    """Return which processes did not end with their server."""
    lines = [f"{who}: {len(processes)} of its processes did not end by themselves (stop_timeout {stop_timeout:g} s):"]
    lines += [f"  {process}" for process in processes]
    lines.append("  They were killed." if not any(process.stuck for process in processes) else "")
    return "\n".join(line for line in lines if line)
