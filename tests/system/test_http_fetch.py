"""Whole HTTP answers of hostile servers: each attack ends within the limits, and no key gets anywhere else."""

from __future__ import annotations

import dataclasses
import gzip
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pytest_infserver.launcher.engine.endpoints import existing, openapi_paths
from pytest_infserver.system.http.address import parse_address
from pytest_infserver.system.http.body import Connection, TooLong
from pytest_infserver.system.http.fetch import MAX_DEPTH, Limits, NoReply, fetch, parse_json
from pytest_infserver.system.http.probe import ask

pytestmark = pytest.mark.usefixtures("hard_limit")

Behaviour = Callable[[socket.socket], object]
Server = Callable[[Behaviour], "Raw"]

LIMITS = Limits(20, 100_000)
KEY = {"Authorization": "Bearer sk-secret-key"}
OK = b"HTTP/1.1 200 OK\r\n"
SHORT = 0.4
SLACK = 20.0
"""Seconds: far above any limit here, far below what the attacks would take."""


class Raw:
    """A server that answers each connection with a function; it notes what it was asked."""

    def __init__(self, behave: Behaviour) -> None:
        self.asked: list[bytes] = []
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(30)
                try:
                    self.asked.append(connection.recv(65536))
                    self._behave(connection)
                except OSError:
                    continue

    def close(self) -> None:
        # Wakes accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(30)


@pytest.fixture
def serve() -> Iterator[Server]:
    made: list[Raw] = []

    def start(behave: Behaviour) -> Raw:
        made.append(Raw(behave))
        return made[-1]

    yield start
    for one in made:
        one.close()


def says(data: bytes) -> Behaviour:
    return lambda connection: connection.sendall(data)


def drips(begin: bytes, more: bytes = b"x") -> Behaviour:
    """Send something at once, and then a piece now and then, for ever."""

    def behave(connection: socket.socket) -> None:
        connection.sendall(begin)
        while True:
            connection.sendall(more)
            time.sleep(0.02)

    return behave


def floods(begin: bytes, more: bytes) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        connection.sendall(begin)
        while True:
            connection.sendall(more * 1000)

    return behave


