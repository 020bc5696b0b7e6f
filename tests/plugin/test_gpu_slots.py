"""GPUs: each for one server at a time, in one run and in several, whatever becomes of them. No GPU is needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from isolation import HARD_LIMIT

USE = """
import pytest, time
from helpers import get, note
def test_it(inference_server):
    labels = get(inference_server, "/argv")["env"]["CUDA_VISIBLE_DEVICES"]
    note("use", inference_server.name, labels)
    time.sleep({})
"""
HOOKS = """
import time

def pytest_infserver_server_started(server):
    note("begin", server.name, get(server, "/argv")["env"]["CUDA_VISIBLE_DEVICES"], time.time())


def pytest_infserver_server_stopping(server):
    note("end", server.name, time.time())
"""


@pytest.fixture(autouse=True)
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")


@pytest.fixture
def shared_locks(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let runs know of each other, and of nobody else."""
    monkeypatch.delenv("INFSERVER_DEVICE_LOCKS")
    folder = tmp_path_factory.mktemp("state")
    folder.chmod(0o700)
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(folder))


@pytest.fixture
def gpu_servers(servers_yaml: Callable[..., Path]) -> Callable[..., None]:
    """Write a servers.yaml: ``gpu_servers(a=1, b=2)``."""

    def write(**gpus: int) -> None:
        path = servers_yaml(**{name: [] for name in gpus})
        content = yaml.safe_load(path.read_text())
        for name, count in gpus.items():
            content["servers"][name]["gpus"] = count
        path.write_text(yaml.safe_dump(content))

    return write


def check_that_nobody_shares(events: list[str]) -> None:
    """Follow who has what: ``begin NAME LABELS TIME`` and ``end NAME TIME``."""
    held: dict[str, set[str]] = {}
    for words in sorted((line.split() for line in events), key=lambda words: float(words[-1])):
        if words[0] == "end":
            del held[words[1]]
            continue
        labels = set(words[2].split(","))
        assert labels <= set("4567"), events
        assert all(labels.isdisjoint(other) for other in held.values()), events
        held[words[1]] = labels
    assert not held, events


def test_no_device_is_given_out_twice(twin_project, gpu_servers) -> None:
    sizes = {"one": 1, "two": 2, "four": 4, "other": 1}
    gpu_servers(**sizes)
    twin_project.conftest("from helpers import get\n" + HOOKS)
    twin_project.files(test_1=USE.format(0.3), test_2=USE.format(0))
    result = twin_project.run()
    result.assert_outcomes(passed=8)
    check_that_nobody_shares(twin_project.events("begin", "end"))
    for line in twin_project.events("use"):
        _, name, labels = line.split()
        assert len(labels.split(",")) == sizes[name]
    assert len(twin_project.events("begin")) == 4


def test_more_than_there_are_ends_the_collection(twin_project, gpu_servers) -> None:
    gpu_servers(one=1, eight=8)
    twin_project.files(test_1=USE.format(0))
    result = twin_project.run()
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == pytest.ExitCode.USAGE_ERROR, text
    assert "INTERNALERROR" not in text
    assert "eight needs 8 GPUs" in text
    assert "this run has 4 (CUDA_VISIBLE_DEVICES=4,5,6,7)" in text
    assert twin_project.events() == []
    gpu_servers(two=2, three=3)
    twin_project.files(
        test_1="""
        import pytest
        @pytest.mark.infserver_needs("two", "three")
        def test_both(inference_servers): pass
        """
    )
    result = twin_project.run()
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == pytest.ExitCode.USAGE_ERROR, text
    assert "INTERNALERROR" not in text
    assert "need 5 GPUs together (two: 2 GPUs" in text


def start(project: Any, *arguments: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "pytest", "-p", "pytest_infserver.plugin", "-p", "no:cacheprovider"]
    return subprocess.Popen(
        [*argv, "--infserver-config", "servers.yaml", *arguments],
        cwd=project.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.promise
def test_two_runs_share_the_devices(project, gpu_servers, shared_locks, nothing_left) -> None:
    pytest.importorskip("xdist")
    gpu_servers(a=1, b=3, c=4)
    project.conftest("from helpers import get\n" + HOOKS.replace("server.name", 'f"{server.name}-{os.getpid()}"'))
    (project.path / "conftest.py").write_text("import os\n" + (project.path / "conftest.py").read_text())
    project.files(test_1=USE.format(0.5), test_2=USE.format(0.5))
    runs = [
        start(project, "--infserver-output-dir=logs1"),
        start(project, "--infserver-output-dir=logs2", "-p", "xdist", "-n2"),
    ]
    for one in runs:
        output, _ = one.communicate(timeout=HARD_LIMIT)
        assert one.returncode == 0, output
        assert "6 passed" in output
    check_that_nobody_shares(project.events("begin", "end"))
    assert len(project.events("begin")) >= 6


def test_a_killed_run_frees_its_devices_and_waiting_for_them_costs_little(
    project, gpu_servers, shared_locks, nothing_left
) -> None:
    gpu_servers(a=4)
    project.files(test_1=USE.format("600 if 'hold' in __import__('sys').argv[-1] else 0"))
    holder = start(project, "--infserver-output-dir=hold")
    deadline = time.monotonic() + 60
    while not project.events("use"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    waiter = start(project, "--infserver-output-dir=other")
    assert waiter.stdout is not None
    said = iter(waiter.stdout.readline, "")
    assert any("waits for 4 GPUs that other processes hold" in line for line in said)
    before = psutil.Process(waiter.pid).cpu_times()
    time.sleep(4)
    after = psutil.Process(waiter.pid).cpu_times()
    assert len(project.events("use")) == 1
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait(10)
    output = "".join(said)
    assert waiter.wait(60) == 0, output
    assert "1 passed" in output
    assert len(project.events("use")) == 2
    # A busy loop takes what it can get, beside two others at least a third of two cores.
    assert after.user + after.system - before.user - before.system < 1
