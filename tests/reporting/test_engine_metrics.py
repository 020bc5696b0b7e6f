"""What is read of engines' counters, from real excerpts and from servers of every kind of behaviour."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_infserver import InferenceServer, ServerState, create_server
from pytest_infserver.reporting.record import engine_metrics
from pytest_infserver.reporting.record.engine_metrics import Counters, EngineMetrics, difference

pytestmark = pytest.mark.usefixtures("hard_limit")

RECORDED = Path(__file__).parent / "metrics"
VLLM = (RECORDED / "vllm-after.txt").read_bytes()
LLAMA = (RECORDED / "llamacpp-after.txt").read_bytes()
HUNG = 20.0
"""Seconds; no reading may take longer than 2."""

Behaviour = Callable[[socket.socket], object]


def counters(text: str | bytes, launches: int = 1) -> Counters:
    body = text if isinstance(text, bytes) else text.encode()
    lines = engine_metrics._filtered(b"\n" + body)
    assert lines is not None
    return Counters(launches, lines)


# Three completions of 2, 3 and 4 tokens, and one request that is refused because its prompt is too long.
@pytest.mark.parametrize(
    ("engine", "counted"),
    [
        ("vllm", {"prompt_tokens": 12, "generated_tokens": 9, "requests": 3, "errors": 1}),
        ("sglang", {"prompt_tokens": 12, "generated_tokens": 9, "requests": 3, "errors": 1}),
        ("llamacpp", {"prompt_tokens": 18, "generated_tokens": 9}),
    ],
)
def test_what_real_engines_have_counted(engine: str, counted: dict[str, float]) -> None:
    before, after = (counters((RECORDED / f"{engine}-{when}.txt").read_bytes()) for when in ("before", "after"))
    found = difference(before, after)
    assert found == counted
    assert all(type(value) is int for value in found.values())
    assert difference(after, after) == dict.fromkeys(counted, 0)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llamacpp"])
def test_a_server_that_was_started_again_counts_from_zero(engine: str) -> None:
    old = counters((RECORDED / f"{engine}-before.txt").read_bytes())
    text = (RECORDED / f"{engine}-after.txt").read_bytes()
    total = difference(counters("# TYPE nothing counter\n"), counters(text))
    # By the number of its launches, though no counter is lower than before.
    assert difference(old, counters(text, launches=2)) == total
    assert total is not None
    assert total["generated_tokens"] > 1000


def test_a_counter_that_went_down_tells_of_a_restart_for_all_of_them() -> None:
    before = counters("a:prompt_tokens_total 100\na:num_requests_total 1\n")
    after = counters("a:prompt_tokens_total 20\na:num_requests_total 3\n")
    assert difference(before, after) == {"prompt_tokens": 20, "requests": 3}


def test_a_label_set_that_is_gone_tells_of_a_restart_too() -> None:
    before = counters('a:prompt_tokens_total{e="0"} 1\na:prompt_tokens_total{e="1"} 1\n')
    assert difference(before, counters('a:prompt_tokens_total{e="0"} 5\n')) == {"prompt_tokens": 5}


def test_label_sets_are_summed_and_new_ones_count_from_zero() -> None:
    before = counters('vllm:prompt_tokens_total{engine="0"} 10\n')
    after = counters('vllm:prompt_tokens_total{engine="0"} 11\nvllm:prompt_tokens_total{engine="1"} 5.0\n')
    assert difference(before, after) == {"prompt_tokens": 6}


@pytest.mark.parametrize(
    ("line", "counter"),
    [
        ("lmdeploy:prompt_tokens_total", "prompt_tokens"),
        ("lmdeploy:generation_tokens_total", "generated_tokens"),
        ("trtllm_request_success_total", "requests"),
        ("trtllm_generation_tokens_total", "generated_tokens"),
        ("mine_input_tokens_total", "prompt_tokens"),
        ("output_tokens_total", "generated_tokens"),
        ('http_requests_total{code="500"}', "errors"),
        ('mine:http_responses_total{path="/v1/completions",status="404"}', "errors"),
    ],
)
def test_other_servers_that_name_their_counters_likewise(line: str, counter: str) -> None:
    assert difference(counters(f"{line} 1\n"), counters(f"{line} 4\n")) == {counter: 3}


@pytest.mark.parametrize(
    "line",
    [
        "sglang:num_retracted_input_tokens_total",
        "vllm:prompt_tokens_cached_total",
        "vllm:prompt_tokens_by_source_total",
        "cached_prompt_tokens_total",
        "uncached_prompt_tokens_total",
        "vllm:iteration_tokens_total_sum",
        "vllm:prompt_tokens_created",
        "sglang:http_requests_total",
        "requests_total",
        'vllm:request_success_total_bucket{le="1"}',
    ],
)
def test_what_is_called_similarly_and_is_something_else(line: str) -> None:
    text = f"# TYPE x counter\n{line} "
    assert difference(counters(f"{text}1\n"), counters(f"{text}4\n")) is None


def test_answers_to_the_questions_of_this_package_are_no_errors() -> None:
    line = 'sglang:http_responses_total{{endpoint="{}",status_code="503"}} {}\n'
    before = counters(line.format("/health", 1) + line.format("/generate", 1))
    after = counters(line.format("/health", 9) + line.format("/generate", 2))
    assert difference(before, after) == {"errors": 1}


def test_an_unknown_reading_makes_an_unknown_difference() -> None:
    one = counters(LLAMA)
    assert [difference(None, one), difference(one, None), difference(None, None)] == [None] * 3


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-1"])
def test_a_value_that_no_counter_has_is_left_out(value: str) -> None:
    before = counters(f"a:prompt_tokens_total {value}\na:num_requests_total 1\n")
    after = counters(f"a:prompt_tokens_total {value}\na:num_requests_total 2\n")
    assert difference(before, after) == {"requests": 1}


@pytest.mark.parametrize(
    "lines",
    [
        b"vllm:prompt_tokens_total{\n",
        b"vllm:prompt_tokens_total twelve\n",
        b'vllm:prompt_tokens_total{a="b} 1\n',
        b"vllm:prompt_tokens_total{a=1} 1\n",
        b"vllm:prompt_tokens_total \n",
    ],
)
def test_lines_that_are_no_samples_make_no_difference(lines: bytes) -> None:
    assert difference(counters(LLAMA), Counters(1, lines)) is None


LINES = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda name, rest: name + rest,
        st.sampled_from([b"vllm:prompt_tokens_total", b'http_requests_total{status="', b"# TYPE a counter"]),
        st.binary(max_size=30)
        | st.sampled_from([b" 1", b" -1", b" 1e308", b'{a="1"} 1e308', b'{a="\\', b"} -1 1", b' # {"x"} 1']),
    ),
)


@given(st.lists(LINES, max_size=8), st.lists(LINES, max_size=8))
def test_no_text_does_any_harm(before: list[bytes], after: list[bytes]) -> None:
    readings = []
    for lines in (before, after):
        filtered = engine_metrics._filtered(b"\n" + b"\n".join(lines) + b"\n")
        readings.append(None if filtered is None else Counters(1, filtered))
    found = difference(*readings)
    assert found is None or all(value >= 0 for value in found.values())


def test_the_last_line_of_a_text_that_was_cut_does_not_count() -> None:
    cut = counters("a:num_requests_total 1\na:prompt_tokens_total 12")
    assert difference(counters("a:num_requests_total 1\n"), cut) == {"requests": 0}


def test_a_flood_of_label_sets_is_refused() -> None:
    flood = "".join(f'a:prompt_tokens_total{{path="{number}"}} 1\n' for number in range(100_000))
    begin = time.monotonic()
    assert engine_metrics._filtered(b"\n" + flood.encode()) is None
    assert time.monotonic() - begin < HUNG


# Reading, from servers on a socket.


class Listener:
    """Serves each connection with a function, and notes what it was asked."""

    def __init__(self, behaviour: Behaviour, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.create_server((host, 0), family=family)
        port = self.socket.getsockname()[1]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self.behaviour = behaviour
        self.connections: list[socket.socket] = []
        self.requests: list[bytes] = []
        self.bytes_sent = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                self.connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.settimeout(60)
            self.behaviour(connection)

    def request(self, connection: socket.socket) -> bytes:
        """Read a request; nothing at the end of the connection."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(65536)
            if not more:
                return b""
            data += more
        with self._lock:
            self.requests.append(data)
        return data

    def close(self) -> None:
        self.socket.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    """Start servers: ``listen(answering(b"..."))``."""
    made: list[Listener] = []

    def start(behaviour: Callable[[Listener], Behaviour], host: str = "127.0.0.1") -> Listener:
        listener = Listener(lambda connection: behaviour(listener)(connection), host)
        made.append(listener)
        return listener

    yield start
    for listener in made:
        listener.close()