def resets(begin: bytes) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        connection.sendall(begin)
        time.sleep(0.1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return behave


DRIPS = {
    "status line": drips(b"", b"H"),
    "headers": drips(OK, b"X: y\r\n"),
    "header": drips(OK + b"X: "),
    "body": drips(OK + b"Content-Length: 90000\r\n\r\n"),
    "body without length": drips(OK + b"\r\n"),
    "chunks": drips(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "size of a chunk": drips(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "trailers": drips(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
    "100 Continue": drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "silence": lambda connection: connection.recv(1),
}
FLOODS = {
    "status line": floods(b"", b"H"),
    "headers": floods(OK, b"X: y\r\n"),
    "header": floods(OK + b"X: ", b"y"),
    "body": floods(OK + b"Content-Length: 900000000\r\n\r\n", b"x"),
    "body without length": floods(OK + b"\r\n", b"x"),
    "chunks": floods(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "one chunk": floods(OK + b"Transfer-Encoding: chunked\r\n\r\nfffffff\r\n", b"x"),
    "trailers": floods(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
    "100 Continue": floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}
BROKEN = {
    "nothing": says(b""),
    "no HTTP": says(b"SSH-2.0-OpenSSH\r\n\r\n"),
    "half a status line": says(b"HTTP/1.1 2"),
    "half a body": says(OK + b"Content-Length: 100\r\n\r\n{"),
    "half a chunk": says(OK + b"Transfer-Encoding: chunked\r\n\r\n8\r\nabc"),
    "chunk of no size": says(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "reset at once": resets(b""),
    "reset in the headers": resets(OK + b"Content-Length: 100\r\n"),
    "reset in the body": resets(OK + b"Content-Length: 100\r\n\r\nabc"),
}


def cases(of: dict[str, Behaviour]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("behave", of.values(), ids=list(of))


@cases(DRIPS)
def test_one_deadline_for_a_byte_now_and_then(serve: Server, behave: Behaviour) -> None:
    begin = time.monotonic()
    with pytest.raises(NoReply):
        fetch(serve(behave).url, Limits(SHORT, 100_000))
    assert time.monotonic() - begin < SLACK


@cases(DRIPS)
def test_a_health_check_has_one_too(serve: Server, behave: Behaviour) -> None:
    begin = time.monotonic()
    answer = ask(serve(behave).url, SHORT)
    assert answer.status in (None, 200, 100)
    assert time.monotonic() - begin < SLACK


@cases(DRIPS)
def test_a_reading_of_metrics_has_one_too(serve: Server, behave: Behaviour) -> None:
    begin = time.monotonic()
    connection = Connection(serve(behave).url, {}, keep=True)
    with pytest.raises(Exception):  # noqa: B017 (any: the caller takes them all)
        connection.get("/metrics", SHORT, 100_000)
    connection.close()
    assert time.monotonic() - begin < SLACK


@cases(FLOODS)
def test_an_answer_without_an_end_is_not_read_to_its_end(serve: Server, behave: Behaviour) -> None:
    begin = time.monotonic()
    with pytest.raises(NoReply):
        fetch(serve(behave).url, LIMITS)
    assert time.monotonic() - begin < SLACK


def test_a_body_of_just_the_limit(serve: Server) -> None:
    server = serve(says(OK + b"Content-Length: 10\r\n\r\n0123456789"))
    assert fetch(server.url, Limits(20, 10)).body == b"0123456789"
    with pytest.raises(NoReply, match="was answered with more than 9 bytes"):
        fetch(server.url, Limits(20, 9))
    with pytest.raises(TooLong):
        Connection(parse_address(server.url), {}, keep=False).get("/", 20, 9)


@cases(BROKEN)
def test_an_answer_that_is_not_whole(serve: Server, behave: Behaviour) -> None:
    with pytest.raises(NoReply):
        fetch(serve(behave).url, LIMITS)


def test_nothing_is_unpacked(serve: Server) -> None:
    packed = gzip.compress(b"[" * 50_000_000)
    head = OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    server = serve(says(head + packed))
    assert fetch(server.url, LIMITS).body == packed
    assert openapi_paths(parse_address(server.url)) is None
    assert b"accept-encoding: identity" in server.asked[0].lower()


def redirect(to: str, status: int = 307) -> bytes:
    return f"HTTP/1.1 {status} Elsewhere\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()


def test_a_key_goes_to_no_other_host_or_port(serve: Server) -> None:
    thief = serve(says(OK + b"Content-Length: 2\r\n\r\n{}"))
    for to in (thief.url, f"//127.0.0.1:{thief.port}/x", f"http://localhost:{thief.port}/", "https://127.0.0.1/"):
        for method in ("GET", "POST"):
            with pytest.raises(NoReply, match="to another host or port"):
                fetch(serve(says(redirect(to))).url, LIMITS, headers=KEY, method=method)
    assert thief.asked == []


def test_the_callers_give_no_key_away_either(serve: Server) -> None:
    thief = serve(says(OK + b"Content-Length: 2\r\n\r\n{}"))
    victim = serve(says(redirect(f"{thief.url}/openapi.json")))
    paths = {"health": "/health", "metrics": "/metrics"}
    keyed = dataclasses.replace(parse_address(victim.url), api_key="sk-secret-key")
    assert keyed.headers == KEY
    assert existing(keyed, paths, ["metrics"]) == paths
    assert ask(victim.url, 20, KEY).status == 307
    assert Connection(keyed, KEY, keep=False).get("/metrics", 20, 1000)[0] == 307
    assert thief.asked == []


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://[::1/", "http://127.0.0.1:99999/"])
def test_a_redirect_to_what_is_no_host(serve: Server, to: str) -> None:
    with pytest.raises(NoReply):
        fetch(serve(says(redirect(to))).url, LIMITS, headers=KEY)


def test_a_redirect_on_the_same_server_is_followed_with_the_key(serve: Server) -> None:
    def behave(connection: socket.socket) -> None:
        first = len(server.asked) == 1
        connection.sendall(redirect("/docs/?a=b") if first else OK + b"Content-Length: 4\r\n\r\nhere")

    server = serve(behave)
    reply = fetch(f"{server.url}/docs", LIMITS, headers=KEY, method="POST", body=b"{}")
    assert (reply.status, reply.body) == (200, b"here")
    assert server.asked[1].startswith(b"POST /docs/?a=b HTTP/1.1\r\n")
    assert all(b"Bearer sk-secret-key" in one for one in server.asked)


def test_a_redirect_that_would_drop_the_body_is_none(serve: Server) -> None:
    server = serve(says(redirect("/other", 302)))
    with pytest.raises(NoReply, match="status 302"):
        fetch(server.url, LIMITS, method="POST", body=b"{}")
    assert len(server.asked) == 1


def test_redirects_in_a_circle(serve: Server) -> None:
    server = serve(says(redirect("/again")))
    with pytest.raises(NoReply, match="sent on more than 3 times"):
        fetch(server.url, LIMITS)
    assert len(server.asked) == 4


def test_one_deadline_for_all_redirects(serve: Server) -> None:
    def behave(connection: socket.socket) -> None:
        time.sleep(0.25)
        connection.sendall(redirect("/again"))

    server = serve(behave)
    with pytest.raises(NoReply, match=r"no whole answer within 0\.4 s"):
        fetch(server.url, Limits(SHORT, 1000))
    assert len(server.asked) == 2


def test_no_proxy_and_no_netrc(serve: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")
    assert fetch(serve(says(OK + b"\r\nfine")).url, LIMITS).body == b"fine"


def test_an_error_quotes_no_header(serve: Server) -> None:
    with pytest.raises(NoReply) as caught:
        fetch("http://127.0.0.1:9/", LIMITS, headers={"Authorization": "Bearer sk-secret\nvalue"})
    assert "secret" not in str(caught.value)


def document(depth: int) -> bytes:
    return b'{"paths": {"/x": ' + b"[" * depth + b"]" * depth + b"}}"


def test_deep_json_is_none(serve: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    body = document(1_000_000)
    server = serve(says(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body))
    assert openapi_paths(parse_address(server.url)) is None
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000_000)
    try:
        # json.loads() alone would end the process here.
        assert openapi_paths(parse_address(server.url)) is None
    finally:
        sys.setrecursionlimit(limit)


def test_how_deep_json_is() -> None:
    assert parse_json(document(MAX_DEPTH - 2))["paths"]
    with pytest.raises(ValueError, match="nested deeper than 64 levels"):
        parse_json(document(MAX_DEPTH - 1))
    wide = [{"a": [1]}] * 1000
    assert parse_json(json.dumps(wide).encode()) == wide
    text = json.dumps(["[" * 1000, '"' + "{" * 1000, "\\", "[" * 1000, '\\"' + "[" * 1000])
    assert parse_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize("body", [b"", b"\xff", b'"' * 100_000, b"\\" * 100_000, b"]" * 100, b'["' + b"[" * 100])
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(body)


def test_many_brackets_take_little_time() -> None:
    begin = time.monotonic()
    with pytest.raises(ValueError):
        parse_json(b"[]" * 1_000_000 + b'"\\"' * 100_000)
    assert time.monotonic() - begin < SLACK
