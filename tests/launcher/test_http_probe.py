"""One bounded HTTP question, to servers of every kind of behaviour."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pytest_infserver.system.http.probe import Answer, ask

pytestmark = pytest.mark.usefixtures("hard_limit")

Behaviour = Callable[[socket.socket], object]


@pytest.fixture
def listen() -> Iterator[Callable[[Behaviour], str]]:
    """Serve one connection with a function; returns the URL."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(behaviour: Behaviour) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            try:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(30)
                    behaviour(connection)
            except OSError:
                return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        threads.append(thread)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.close()
    for thread in threads:
        thread.join(10)


def answering(data: bytes) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(data)

    return behave


@pytest.mark.parametrize(
    ("data", "status", "ok"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", 200, True),
        (b"HTTP/1.0 204 No Content\r\n\r\n", 204, True),
        (b"HTTP/1.1 299\r\n\r\n", 299, True),
        (b"HTTP/2 200\n", 200, True),
        (b"HTTP/1.1 401 Unauthorized\r\n\r\n", 401, False),
        (b"HTTP/1.1 503 \xff\xfe\r\n\r\n", 503, False),
        (b"HTTP/1.1 200 OK", 200, True),
    ],
)
def test_status(listen: Callable[[Behaviour], str], data: bytes, status: int, ok: bool) -> None:
    answer = ask(listen(answering(data)), 30)
    assert (answer.status, answer.ok, answer.problem) == (status, ok, "")
    assert str(answer) == f"answered {status}"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "closed the connection without an answer: does it speak TLS?"),
        (b"\xff\x00garbage\n", "answered something that is not HTTP"),
        (b"SSH-2.0-OpenSSH\r\n", "answered something that is not HTTP"),
        (b"HTTP/1.1 OK\r\n", "answered something that is not HTTP"),
        (b"x" * 100_000, "answered something that is not HTTP"),
    ],
)
def test_no_http(listen: Callable[[Behaviour], str], data: bytes, problem: str) -> None:
    answer = ask(listen(answering(data)), 30)
    assert (answer.status, answer.ok) == (None, False)
    # A reset of the connection may overtake what was written before it.
    assert str(answer) == problem or "reset" in str(answer)


def silence(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


def drip(connection: socket.socket) -> None:
    for byte in b"HTTP/1.1 200 OK" * 1000:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


@pytest.mark.parametrize("behaviour", [silence, drip])
def test_limit_is_for_the_whole_question(listen: Callable[[Behaviour], str], behaviour: Behaviour) -> None:
    begin = time.monotonic()
    answer = ask(listen(behaviour), 0.3)
    assert 0.3 <= time.monotonic() - begin < 20
    assert str(answer) == "gave no answer within 0.3 s"
    assert answer.seconds >= 0.3


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n",
            "answered 302: a redirect to /login, which is not followed",
        ),
        (b"HTTP/1.1 307 Moved\r\nX: y\r\nlocation:  http://a/ \r\n\r\nbody", "answered 307: a redirect to http://a/, "),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", "answered 304"),
        (b"HTTP/1.1 301 Moved\r\n", "answered 301"),
    ],
)
def test_a_redirect_is_told(listen: Callable[[Behaviour], str], data: bytes, said: str) -> None:
    answer = ask(listen(answering(data)), 30)
    assert not answer.ok
    assert str(answer).startswith(said)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "ok"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n" + b'{"error": "busy"}'[:16], True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n" + b'{"error": "busy"}', False),
        (CHUNKED + b'9;x=y\r\n{"error":\r\n8\r\n "busy"}\r\n0\r\nTrailer: x\r\n\r\n', False),
        (CHUNKED + b"2\r\n{}\r\n0\r\n\r\n", True),
        (CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
    ],
)
def test_a_whole_answer_is_read_to_its_end(listen: Callable[[Behaviour], str], data: bytes, ok: bool) -> None:
    over = threading.Event()

    def behave(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(data)
        # It is complete, and the connection stays open.
        over.wait(30)

    begin = time.monotonic()
    answer = ask(listen(behave), 25, post=b"{}", whole=True)
    over.set()
    assert (answer.status, answer.ok) == (int(data[9:12]), ok), str(answer)
    assert time.monotonic() - begin < 20


def test_a_whole_answer_that_does_not_end(listen: Callable[[Behaviour], str]) -> None:
    def behave(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(CHUNKED)
        drip(connection)

    answer = ask(listen(behave), 0.3, post=b"{}", whole=True)
    assert str(answer) == "answered 200, but its answer did not end within 0.3 s"
    assert not answer.ok


def test_a_whole_answer_without_end_is_not_kept_in_memory(listen: Callable[[Behaviour], str]) -> None:
    def behave(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    begin = time.monotonic()
    assert ask(listen(behave), 60, post=b"{}", whole=True).ok
    assert time.monotonic() - begin < 20


def test_answer_that_nobody_wants_any_more_is_not_waited_for(listen: Callable[[Behaviour], str]) -> None:
    url = listen(silence)
    begin = time.monotonic()
    assert not ask(url, 60, pointless=lambda: time.monotonic() - begin > 0.2).ok
    assert time.monotonic() - begin < 20


def test_closed_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "not open" in str(ask(f"http://127.0.0.1:{port}", 30))


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("http://127.0.0.1:99999/", {}),
        ("http://127.0.0.1:port/", {}),
        ("http://127.0.0.1:9/a b\n", {}),
        ("http://127.0.0.1:9/ä", {}),
        ("http://a..b/", {}),
        ("http://[::1/", {}),
        ("http://127.0.0.1:9/", {"Authorization": "Bearer sk-secret\nvalue"}),
        ("http://127.0.0.1:9/", {"Authorization": "Bearer sk-secret€"}),
    ],
)
def test_what_cannot_be_asked_is_an_answer_too(url: str, headers: dict[str, str]) -> None:
    answer = ask(url, 5, headers)
    assert not answer.ok
    assert answer.problem
    assert "secret" not in answer.problem


def test_request(listen: Callable[[Behaviour], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    seen: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        seen.append(connection.recv(4096))
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    assert ask(f"{listen(behave)}/health?deep=1", 30, {"Authorization": "Bearer x"}).ok
    assert seen[0].startswith(b"GET /health?deep=1 HTTP/1.1\r\n")
    assert b"Authorization: Bearer x\r\n" in seen[0]


def test_answer_without_status_shows_the_problem() -> None:
    assert str(Answer(None, "refused", 0.0)) == "refused"
