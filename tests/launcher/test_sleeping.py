"""A server that sleeps: it has given its memory back, answers no health check, and is not taken for hung."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_servers import FAKE_ENGINE

from pytest_infserver import CommandServer, InferenceServerError, VLLMServer
from pytest_infserver.launcher.engine.sleep_requests import SleepRequests
from pytest_infserver.launcher.operations.sleeping import wake_for_others
from pytest_infserver.launcher.runtime.view import View
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.reporting.server_state import describe_state

HANG = 0.6


@pytest.fixture
def vllm(installed_vllm: Path, tmp_path: Path) -> Any:
    server = VLLMServer(
        "m",
        binary_path=str(installed_vllm),
        output_dir=tmp_path / "logs",
        startup_timeout=30,
        heartbeat_interval=0.05,
        hang_timeout=HANG,
    )
    yield server
    server.stop()


def test_a_server_that_sleeps_is_not_taken_for_hung(vllm: VLLMServer) -> None:
    vllm.start()
    assert vllm.awake
    vllm.sleep(level=2)
    # Deeper, and still asleep once.
    vllm.sleep()
    assert (vllm.awake, vllm.running, vllm.check_health()) == (False, True, False)
    time.sleep(3 * HANG)
    assert vllm.why_died() is None
    vllm.wake()
    vllm.wake()
    assert vllm.awake
    assert vllm.check_health()


def test_after_its_waking_it_is_watched_as_before(vllm: VLLMServer) -> None:
    import requests

    vllm.start()
    vllm.sleep()
    vllm.wake()
    session = requests.Session()
    session.trust_env = False
    session.get(vllm.url_for("/sick"), timeout=10)
    assert vllm.wait_death(30)
    assert "hung and was killed" in (vllm.why_died() or "")


def test_a_new_start_is_awake_and_watched(vllm: VLLMServer) -> None:
    vllm.start()
    vllm.sleep()
    vllm.stop()
    assert not vllm.awake
    vllm.start()
    assert vllm.awake
    import requests

    session = requests.Session()
    session.trust_env = False
    session.get(vllm.url_for("/sick"), timeout=10)
    assert vllm.wait_death(30)


def test_a_refusal_is_told_with_what_to_do(vllm: VLLMServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InferenceServerError, match="does not run: it is new"):
        vllm.sleep()
    vllm.start()
    monkeypatch.setattr(VLLMServer, "sleep_requests", SleepRequests("/none", "/none", "say so"))
    with pytest.raises(InferenceServerError, match=r"POST /none answered 404: .*; say so"):
        vllm.sleep()
    assert vllm.awake
    # Its heartbeat goes on.
    pulse = vllm.runtime.pulse()
    assert pulse is not None
    assert not pulse.still


def test_one_that_cannot_be_woken_for_the_next_test_is_ended(vllm: VLLMServer, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    vllm.on_warning = warnings.append
    vllm.start()
    wake_for_others(vllm.runtime)
    assert vllm.awake
    vllm.sleep()
    wake_for_others(vllm.runtime)
    assert (vllm.awake, warnings) == (True, [])
    vllm.sleep()
    monkeypatch.setattr(VLLMServer, "sleep_requests", SleepRequests("/none", "/none", "say so"))
    wake_for_others(vllm.runtime)
    assert not vllm.running
    [warning] = warnings
    assert warning.endswith("say so; it was left asleep by a test, and is ended")


def test_a_backend_without_such_requests_says_so(tmp_path: Path, nothing_left: None) -> None:
    command = [sys.executable, "-S", str(FAKE_ENGINE), "--port", "{port}"]
    with CommandServer(launch_command=command, output_dir=tmp_path, startup_timeout=30) as server:
        with pytest.raises(InferenceServerError, match="backend 'command' has no requests for that"):
            server.sleep()
        server.wake()


def test_the_state_of_a_failed_test_says_that_it_sleeps() -> None:
    view = View(8000, 17, 16, True, 1, Path("log"), 0, 1.0, state=ServerState.READY, seconds=3.0, awake=False)
    assert describe_state(view, attached=False).startswith("ready, asleep, up 3")
