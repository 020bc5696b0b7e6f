"""The OpenAI client of a server."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from pytest_infserver import CommandServer, RemoteServer
from pytest_infserver.client import make_client


@pytest.fixture(autouse=True)
def dead_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/elsewhere")


def chat(server: Any) -> str | None:
    with make_client(server) as client:
        messages: Any = [{"role": "user", "content": "abc"}]
        return client.chat.completions.create(model="fake", messages=messages).choices[0].message.content


def test_it_talks_to_the_server_without_proxy_and_survives_a_restart(fake_server: Callable[..., CommandServer]) -> None:
    openai = pytest.importorskip("openai")
    server = fake_server().start()
    with make_client(server) as client:
        assert client.models.list().data[0].id == "fake"
        port = server.port
        server.stop()
        with pytest.raises(openai.APIConnectionError):
            client.models.list()
        server.start()
        assert server.port == port
        assert client.models.list().data[0].id == "fake"


def test_an_attached_server_on_this_machine_needs_no_proxy_either(fake_server: Callable[..., CommandServer]) -> None:
    pytest.importorskip("openai")
    running = fake_server().start()
    assert chat(RemoteServer(url=running.server_url)) == "cba"
    assert chat(RemoteServer(url=f"http://localhost:{running.port}")) == "cba"


def test_keys_and_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    own = CommandServer(launch_command=["x", "{port}"])
    keyed = CommandServer(launch_command=["x", "{port}"], config={"server_args": ["--api-key", "very-secret-1"]})
    far = RemoteServer(url="http://10.0.0.1:8000/")
    assert make_client(own).api_key == make_client(far).api_key == "none-needed"
    monkeypatch.setenv("OPENAI_API_KEY", "the-users-own")
    # The user's own key is for servers that are the user's business, not for one that we started.
    assert make_client(own).api_key == "none-needed"
    assert make_client(far).api_key == "the-users-own"
    assert make_client(keyed).api_key == "very-secret-1"
    assert make_client(keyed).max_retries == 0
    assert str(make_client(far).base_url) == "http://10.0.0.1:8000/v1/"


def test_without_openai_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(pytest.fail.Exception, match=r"pip install 'pytest-infserver\[openai\]'"):
        make_client(CommandServer(launch_command=["x", "{port}"]))


def test_on_a_cluster_it_follows_the_server_to_another_place(fake_server: Callable[..., CommandServer]) -> None:
    pytest.importorskip("openai")
    first = fake_server("--host", "127.0.0.2", host="127.0.0.2", name="first").start()
    second = fake_server("--host", "127.0.0.3", host="127.0.0.3", name="second").start()
    first.node = "node-2 (127.0.0.2)"
    with make_client(first) as client:
        assert client.models.list().data[0].id == "fake"
        first.stop()
        first._address, first._port = second.host, second.port
        assert client.models.list().data[0].id == "fake"
