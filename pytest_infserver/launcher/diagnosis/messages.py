"""The texts that tell a user what went wrong with a server, why, where to look and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_infserver.errors import InferenceServerError, PortInUseError, ServerStartupError, ServerStartupTimeout
from pytest_infserver.launcher.command import Command
from pytest_infserver.launcher.diagnosis import root_cause
from pytest_infserver.launcher.diagnosis.log import ServerLog
from pytest_infserver.launcher.diagnosis.memory_finding import Finding, Whom
from pytest_infserver.launcher.startup.readiness import NotReady
from pytest_infserver.launcher.supervision.supervised_process import ServerProcess, Survivor
from pytest_infserver.system.text import clean, shortened

_LAST_LINES = 5
_NO_CAUSE = "no line of its log names one, these are the last"
_NO_LOG = "unknown, it wrote nothing"
_MAX_COMMAND = 4000


def startup_error(
    who: str,
    outcome: NotReady,
    cause: str | None,
    command: Command,
    log: ServerLog,
    log_start: int,
    port_taken: bool,
    advice: Sequence[str] = (),
    finding: Finding | None = None,
) -> ServerStartupError:
    """Return the error for a server that did not become ready.

    Args:
        who: The server.
        outcome: What happened.
        cause: The line of its log that says why.
        command: Its command.
        log: Its log.
        log_start: Byte at which this launch begins.
        port_taken: Whether the log says that a port was taken that another launch may exchange.
        advice: What else could be the reason.
        finding: What the kernel had to do with it.
    """
    tail = root_cause.last_lines(log, _LAST_LINES, log_start, command.secrets)
    unknown = _NO_CAUSE if tail else _NO_LOG
    lines = [f"{who} {_with_finding(outcome, finding)}"]
    lines += _causes(cause or unknown, finding, advice)
    lines += [f"  command: {shortened(str(command), _MAX_COMMAND)}", f"  log:     {log.path}"]
    lines += [f"  | {line}" for line in tail if line != cause]
    if outcome.timed_out:
        lines.append(f"  What to do: {_more_time(outcome)}")
    elif outcome.misplaced:
        lines.append("  What to do: let it listen on 'host'; in a 'launch_command' that is {host}.")
    elif outcome.foreign_listener:
        lines.append("  What to do: set 'port' to one that nobody else uses.")
    text = clean("\n".join(lines), command.secrets)
    code = None if outcome.exit is None else outcome.exit.code
    kind: type[ServerStartupError] = ServerStartupTimeout if outcome.timed_out else ServerStartupError
    # A server that reports a taken port is started again elsewhere, if the port was not the user's choice.
    if outcome.foreign_listener or port_taken:
        kind = PortInUseError
    return kind(text, exit_code=code, log_path=log.path)


def repeated(text: str, first: str) -> str:
    """Return an error that was shown already in one line.

    Args:
        text: The error.
        first: The test that shows all of it.
    """
    head, *rest = text.splitlines()
    if not rest:
        return text
    label = "  cause:"
    cause = next((line[len(label) :].strip() for line in rest if line.startswith(label)), _NO_CAUSE)
    because = "" if cause in (_NO_CAUSE, _NO_LOG) else f": {cause}"
    return f"{head}{because} (all of it is shown with {first})"


def _with_finding(outcome: NotReady, finding: Finding | None) -> str:
    if finding is None or outcome.exit is None:
        return outcome.problem
    how = str(outcome.exit)
    return outcome.problem.replace(how, finding.end(how, outcome.exit.code), 1)


def _causes(cause: str | None, finding: Finding | None, advice: Sequence[str] = ()) -> list[str]:
    texts = [*([] if cause is None else [cause]), *advice]
    if finding is not None and finding.whom is not Whom.SOMEBODY:
        # The kernel knows it; the log of a process that was killed cannot say why.
        texts = [*finding.lines]
    lines = _labelled("cause", texts)
    if finding is not None and finding.whom is Whom.SOMEBODY:
        lines += _labelled("memory", finding.lines)
    return lines


def _labelled(label: str, texts: Sequence[str]) -> list[str]:
    return [f"  {f'{label}:' if not number else '':8} {text}" for number, text in enumerate(texts)]


def _more_time(outcome: NotReady) -> str:
    more_time = "raise startup_timeout (--infserver-startup-timeout) if it only needs more time"
    if outcome.stalled:
        return "check the network and the hub, or raise 'download_stall_timeout'."
    if outcome.status is not None:
        key = "ready" if outcome.own_probe else "health_endpoint"
        return f"check '{key}', or {more_time}."
    if outcome.own_probe:
        return f"check what 'ready' asks for, or {more_time}."
    return f"check that it listens on this host and port, or {more_time}."


def how_died(process: ServerProcess, why_killed: str | None, finding: Finding | None) -> str:
    """Return how a server has died, in words that follow its name.

    Args:
        process: Its process, which has ended.
        why_killed: Why it was ended before its time, or None.
        finding: What the kernel had to do with it.
    """
    how = process.exit
    words = why_killed or str(how)
    if why_killed is None and how is not None and how.background is not None:
        words += f" and went into the background as process {how.background} (run it in the foreground)"
    # What the kernel says of it says more.
    is_told = finding is None and why_killed is None and how is not None and how.stopped_by is None
    if is_told and process.child_deaths:
        words += f" after its {process.child_deaths[0][1]}"
    return words if finding is None else finding.end(words, None if how is None or why_killed else how.code)


def death(
    who: str, how: str, cause: str | None, log_path: Path, secrets: frozenset[str], finding: Finding | None = None
) -> str:
    """Return how and why a server that had been ready ended."""
    lines = [f"{who} {how}, while it was in use", *_causes(cause, finding)]
    lines.append(f"  log:     {log_path}")
    return clean("\n".join(lines), secrets)


def hide_secrets(error: BaseException, secrets: frozenset[str]) -> None:
    """Clean the text of one of our errors, which may quote paths, URLs and what other programs have said."""
    if isinstance(error, InferenceServerError) and error.args:
        error.args = (clean(str(error), secrets), *error.args[1:])


def survivors(who: str, processes: Sequence[Survivor], stop_timeout: float) -> str:
    """Return which processes did not end with their server."""
    lines = [f"{who}: {len(processes)} of its processes did not end by themselves (stop_timeout {stop_timeout:g} s):"]
    lines += [f"  {process}" for process in processes]
    lines.append("  They were killed." if not any(process.stuck for process in processes) else "")
    return "\n".join(line for line in lines if line)
