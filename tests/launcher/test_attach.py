"""Attaching to servers that run already."""

from __future__ import annotations

import socket
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
from pytest_infserver.launcher.http_probe import Answer

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
