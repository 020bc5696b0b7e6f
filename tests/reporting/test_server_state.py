"""How a server's state reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pytest_infserver.launcher.health.heartbeat import Pulse
from pytest_infserver.launcher.runtime.view import View
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.reporting.server_state import describe_state
from pytest_infserver.system.http.probe import Answer

GOOD = Pulse(Answer(200, "", 0.003), 2.0, 2.0, None, 5, 300)
BAD = Pulse(Answer(503, "", 0.003), 0.5, 7.0, 4.0, 5, 300)
READY = View(8000, 4711, 4710, True, 1, Path("log"), 0, 1.0, ServerState.READY, 12.3, None, None, GOOD)
ON_NODE = dataclasses.replace(READY, node="gpu-1 (10.0.0.7)", silent=1.9)
DIED = dataclasses.replace(READY, pid=None, state=ServerState.DIED, dead_seconds=1.0, how="exited with code 3")


@pytest.mark.parametrize(
    ("view", "line"),
    [
        (READY, "ready, up 12 s, pid 4711"),
        (dataclasses.replace(READY, launches=3), "ready, up 12 s, pid 4711, launch 3 of this run"),
        (dataclasses.replace(READY, launches=0), "ready, up 12 s, pid 4711, taken over from an earlier run"),
        (ON_NODE, "ready, up 12 s, pid 4711 on gpu-1 (10.0.0.7)"),
        (
            dataclasses.replace(ON_NODE, silent=22.4),
            "ready, up 12 s, pid 4711 on gpu-1 (10.0.0.7), which has not answered for 22 s",
        ),
        (
            dataclasses.replace(DIED, node="gpu-1 (10.0.0.7)", silent=70.0),
            "died: exited with code 3, 1.0 s ago, after 12 s on gpu-1 (10.0.0.7)",
        ),
        (
            dataclasses.replace(DIED, how="died: its node gpu-2 (10.0.0.8) was lost"),
            "died: its node gpu-2 (10.0.0.8) was lost, 1.0 s ago, after 12 s",
        ),
        (DIED, "died: exited with code 3, 1.0 s ago, after 12 s"),
        (dataclasses.replace(READY, state=ServerState.STARTING, seconds=3.2), "starting, for 3.2 s, pid 4711"),
        (dataclasses.replace(READY, state=ServerState.STOPPED, seconds=None, pid=None), "stopped"),
    ],
)
def test_state(view: View, line: str) -> None:
    assert describe_state(view, attached=False).split("\n")[0] == line


def test_an_attached_server_has_no_process() -> None:
    view = dataclasses.replace(READY, pid=None, launches=0)
    text = describe_state(view, attached=True)
    assert text == "ready, up 12 s, attached: not started by this run\nheartbeat: answered 200 in 3 ms, 2.0 s ago"


@pytest.mark.parametrize(
    ("view", "line"),
    [
        (READY, "answered 200 in 3 ms, 2.0 s ago"),
        (
            dataclasses.replace(READY, pulse=BAD),
            "failing for 4.0 s (hang_timeout 300 s): answered 503 in 3 ms, 0.5 s ago; last good answer 7.0 s ago",
        ),
        (
            dataclasses.replace(
                READY, pulse=dataclasses.replace(BAD, last=Answer(None, "gave no answer", 5), good_age=None)
            ),
            "failing for 4.0 s (hang_timeout 300 s): gave no answer, 0.5 s ago; no good answer so far",
        ),
        (
            dataclasses.replace(READY, pulse=Pulse(None, None, None, None, 5, 300)),
            "none yet, the first comes after heartbeat_interval 5 s",
        ),
        (
            dataclasses.replace(READY, pulse=dataclasses.replace(GOOD, still=True)),
            "answered 200 in 3 ms, 2.0 s ago, paused now (debugger or profiler)",
        ),
        (dataclasses.replace(READY, pulse=None), "not known, the process of the pool did not answer"),
        # Checks that fail since its end say nothing.
        (dataclasses.replace(DIED, pulse=dataclasses.replace(BAD, failing_for=0.9)), "last good answer 7.0 s ago"),
        (
            dataclasses.replace(DIED, dead_seconds=0.1, pulse=BAD),
            "failing for 4.0 s (hang_timeout 300 s): answered 503 in 3 ms, 0.5 s ago; last good answer 7.0 s ago",
        ),
    ],
)
def test_heartbeat(view: View, line: str) -> None:
    assert describe_state(view, attached=False).split("\n")[1] == f"heartbeat: {line}"


def test_a_server_that_does_not_run_has_no_heartbeat() -> None:
    for view in (dataclasses.replace(READY, state=ServerState.STARTING), dataclasses.replace(DIED, pulse=None)):
        assert "heartbeat" not in describe_state(view, attached=False)
