"""Processes of a server that are killed while it is in use."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import create_server
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.reporting.server_state import describe_state

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs pidfd")
CODE = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(1000)  # a worker"])
print("child", child.pid, flush=True)
child.wait()
time.sleep(1000)
"""
Start = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path, nothing_left: None) -> Start:
    """Return what starts a server with one child, and returns both."""

    def begin(**settings: Any) -> tuple[Any, int]:
        command = [sys.executable, "-S", "-c", CODE]
        settings |= {"ready": {"log": "child [0-9]+"}, "startup_timeout": 30, "output_dir": tmp_path}
        server = create_server("command", launch_command=command, **settings).start()
        # The supervisor hears in its own time that the server is ready, and looks for its children then.
        time.sleep(0.5)
        return server, int(server.read_log().split()[-1])

    return begin


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_a_killed_child_is_told(start: Start) -> None:
    server, child = start()
    warnings: list[str] = []
    server.on_warning = warnings.append
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: warnings)
    assert f"{server}: its process {child} (" in warnings[0]
    assert warnings[0].endswith("# a worker) was killed by SIGKILL, while it was in use")
    events = [json.loads(line) for line in server.log_path.with_name("events.jsonl").read_text().splitlines()]
    [died] = [event for event in events if event["event"] == "child_died"]
    assert died["how"] in warnings[0]
    words = describe_state(server.runtime.view(), attached=False)
    assert f"its process {child} (" in words
    assert "# a worker) was killed by SIGKILL, 0." in words
    assert server.state is ServerState.READY
    server.stop()


def test_it_may_be_the_server_s_end(start: Start) -> None:
    server, child = start(on_child_death="fail")
    warnings: list[str] = []
    server.on_warning = warnings.append
    os.kill(child, signal.SIGABRT)
    assert server.wait_death(20)
    assert f"after its process {child} (" in server.why_died()
    assert "was killed by SIGABRT" in server.why_died()
    server.stop()
    # That is told as the reason of its end.
    assert warnings == []


def test_the_end_of_a_server_is_no_death_of_its_children(start: Start) -> None:
    server, _ = start(on_child_death="fail")
    process = server.runtime.process
    server.stop()
    assert process.child_deaths == []
    assert process.exit.stopped_by is None
