from __future__ import annotations

from typing import Any

import pytest

from pytest_infserver import ConfigError, RemoteServer, create_server


def test_a_remote_server() -> None:
    server = RemoteServer(url="http://gpu-box:8000/", endpoints={"mine": "/mine"})
    assert (server.get_backend_name(), server.get_launch_command(), server.get_binary_path()) == ("remote", [], "")
    assert server.attached
    assert server.command().argv == ()
    assert server.get_health_endpoint() == "http://gpu-box:8000/health"
    assert server.list_endpoints()["chat"] == "http://gpu-box:8000/v1/chat/completions"
    assert server.list_endpoints()["mine"] == "http://gpu-box:8000/mine"
    assert server.url_for("v1/x") == server.url_for("/v1/x") == "http://gpu-box:8000/v1/x"


def test_a_base_path_is_kept() -> None:
    server = RemoteServer(url="https://host/proxy/a", health_endpoint="/up")
    assert server.get_health_endpoint() == "https://host/proxy/a/up"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "backend 'remote' needs a 'url'"),
        ({"url": "localhost:8000"}, "expected a URL that starts with http:// or https://"),
        ({"url": "ftp://host"}, "expected a URL that starts with http:// or https://"),
    ],
)
def test_mistakes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RemoteServer(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("backend", ["vllm", "sglang", "llamacpp", "transformers", "command"])
def test_any_backend_attaches_to_a_url(backend: str) -> None:
    server = create_server(backend, url="http://127.0.0.1:9000")
    assert (server.attached, server.get_backend_name()) == (True, backend)
    assert server.get_health_endpoint() == "http://127.0.0.1:9000/health"
