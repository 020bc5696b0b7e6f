"""What list_endpoints() lists exists."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from pytest_infserver import CommandServer, VLLMServer
from pytest_infserver.launcher.engine.endpoints import existing, openapi_paths
from pytest_infserver.system.http.address import parse_address

pytestmark = pytest.mark.usefixtures("hard_limit")

FakeServer = Callable[..., CommandServer]
PATHS = {"health": "/health", "models": "/v1/models", "chat": "/v1/chat/completions"}


def test_without_openapi_everything_is_believed(fake_server: FakeServer) -> None:
    server = fake_server(endpoints=PATHS).start()
    assert server.list_endpoints() == {name: server.url_for(path) for name, path in PATHS.items()}


def test_with_openapi_only_what_is_there(fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = fake_server("--openapi=/health,/v1/models,/other", endpoints={"mine": "/argv"})
    monkeypatch.setattr(type(server), "endpoint_paths", PATHS)
    assert set(server.list_endpoints()) == {*PATHS, "mine"}
    server.start()
    listed = server.list_endpoints()
    # What the user has configured is listed whatever the document says.
    assert listed == {"mine": server.url_for("/argv")} | {n: server.url_for(PATHS[n]) for n in ("health", "models")}
    server.stop()
    assert set(server.list_endpoints()) == {*PATHS, "mine"}


def test_what_a_mounted_application_answers_is_there_though_no_document_says_so(
    fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = fake_server("--openapi=/health").start()
    paths = {"health": "/health", "arguments": "/argv", "metrics": "/no-such-path"}
    monkeypatch.setattr(type(server), "endpoint_paths", paths)
    assert set(server.list_endpoints()) == {"health"}
    monkeypatch.setattr(type(server), "mounted_endpoints", frozenset({"arguments", "metrics"}))
    assert set(server.list_endpoints()) == {"health", "arguments"}


def test_listing_needs_no_running_server() -> None:
    endpoints = VLLMServer(model="x", port=8123).list_endpoints()
    assert endpoints["chat"] == "http://127.0.0.1:8123/v1/chat/completions"


@pytest.fixture
def answer() -> Iterator[Callable[[bytes], str]]:
    """Answer one request with these bytes; returns the URL."""
    made: list[tuple[socket.socket, threading.Thread]] = []

    def start(data: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            try:
                with listener.accept()[0] as connection:
                    connection.recv(65536)
                    connection.sendall(data)
            except OSError:
                return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        made.append((listener, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener, thread in made:
        thread.join(30)
        listener.close()


def reply(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    "data",
    [
        reply(b"{}", "404 Not Found"),
        reply(b'{"paths": {"/x": {}}}', "500 Broken"),
        reply(b"not json"),
        reply(b"[1]"),
        reply(b"{}"),
        reply(b'{"paths": []}'),
        reply(b"\xff\xfe"),
        b"garbage",
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b'{"paths": {"/x": {}}, "y": "' + b"x" * (20 << 20),
    ],
    ids=lambda data: repr(data[:60]),
)
def test_document_that_is_none(answer: Callable[[bytes], str], data: bytes) -> None:
    assert existing(parse_address(answer(data)), PATHS) == PATHS


def test_document(answer: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    body = json.dumps({"paths": {"/health": {}, "/ä": {}}}).encode()
    assert openapi_paths(parse_address(answer(reply(body)))) == {"/health", "/ä"}


def test_a_server_with_an_api_key_is_asked_with_it() -> None:
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection:
                asked.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        existing(dataclasses.replace(parse_address(url), api_key="key-of-mine"), PATHS)
        thread.join(10)
    assert b"Authorization: Bearer key-of-mine" in asked[0]
