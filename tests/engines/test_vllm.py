"""vLLM's own faults, through the plain API and through the plugin."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pytest_infserver import (
    ConfigError,
    InferenceServer,
    PortInUseError,
    ServerStartupError,
    ServerStartupTimeout,
)

from .answers import CHECKS
from .conftest import NAMES, SERVERS, all_gone, occupied_while_booting, terminate_when, title, tree

pytestmark = pytest.mark.engine("vllm")
Make = Callable[..., InferenceServer]
LONG = 600.0
"""Seconds for what takes half a minute on an idle machine."""


def test_plain_api_and_a_kill_of_the_main_process(make_server: Make) -> None:
    phases: list[str] = []
    server = make_server("vllm")
    server.on_wait = lambda one: phases.append(one.phase) if one.phase not in phases else None
    server.start()
    assert phases[0] == "importing"
    assert "starting the engine" in phases
    for check in CHECKS:
        check(server)
    processes = tree(server)
    assert len(processes) >= 4
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    assert server.wait_death(60)
    assert "vllm was killed by SIGKILL, while it was in use" in str(server.why_died())
    server.stop()
    # By itself vLLM 0.32 leaves its engine and workers running for minutes.
    assert all_gone(processes)


@pytest.mark.parametrize(
    ("arguments", "env", "codes", "cause"),
    [
        ({"no-such-flag": True}, {}, [2], "vllm: error: unrecognized arguments: --no-such-flag"),
        # It ends by itself some 5 s after the fatal line, which is as long as it is given.
        pytest.param(
            {},
            {"VLLM_CPU_KVCACHE_SPACE": "4000"},
            [None, 1],
            "ERROR {} ValueError: Available memory on node 0",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_a_start_that_fails_names_the_cause(
    make_server: Make, arguments: dict[str, object], env: dict[str, str], codes: list[int | None], cause: str
) -> None:
    server = make_server("vllm", arguments, env_vars=env)
    with pytest.raises(ServerStartupError) as caught:
        server.start()
    line = str(caught.value).splitlines()[1]
    assert all(part in line for part in cause.split(" {} ")), str(caught.value)
    assert not isinstance(caught.value, ServerStartupTimeout)
    assert caught.value.exit_code in codes


def test_a_missing_model(make_server: Make) -> None:
    with pytest.raises(ServerStartupError) as caught:
        make_server("vllm", model="/no/such/model").start()
    assert "HFValidationError: " in str(caught.value).splitlines()[1]
    assert "a path that does not exist on this machine: /no/such/model" in str(caught.value)


def test_a_port_that_is_taken_while_it_boots(make_server: Make) -> None:
    server = make_server("vllm", port=8991)
    with occupied_while_booting(server), pytest.raises(PortInUseError) as caught:
        server.start()
    assert "[Errno 98] Address already in use" in str(caught.value).splitlines()[1]
    assert server.launches == 1


def test_options_of_the_seed_that_vllm_has_dropped(make_server: Make) -> None:
    warnings: list[str] = []
    server = make_server("vllm", {"kv-cache-dtype": {"auto": "fp8"}})
    server.on_warning = warnings.append
    with pytest.raises(ConfigError, match=r"vllm 0\.32\.0\S* takes no such value for --kv-cache-dtype: write its"):
        server.start()
    assert server.launches == 0


@pytest.mark.nightly
def test_sigterm_while_it_imports(make_server: Make) -> None:
    server = make_server("vllm")
    seen = terminate_when(server, lambda one: (one.runtime.starting_seconds or 0) > 2)
    with pytest.raises(ServerStartupError, match="vllm was killed by SIGTERM, before it was ready"):
        server.start()
    assert seen
    assert all_gone(seen)


def test_sigterm_to_pytest_while_the_engine_starts(tmp_path: Path, no_engine_left: None) -> None:
    """A vLLM that is starting ignores SIGTERM: it must be gone all the same."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text("def test_it(inference_server):\n    pass\n")
    options = ["-p", "no:cacheprovider", f"--infserver-config={SERVERS}", f"--infserver-server={NAMES['vllm']}"]
    options += [f"--infserver-output-dir={tmp_path}"]
    log = tmp_path / "vllm" / "server.log"
    with subprocess.Popen([sys.executable, "-m", "pytest", *options, "test_it.py"], cwd=tmp_path) as run:
        try:
            deadline = time.monotonic() + LONG
            while not (log.exists() and "Initializing a V1 LLM engine" in log.read_text()):
                assert time.monotonic() < deadline
                assert run.poll() is None
                time.sleep(0.1)
            processes = psutil.Process(run.pid).children(recursive=True)
            assert any("VLLM::EngineCore" in title(one) for one in processes), [title(one) for one in processes]
            run.terminate()
            assert run.wait(120) != 0
        finally:
            run.kill()
    assert all_gone(processes)


@pytest.mark.nightly
def test_two_share_one_gpu_and_sleep_in_turn(
    run_project: Callable[..., pytest.RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protocol alone: on a CPU nothing is given back. vLLM refuses --enable-sleep-mode there."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("INFSERVER_DEVICE_LOCKS", "0")
    tests = """
import pytest

pids = {}

def check(server, client):
    assert pids.setdefault(server.name, server.pid) == server.pid
    assert client.completions.create(model=server.api_model, prompt="this", max_tokens=2).choices

def test_1(inference_server, inference_client):
    check(inference_server, inference_client)

@pytest.mark.infserver(server_args={"max-num-seqs": 4})
def test_2(inference_server, inference_client):
    check(inference_server, inference_client)

def test_3(inference_server, inference_client):
    check(inference_server, inference_client)
"""
    options = ["--infserver-share-gpu", "--infserver-order=source", "--no-infserver-prelaunch"]
    options += ["--no-infserver-debug", "--infserver-set=gpus=1"]
    result = run_project("vllm", tests, *options)
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["vllm was put to sleep 1 time to make room for vllm+max-num-seqs=4"])
