"""Attaching to servers that run already."""

from __future__ import annotations

import copy
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from pytest_infserver import (
    CommandServer,
    RemoteServer,
    ServerStartupError,
    ServerStartupTimeout,
    ServerState,
    VLLMServer,
)
from pytest_infserver.launcher.attach import wait_for_url
from pytest_infserver.system.http.probe import Answer

pytestmark = pytest.mark.usefixtures("hard_limit")

FakeServer = Callable[..., CommandServer]


def test_loading_server_is_waited_for() -> None:
    answers = iter([Answer(503, "", 0.0), Answer(503, "", 0.0), Answer(200, "", 0.0)])
    wait_for_url("http://x", lambda: next(answers), 60, "there")
    assert next(answers, None) is None


def test_loading_for_ever_is_a_timeout() -> None:
    with pytest.raises(ServerStartupTimeout, match=r"there cannot be attached: http://x was still loading after 0.2 s"):
        wait_for_url("http://x", lambda: Answer(503, "", 0.0), 0.2, "there")


@pytest.mark.parametrize("answer", [Answer(404, "", 0.0), Answer(None, "refused the connection", 0.0)])
def test_anything_else_fails_at_once(answer: Answer) -> None:
    begin = time.monotonic()
    with pytest.raises(ServerStartupError, match=rf"http://x {answer}. Start it, or correct 'url'"):
        wait_for_url("http://x", lambda: answer, 1000, "there")
    assert time.monotonic() - begin < 60


def test_nothing_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = RemoteServer(url=f"http://127.0.0.1:{port}")
    with pytest.raises(ServerStartupError, match="refused the connection"):
        server.start()
    assert server.state is ServerState.FAILED


@pytest.mark.parametrize("backend", [RemoteServer, VLLMServer])
def test_attached_server_keeps_its_backend(
    fake_server: FakeServer, backend: type[RemoteServer] | type[VLLMServer]
) -> None:
    """No binary is needed, and no log is made."""
    running = fake_server("--openapi=/v1/models,/health").start()
    server = backend(url=f"{running.server_url}/", model="some-model", name="there")
    with server:
        assert server.server_url == running.server_url
        assert server.url_for("/v1/models") == f"{running.server_url}/v1/models"
        assert server.get_backend_name() == ("remote" if backend is RemoteServer else "vllm")
        assert sorted(server.list_endpoints()) == ["health", "models"]
        assert server.read_log() == ""
        assert server.why_died() is None
    assert running.check_health()
    assert not server.log_path.parent.exists()


IN_ANOTHER_PROCESS = """
import pickle, sys
from pytest_infserver import InferenceServerError
server = pickle.load(sys.stdin.buffer)
try:
    server.stop()
except InferenceServerError as error:
    print(error)
print(server.check_health(), server.name, server.get_backend_name(), server.url_for("/health"))
"""


def test_another_process_gets_a_handle(fake_server: FakeServer) -> None:
    """As those of multiprocessing, which get what is pickled."""
    key = "sk-0123456789"
    with fake_server("--need-key", key, "--api-key", key, name="one") as server:
        command = [sys.executable, "-c", IN_ANOTHER_PROCESS]
        done = subprocess.run(command, input=pickle.dumps(server), capture_output=True, timeout=60, check=True)
        refusal, found = done.stdout.decode().splitlines()
        assert refusal == "this process has only a handle of the server: stop it in the one that has started it"
        assert found == f"True one command {server.server_url}/health"
        # It runs on, and the one here is still its owner.
        assert server.check_health()


def test_a_handle_of_a_server_that_does_not_run_answers_that_it_does_not(fake_server: FakeServer) -> None:
    server = fake_server()
    with server:
        text = pickle.dumps(server)
    assert not pickle.loads(text).check_health()


def test_a_copy_in_the_same_process_is_no_handle(fake_server: FakeServer) -> None:
    server = fake_server()
    twin = copy.copy(server)
    assert (type(twin), twin.attached, twin.log_path) == (type(server), False, server.log_path)