@pytest.fixture
def metrics() -> Iterator[EngineMetrics]:
    made = EngineMetrics()
    yield made
    made.close()


def server_at(url: str, backend: str = "remote", **settings: Any) -> InferenceServer:
    """Return a server as it is when it runs."""
    server = create_server(backend, url=url, **settings)
    server.runtime.change(state=ServerState.READY)
    return server


def http_answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def answering(*answers: bytes, pause: float = 0) -> Callable[[Listener], Behaviour]:
    """Answer one request after the other on the same connection; the last answer is for all further ones."""

    def make(listener: Listener) -> Behaviour:
        def behave(connection: socket.socket) -> None:
            while request := listener.request(connection):
                time.sleep(pause)
                connection.sendall(answers[min(len(listener.requests), len(answers)) - 1])
                if b"Connection: close" in request:
                    return

        return behave

    return make


def once(data: bytes) -> Callable[[Listener], Behaviour]:
    """Answer one request and hang up."""

    def make(listener: Listener) -> Behaviour:
        return lambda connection: listener.request(connection) and connection.sendall(data)

    return make


def endless(head: bytes, piece: bytes, pause: float = 0, limit: float = 60) -> Callable[[Listener], Behaviour]:
    """Answer with a head and then without an end."""

    def make(listener: Listener) -> Behaviour:
        def behave(connection: socket.socket) -> None:
            listener.request(connection)
            connection.sendall(head)
            begin = time.monotonic()
            while time.monotonic() - begin < limit:
                connection.sendall(piece)
                listener.bytes_sent += len(piece)
                time.sleep(pause)

        return behave

    return make


