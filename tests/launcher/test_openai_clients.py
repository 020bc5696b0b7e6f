"""The OpenAI client of a server."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest

from pytest_infserver import CommandServer, RemoteServer
from pytest_infserver.errors import InferenceServerError
from pytest_infserver.launcher.clients.openai_clients import make_async_client, make_client
from pytest_infserver.launcher.runtime.told import ToldByOwner


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
    with pytest.raises(InferenceServerError, match=r"pip install 'pytest-infserver\[openai\]'"):
        make_client(CommandServer(launch_command=["x", "{port}"]))


def test_on_a_cluster_it_follows_the_server_to_another_place(fake_server: Callable[..., CommandServer]) -> None:
    pytest.importorskip("openai")
    first = fake_server("--host", "127.0.0.2", host="127.0.0.2", name="first").start()
    second = fake_server("--host", "127.0.0.3", host="127.0.0.3", name="second").start()
    first.told = ToldByOwner(node="node-2 (127.0.0.2)")
    with make_client(first) as client:
        assert client.models.list().data[0].id == "fake"
        first.stop()
        first.told = dataclasses.replace(first.told, host=second.host)
        first.give(port=second.port)
        assert client.models.list().data[0].id == "fake"


def test_arguments_of_the_users_replace_ours() -> None:
    pytest.importorskip("openai")
    server = CommandServer(launch_command=["x", "{port}"])
    with server.client(max_retries=3, timeout=7) as client:
        assert (client.max_retries, client.timeout) == (3, 7)
        assert str(client.base_url) == f"{server.server_url}/v1/"
    client = server.async_client(api_key="mine")
    assert (client.api_key, client.max_retries) == ("mine", 0)


@pytest.mark.filterwarnings("error")
def test_an_async_client_is_good_in_one_loop_after_another(fake_server: Callable[..., CommandServer]) -> None:
    pytest.importorskip("openai")
    client = make_async_client(fake_server().start())

    async def models() -> list[str]:
        first, second = await asyncio.gather(client.models.list(), client.models.list())
        return [first.data[0].id, second.data[0].id]

    for _ in range(3):
        assert asyncio.run(models()) == ["fake", "fake"]
    gc.collect()


@pytest.mark.filterwarnings("error")
def test_a_client_that_nobody_closes_leaves_no_warning(fake_server: Callable[..., CommandServer]) -> None:
    pytest.importorskip("openai")
    server = fake_server().start()
    assert server.client().models.list().data[0].id == "fake"
    gc.collect()


def test_on_a_cluster_an_async_client_follows_the_server(fake_server: Callable[..., CommandServer]) -> None:
    pytest.importorskip("openai")
    first = fake_server("--host", "127.0.0.2", host="127.0.0.2", name="first").start()
    second = fake_server("--host", "127.0.0.3", host="127.0.0.3", name="second").start()
    first.told = ToldByOwner(node="node-2 (127.0.0.2)")
    client = first.async_client()
    first.stop()
    first.told = dataclasses.replace(first.told, host=second.host)
    first.give(port=second.port)

    async def model() -> str:
        return (await client.models.list()).data[0].id

    assert asyncio.run(model()) == "fake"
