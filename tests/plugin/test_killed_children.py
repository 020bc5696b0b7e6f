"""A process of a server that is killed while tests use the server: told, and no failure by itself."""

from __future__ import annotations

import re
import sys

import pytest
from fake_servers import fake_block

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs pidfd")
TESTS = """
import json, os, signal, time
import psutil

def kill_one(server):
    # The watch begins a moment after the server is ready: it is one of them that is seen.
    events = server.log_path.with_name("events.jsonl")
    for child in psutil.Process(server.pid).children():
        os.kill(child.pid, signal.SIGKILL)
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            if "child_died" in events.read_text():
                return
            time.sleep(0.05)
    raise AssertionError("no end was seen")

def test_passes(inference_server):
    kill_one(inference_server)
    if os.environ.get("WAITS"):
        assert inference_server.wait_death(20)

def test_fails(inference_server):
    assert inference_server.check_health()
    assert False, "of its own accord"
"""
TOLD = r"\bits process \d+ \(.*\) was killed by SIGKILL"


def test_it_is_told_and_fails_nothing(twin_project, quiet) -> None:
    twin_project.servers(mine=["--children", "20"])
    twin_project.files(test_it=TESTS)
    result = twin_project.run()
    assert twin_project.outcomes("test_it") == {"passed": 1, "failed": 1}
    text = quiet(result)
    section, summary = text.split("mine: state", 1)[1].split("= infserver =", 1)
    assert re.search(TOLD + r", \d+(\.\d)? s ago", section), text
    # That test passed: the summary says it.
    assert re.search("mine.*: " + TOLD + ", while it was in use", summary), text


def test_it_may_be_the_server_s_end(twin_project, quiet, monkeypatch) -> None:
    twin_project.servers(mine=fake_block("--children", "20", on_child_death="fail"))
    # Alone: a test beside it, in another worker, may meet the server alive, dead or started again.
    twin_project.files(test_it=TESTS.split("def test_fails")[0])
    monkeypatch.setenv("WAITS", "1")
    result = twin_project.run()
    assert twin_project.outcomes("test_it") == {"failed": 1}
    text = quiet(result)
    assert re.search(r"on_child_death: fail\) after " + TOLD, text), text