MEGABYTE = b"# a comment\n" * 87_382
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
WITHOUT_METRICS = {
    "404": once(http_answer(b"{}", "404 Not Found")),
    "405": once(http_answer(b"{}", "405 Method Not Allowed")),
    "501": once(http_answer(b'{"error": "This server does not support metrics endpoint"}', "501 Not Implemented")),
    "401": once(http_answer(VLLM, "401 Unauthorized")),
    "500": once(http_answer(VLLM, "500 Internal Server Error")),
    "503": once(http_answer(b"", "503 Service Unavailable")),
    "elsewhere": once(http_answer(b"", "307 Temporary Redirect", "Location: /metrics/")),
    "html": once(http_answer(b"<html>\n<body>vllm:prompt_tokens_total 1</body></html>\n")),
    "json": once(http_answer(b'{"prompt_tokens_total": 1}\n')),
    "another encoding": once(http_answer(VLLM.decode().encode("utf-16"))),
    "packed": once(http_answer(gzip.compress(VLLM), "200 OK", "Content-Encoding: gzip")),
    "no http": once(b"\xff\x00garbage\n" * 10),
    "ssh": once(b"SSH-2.0-OpenSSH\r\n"),
    "nothing": once(b""),
    "an empty text": once(http_answer(b"")),
    "cut": once(http_answer(LLAMA)[:-10]),
    "cut in a chunk": once(CHUNKED + b"fff\r\n" + LLAMA),
    "no chunk": once(CHUNKED + b"zzz\r\n" + LLAMA),
    "a chunk below zero": once(CHUNKED + b"-5\r\n" + LLAMA),
    "a length that is none": once(OK + b"Content-Length: many\r\n\r\n"),
    "thousand headers": once(OK + b"X: y\r\n" * 1000 + b"\r\n"),
    "a long header": once(OK + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n"),
}
ENDLESS = {
    "silent": endless(b"", b"", 1),
    "drips its status line": endless(b"", b"H", 0.05),
    "drips its headers": endless(OK, b"X: y\r\n", 0.05),
    "drips its body": endless(OK + b"\r\n", b"a:prompt_tokens_total 1\n", 0.05),
    "drips the size of a chunk": endless(CHUNKED, b"0", 0.05),
    "stops in a body": endless(OK + b"Content-Length: 100\r\n\r\na", b"", 1),
    "stops in a huge body": endless(OK + b"Content-Length: 1000000000000000000\r\n\r\na", b"", 1),
    "stops in a huge chunk": endless(CHUNKED + b"ffffffffffffff\r\na", b"", 1),
    "always continues": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "floods without a length": endless(OK + b"\r\n", MEGABYTE),
    "floods with a length": endless(OK + b"Content-Length: 104857600\r\n\r\n", MEGABYTE),
    "floods in chunks": endless(CHUNKED, b"%x\r\n%b\r\n" % (len(MEGABYTE), MEGABYTE)),
    "floods a line": endless(OK + b"\r\n", b"x" * 1_000_000),
}


@pytest.mark.parametrize("name", WITHOUT_METRICS)
def test_a_server_without_metrics_is_asked_once(
    listen: Callable[..., Listener], metrics: EngineMetrics, name: str
) -> None:
    listener = listen(WITHOUT_METRICS[name])
    server = server_at(listener.url, "vllm", model="m")
    assert [metrics.read(server) for _ in range(5)] == [None] * 5
    assert len(listener.connections) == 1
    server.runtime.change(launches=server.launches + 1)
    assert metrics.read(server) is None
    assert len(listener.connections) == 2


@pytest.mark.parametrize("name", ENDLESS)
def test_a_server_without_an_end_costs_two_short_readings(
    listen: Callable[..., Listener], metrics: EngineMetrics, name: str
) -> None:
    listener = listen(ENDLESS[name])
    server = server_at(listener.url)
    begin = time.monotonic()
    assert [metrics.read(server) for _ in range(100)] == [None] * 100
    assert time.monotonic() - begin < HUNG
    assert len(listener.connections) <= 2
    # What the sockets hold comes on top of the limit.
    assert listener.bytes_sent < 2 * 50_000_000


def test_a_server_that_accepts_no_connection(metrics: EngineMetrics) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        begin = time.monotonic()
        server = server_at(f"http://127.0.0.1:{address[1]}")
        assert [metrics.read(server) for _ in range(50)] == [None] * 50
        assert time.monotonic() - begin < HUNG
        for one in waiting:
            one.close()


def test_a_closed_port_and_a_url_that_cannot_be_asked(metrics: EngineMetrics) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert metrics.read(server_at(f"http://127.0.0.1:{port}")) is None
    assert metrics.read(server_at(f"http://127.0.0.1:{port}", endpoints={"metrics": "/a b"})) is None


def test_a_server_that_does_not_run_is_not_asked(listen: Callable[..., Listener], metrics: EngineMetrics) -> None:
    listener = listen(answering(http_answer(LLAMA)))
    server = create_server("remote", url=listener.url)
    assert metrics.read(server) is None
    assert not listener.connections


def test_a_slow_server_gives_two_readings(listen: Callable[..., Listener], metrics: EngineMetrics) -> None:
    listener = listen(answering(http_answer(LLAMA), pause=1.2))
    server = server_at(listener.url)
    assert [metrics.read(server) for _ in range(3)] == [counters(LLAMA, launches=0)] * 2 + [None]
    assert len(listener.requests) == 2


def test_a_server_that_dies_in_the_middle(listen: Callable[..., Listener], metrics: EngineMetrics) -> None:
    answers = (http_answer(LLAMA), http_answer(LLAMA)[:300])

    def make(listener: Listener) -> Behaviour:
        def behave(connection: socket.socket) -> None:
            for answer in answers:
                listener.request(connection)
                connection.sendall(answer)
            listener.socket.close()

        return behave

    server = server_at(listen(make).url, "llamacpp", model="m")
    assert metrics.read(server) is not None
    assert metrics.read(server) is None
    assert metrics.read(server) is None


def test_engines_keep_the_connection(listen: Callable[..., Listener], metrics: EngineMetrics) -> None:
    listener = listen(answering(http_answer(LLAMA)))
    server = server_at(listener.url, "llamacpp", model="m")
    assert [metrics.read(server) for _ in range(10)] == [counters(LLAMA, launches=0)] * 10
    assert len(listener.requests) == 10
    assert len(listener.connections) == 1


def test_a_connection_that_the_server_has_closed_is_opened_again(
    listen: Callable[..., Listener], metrics: EngineMetrics
) -> None:
    listener = listen(once(http_answer(LLAMA)))
    server = server_at(listener.url, "llamacpp", model="m")
    for number in range(1, 6):
        assert metrics.read(server) is not None
        assert len(listener.connections) == number


def test_a_server_that_serves_one_connection_after_the_other_is_not_kept_busy(metrics: EngineMetrics) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.wfile.write(http_answer(LLAMA))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as engine:
        thread = threading.Thread(target=engine.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            url = f"http://127.0.0.1:{engine.server_port}"
            assert metrics.read(server_at(url)) is not None
            with urllib.request.urlopen(url, timeout=HUNG) as response:
                assert response.read() == LLAMA
        finally:
            engine.shutdown()
            thread.join()


def test_connections_to_servers_that_are_gone_are_closed(
    listen: Callable[..., Listener], metrics: EngineMetrics
) -> None:
    listener = listen(answering(http_answer(LLAMA)))
    gone, other = (server_at(listener.url, "llamacpp", model="m") for _ in range(2))
    assert metrics.read(gone) is not None
    gone.runtime.change(state=ServerState.STOPPED)
    assert metrics.read(other) is not None
    assert list(metrics._sources) == [other]
    deadline = time.monotonic() + HUNG
    # Its thread comes to the end of the connection and closes it.
    while listener.connections[0].fileno() != -1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert listener.connections[1].fileno() != -1


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_nothing_is_left_open_after_close(listen: Callable[..., Listener]) -> None:
    listener = listen(answering(http_answer(LLAMA)))
    one = EngineMetrics()
    server = server_at(listener.url, "llamacpp", model="m")
    assert one.read(server) is not None
    one.close()
    one.close()
    assert one.read(server) is not None
    assert len(listener.connections) == 2
    one.close()


def test_the_question(listen: Callable[..., Listener], metrics: EngineMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    listener = listen(answering(http_answer(LLAMA)), host="::1")
    key = {"server_args": {"api-key": "sk-secret"}}
    server = server_at(listener.url + "/llm", "llamacpp", model="m", config=key, endpoints={"metrics": "/stats?all=1"})
    assert metrics.read(server) is not None
    lines = listener.requests[0].decode().split("\r\n")
    assert lines[0] == "GET /llm/stats?all=1 HTTP/1.1"
    assert "Authorization: Bearer sk-secret" in lines
    assert f"Host: {listener.url.removeprefix('http://')}" in lines


def test_an_api_key_that_is_no_header_does_no_harm(listen: Callable[..., Listener], metrics: EngineMetrics) -> None:
    listener = listen(answering(http_answer(LLAMA)))
    server = server_at(listener.url, "vllm", model="m", config={"server_args": {"api-key": "sk\nX: y"}})
    assert metrics.read(server) is None
    assert not listener.requests


def test_a_server_that_cannot_say_where_it_is_does_no_harm(
    metrics: EngineMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = server_at("http://127.0.0.1:9")
    monkeypatch.setattr(type(server), "server_url", "http://[::1")
    assert metrics.read(server) is None
    assert metrics.read(server) is None


def vllm(selection: bytes | None, status: str = "200 OK") -> Callable[[Listener], Behaviour]:
    """Be a vLLM that answers a selection with this; with None it selects."""

    def make(listener: Listener) -> Behaviour:
        def behave(connection: socket.socket) -> None:
            while request := listener.request(connection):
                target = request.split()[1].decode()
                if "?" not in target:
                    connection.sendall(http_answer(VLLM))
                elif selection is not None:
                    connection.sendall(http_answer(selection, status))
                else:
                    names = target.partition("?")[2].removeprefix("name[]=").split("&name[]=")
                    lines = [line for line in VLLM.decode().splitlines() if line.partition("{")[0] in names]
                    connection.sendall(http_answer("".join(line + "\n" for line in lines).encode()))

        return behave

    return make


def test_vllm_is_asked_for_a_selection(listen: Callable[..., Listener], metrics: EngineMetrics) -> None:
    listener = listen(vllm(None))
    server = server_at(listener.url, "vllm", model="m")
    first, second, third = (metrics.read(server) for _ in range(3))
    assert difference(first, second) == {"prompt_tokens": 0, "generated_tokens": 0, "requests": 0, "errors": 0}
    assert second == third
    targets = [request.split()[1] for request in listener.requests]
    assert targets[0] == b"/metrics"
    assert targets[1].startswith(b"/metrics/?name[]=vllm:prompt_tokens_total&")
    assert len(targets) == 3


@pytest.mark.parametrize(
    ("selection", "status"), [(b"", "200 OK"), (b"{}", "404 Not Found"), (b"<html>", "200 OK"), (VLLM, "500 Oh")]
)
def test_a_vllm_that_cannot_select_is_asked_for_all(
    listen: Callable[..., Listener], metrics: EngineMetrics, selection: bytes, status: str
) -> None:
    listener = listen(vllm(selection, status))
    server = server_at(listener.url, "vllm", model="m")
    assert [metrics.read(server) for _ in range(4)] == [counters(VLLM, launches=0)] * 4
    assert [b"?" in request.split()[1] for request in listener.requests] == [False, True, False, False, False]


def test_an_engine_that_has_counted_nothing_yet_is_asked_again(
    listen: Callable[..., Listener], metrics: EngineMetrics
) -> None:
    answers = (http_answer(b"# HELP a b\n# TYPE a gauge\na 1\n"), http_answer(LLAMA))
    server = server_at(listen(answering(*answers)).url, "llamacpp", model="m")
    found = difference(metrics.read(server), metrics.read(server))
    assert found is not None
    assert found["generated_tokens"] > 1000


def test_threads_take_turns(listen: Callable[..., Listener], metrics: EngineMetrics) -> None:
    listener = listen(answering(http_answer(LLAMA)))
    server = server_at(listener.url, "llamacpp", model="m")
    found: list[Counters | None] = []

    def read() -> None:
        found.extend(metrics.read(server) for _ in range(50))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HUNG)
    assert found == [counters(LLAMA, launches=0)] * 400
    assert len(listener.connections) == 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.usefixtures("nothing_left")
def test_a_fork_has_a_connection_of_its_own(listen: Callable[..., Listener], metrics: EngineMetrics) -> None:
    listener = listen(answering(http_answer(LLAMA)))
    server = server_at(listener.url, "llamacpp", model="m")
    assert metrics.read(server) is not None
    # As if another thread were reading at that moment.
    with metrics._lock:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if metrics.read(server) == counters(LLAMA, launches=0) else 2
            finally:
                os._exit(code)
        deadline = time.monotonic() + HUNG
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        if ended == (0, 0):
            os.kill(child, 9)
            os.waitpid(child, 0)
    assert ended == (child, 0)
    assert metrics.read(server) is not None
    assert len(listener.connections) == 2
    assert len(listener.requests) == 3


def test_without_prometheus_client_nothing_is_asked(
    listen: Callable[..., Listener], metrics: EngineMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = listen(answering(http_answer(LLAMA)))
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert metrics.read(server_at(listener.url)) is None
    assert not listener.connections


def test_a_prometheus_client_that_cannot_be_imported_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client.parser", None)
    engine_metrics._parsed.cache_clear()
    assert difference(counters(LLAMA), counters(LLAMA)) is None


@pytest.mark.usefixtures("nothing_left")
def test_neither_the_plugin_nor_a_reading_imports_prometheus_client() -> None:
    code = """
import sys, pytest_infserver.plugin, pytest_infserver
from pytest_infserver.reporting.record.engine_metrics import EngineMetrics
print(sorted({name.partition(".")[0] for name in sys.modules} & {"prometheus_client", "requests"}))
EngineMetrics().read(pytest_infserver.create_server("remote", url="http://127.0.0.1:9"))
print("prometheus_client" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n") == ["[]", "False", ""]
