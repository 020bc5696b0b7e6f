"""Engines that are reached in other ways than by plain HTTP, and processes of theirs that are killed or stand still."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from certificates import write_certificate

from pytest_infserver import InferenceServer
from pytest_infserver.launcher.clients.openai_clients import make_client
from pytest_infserver.launcher.startup.probes.http import HttpProbe
from pytest_infserver.reporting.server_state import describe_state
from pytest_infserver.system.http.session import session_for

from .conftest import all_gone, title, tree

Make = Callable[..., InferenceServer]
KEY = "key-of-the-test"
GONE_AFTER = 120.0
"""Seconds in which an engine follows a process of its own; as a rule it takes 5."""


@pytest.fixture
def socket_path() -> Iterator[str]:
    # tmp_path is too long for a unix socket.
    with tempfile.TemporaryDirectory(prefix="reach-") as folder:
        yield str(Path(folder) / "s.sock")


@pytest.fixture
def tls_flags(tmp_path: Path) -> dict[str, str]:
    """Return the flags for a certificate that names another host, as engines of several nodes often have one."""
    certificate, key, _ = write_certificate(tmp_path, "some-other-host.example")
    return {"ssl-certfile": certificate, "ssl-keyfile": key}


def is_reached(server: InferenceServer) -> None:
    """Make sure that a running server is asked in the right way, and that a completion comes back."""
    assert server.check_health()
    body = {"model": server.api_model, "prompt": "Hello", "max_tokens": 2}
    with session_for(server.address) as session:
        answer = session.post("/v1/completions", json=body, timeout=300)
        assert answer.status_code == 200, answer.text
        endpoints = server.list_endpoints()
        assert endpoints["health"].startswith(server.server_url)
        for name in ("health", "models"):
            assert session.get(endpoints[name], timeout=60).status_code == 200
        session.headers.pop("Authorization", None)
        assert session.get("/v1/models", timeout=60).status_code == (401 if server.api_key else 200)
    with make_client(server) as client:
        assert client.models.list().data


def process_called(server: InferenceServer, name: str) -> psutil.Process:
    """Return the one process of a server whose title has this name."""
    [found] = [one for one in tree(server) if name in title(one)]
    return found


@pytest.mark.engine("vllm")
def test_vllm_with_tls_on_a_unix_socket_below_a_path_with_a_key(
    make_server: Make, socket_path: str, tls_flags: dict[str, str]
) -> None:
    warnings: list[str] = []
    flags = {**tls_flags, "uds": socket_path, "root-path": "/some/where"}
    server = make_server("vllm", flags, api_key=KEY)
    server.on_warning = warnings.append
    server.start()
    assert server.server_url == "https://localhost/some/where"
    assert server.address.uds == socket_path
    is_reached(server)
    processes = tree(server)
    engine = process_called(server, "VLLM::EngineCore")
    os.kill(engine.pid, signal.SIGKILL)
    assert server.wait_death(GONE_AFTER)
    # It says itself that all is well.
    told = f"process {engine.pid} (VLLM::EngineCore) was killed by SIGKILL"
    assert f"exited with code 0 after its {told}, while it was in use" in str(server.why_died())
    assert f"its {told}, " in describe_state(server.runtime.view(), attached=False)
    assert f"{server}: its {told}, while it was in use" in warnings
    assert KEY not in "".join(warnings) + server.runtime.log.path.with_name("events.jsonl").read_text()
    server.stop()
    assert all_gone(processes)


@pytest.mark.nightly
@pytest.mark.engine("vllm")
def test_vllm_with_tls_on_a_port_and_the_end_of_a_worker(make_server: Make, tls_flags: dict[str, str]) -> None:
    server = make_server("vllm", {**tls_flags, "api-key": KEY}, on_child_death="fail").start()
    assert server.server_url == f"https://127.0.0.1:{server.port}"
    assert server.api_key == KEY
    is_reached(server)
    processes = tree(server)
    worker = process_called(server, "VLLM::Worker")
    os.kill(worker.pid, signal.SIGABRT)
    assert server.wait_death(GONE_AFTER)
    told = f"this run (on_child_death: fail) after its process {worker.pid} (VLLM::Worker) was killed by SIGABRT"
    assert told in str(server.why_died())
    server.stop()
    assert all_gone(processes)


@pytest.mark.nightly
@pytest.mark.engine("vllm")
def test_a_killed_engine_process_is_told_in_the_failed_test(run_project: Callable[..., pytest.RunResult]) -> None:
    tests = """
        import os, signal, psutil, requests

        def test_kill(inference_server):
            processes = psutil.Process(inference_server.pid).children(recursive=True)
            [engine] = [one for one in processes if "EngineCore" in (" ".join(one.cmdline()) or one.name())]
            os.kill(engine.pid, signal.SIGKILL)
            body = {"model": inference_server.model, "prompt": "Hello", "max_tokens": 4}
            requests.post(inference_server.url_for("/v1/completions"), json=body, timeout=300).raise_for_status()
    """
    result = run_project("vllm", tests)
    assert result.parseoutcomes().keys() & {"failed", "errors"}
    result.stdout.fnmatch_lines(
        ["*vllm: state*", "its process * (VLLM::EngineCore) was killed by SIGKILL, * s ago", "*= infserver =*"]
    )
    result.stdout.fnmatch_lines(["*vllm: its process * (VLLM::EngineCore) was killed by SIGKILL, while it was in use"])


@pytest.mark.nightly
@pytest.mark.engine("sglang")
def test_sglang_with_tls_and_a_key_and_a_health_check_that_is_slow(
    make_server: Make, tls_flags: dict[str, str]
) -> None:
    server = make_server("sglang", {**tls_flags, "api-key": KEY}, env_vars={"SGLANG_HEALTH_CHECK_TIMEOUT": "3"}).start()
    assert server.server_url == f"https://127.0.0.1:{server.port}"
    is_reached(server)
    # Its /health generates a token, which takes as long as the scheduler does.
    scheduler = process_called(server, "scheduler")
    probe = HttpProbe(server.address, server.health_url())
    scheduler.suspend()
    try:
        assert str(probe.look(1)) == "gave no answer within 1 s"
        assert str(probe.look(60)) == "answered 503"
    finally:
        scheduler.resume()
    assert server.check_health()
    assert server.running


@pytest.mark.nightly
@pytest.mark.engine("transformers")
def test_transformers_on_an_ipv6_host(make_server: Make) -> None:
    server = make_server("transformers", host="::1").start()
    assert server.server_url == f"http://[::1]:{server.port}"
    body = {"model": server.api_model, "prompt": "Hello", "max_tokens": 2}
    with session_for(server.address) as session:
        assert session.post("/v1/completions", json=body, timeout=300).status_code == 200
    assert server.check_health()
