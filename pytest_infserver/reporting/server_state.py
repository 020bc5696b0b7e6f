"""How a server is, in a few words for the report of a test that has failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_infserver.launcher.state import ServerState
from pytest_infserver.system.http.probe import Answer
from pytest_infserver.system.text import shortened

if TYPE_CHECKING:
    from pytest_infserver.launcher.health.heartbeat import Pulse
    from pytest_infserver.launcher.runtime.view import View


_MAX_COMMAND = 4000
_MAX_DEATHS = 8
_SILENT = 5.0
"""Seconds without a word after which a node is said to be silent; it answers every 2 s."""
_DYING = 1.0
"""Seconds before its end in which a server does not answer any more because it dies."""


def describe_state(view: View, *, attached: bool) -> str:
    """Return a server's state and its last heartbeat; secrets are not hidden yet.

    Args:
        view: What is known of the server.
        attached: Whether it was not started by this package.
    """
    lines = [_state(view, attached)]
    lines += [f"its {what}, {_ago(seconds)}" for seconds, what in view.child_deaths[:_MAX_DEATHS]]
    if len(view.child_deaths) > _MAX_DEATHS:
        lines.append(f"and {len(view.child_deaths) - _MAX_DEATHS} more of its processes")
    # Of one that has died there is none left while it is started again.
    if view.state is ServerState.READY or (view.state is ServerState.DIED and view.pulse is not None):
        lines.append(f"heartbeat: {_heartbeat(view)}")
    if view.command is not None and not attached:
        lines.append(f"command: {shortened(view.command, _MAX_COMMAND)}")
    return "\n".join(lines)


def _state(view: View, attached: bool) -> str:
    if view.state is ServerState.DIED:
        how = (view.how or "nobody knows how").removeprefix("died: ")
        text = f"died: {how}{_time(', {} s ago', view.dead_seconds)}"
        text += _time(", after {} s", view.seconds)
    else:
        since = ", for {} s" if view.state is ServerState.STARTING else ", up {} s"
        text = f"{view.state}{'' if view.awake else ', asleep'}{_time(since, view.seconds)}"
    if view.pid is not None:
        text += f", pid {view.pid}"
    if view.node is not None:
        text += f" on {view.node}"
        if view.silent is not None and view.silent > _SILENT and view.state is not ServerState.DIED:
            text += f", which has not answered for {_shown(view.silent)} s"
    if attached:
        text += ", attached: not started by this run"
    elif view.launches > 1:
        text += f", launch {view.launches} of this run"
    elif not view.launches and view.state in (ServerState.READY, ServerState.DIED):
        text += ", taken over from an earlier run"
    return text


def _heartbeat(view: View) -> str:
    pulse = view.pulse
    if pulse is None:
        return "not known, the process of the pool did not answer"
    still = ", paused now (debugger or profiler)" if pulse.still else ""
    if pulse.last is None or pulse.age is None:
        return f"none yet, the first comes after heartbeat_interval {pulse.interval:g} s{still}"
    if pulse.failing_for is None:
        return f"{_answer(pulse.last)}, {_ago(pulse.age)}{still}"
    if view.dead_seconds is not None and pulse.failing_for <= view.dead_seconds + _DYING:
        # It fails because the server is dead.
        return _last_good(pulse)
    failing = f"failing for {_shown(pulse.failing_for)} s (hang_timeout {pulse.hang_timeout:g} s)"
    return f"{failing}: {_answer(pulse.last)}, {_ago(pulse.age)}; {_last_good(pulse)}{still}"


def _answer(answer: Answer) -> str:
    return f"{answer} in {answer.seconds * 1000:.0f} ms" if answer.status is not None else str(answer)


def _last_good(pulse: Pulse) -> str:
    return "no good answer so far" if pulse.good_age is None else f"last good answer {_ago(pulse.good_age)}"


def _ago(seconds: float | None) -> str:
    return "" if seconds is None else f"{_shown(seconds)} s ago"


def _time(text: str, seconds: float | None) -> str:
    return "" if seconds is None else text.format(_shown(seconds))


def _shown(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"
