"""The probes of `ready`: when a server counts as ready, and what is said where it does not."""

from __future__ import annotations

import dataclasses
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import write_certificate

from pytest_infserver import ServerStartupError, ServerStartupTimeout, create_server
from pytest_infserver.launcher.diagnosis.log import ServerLog
from pytest_infserver.launcher.startup.probes.grpc import GrpcProbe
from pytest_infserver.launcher.startup.probes.log import LogProbe
from pytest_infserver.launcher.startup.probes.probe import Pointless, Probe
from pytest_infserver.launcher.startup.probes.tcp import TcpProbe
from pytest_infserver.launcher.startup.readiness import NotReady, ReadinessCheck, wait_until_ready
from pytest_infserver.system.http.address import Address
from pytest_infserver.system.http.probe import Answer

Make = Callable[..., Any]


def test_a_request_waits_for_the_model_and_the_health_endpoint_is_asked_later(reach_server: Make) -> None:
    ready = {"request": {"path": "/v1/completions", "json": {"prompt": "hi"}}}
    server = reach_server("--refuse-for=1.5", ready=ready, health_endpoint="/v1/models").start()
    assert server.start_seconds is not None
    assert server.start_seconds > 1.4
    assert server.check_health()


def test_a_request_that_is_refused_says_what_was_answered(reach_server: Make) -> None:
    ready = {"request": {"path": "/v1/completions", "json": {}}}
    server = reach_server("--refuse-for=1000", ready=ready, startup_timeout=2)
    expected = r"POST http://\S+/v1/completions answered 503: .*model is not loaded.* \(expected: status 2xx without"
    with pytest.raises(ServerStartupTimeout, match=expected):
        server.start()


REQUEST = {"request": {"path": "/v1/completions", "json": {}}}


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ('{"error": {"message": "still loading"}}', "still loading"),
        ('{"error": "still loading"}', "still loading"),
        ('{"object": "error", "message": "still loading"}', "still loading"),
        ('data: {"error": {"message": "still loading"}}\n\ndata: [DONE]\n\n', "still loading"),
    ],
)
@pytest.mark.parametrize("chunked", [False, True], ids=["at once", "in chunks"])
def test_an_answer_that_reports_an_error_is_none(reach_server: Make, said: str, shown: str, chunked: bool) -> None:
    flags = ["--chunked"] if chunked else []
    server = reach_server(f"--post={said}", *flags, ready=REQUEST, startup_timeout=1)
    with pytest.raises(ServerStartupTimeout, match=rf"answered 200: with an error: .*{shown}.*without an error\)"):
        server.start()


@pytest.mark.parametrize("said", ['{"error": null, "choices": []}', '{"error": 0.25}', "[]", "no JSON", "{" * 10_000])
def test_an_answer_that_reports_none(reach_server: Make, said: str) -> None:
    assert reach_server(f"--post={said}", ready=REQUEST).start().check_health()


def test_whoever_names_statuses_gets_what_he_names(reach_server: Make) -> None:
    ready = {"request": {"path": "/v1/completions", "json": {}, "status": 200}}
    assert reach_server('--post={"error": "of mine"}', ready=ready).start().check_health()


def test_an_answer_in_chunks_need_not_end_the_connection(reach_server: Make) -> None:
    server = reach_server("--chunked", ready=REQUEST).start()
    assert server.start_seconds < 10


def test_a_redirect_is_told_and_not_followed(reach_server: Make) -> None:
    server = reach_server("--redirect=/health/", startup_timeout=1)
    with pytest.raises(ServerStartupTimeout, match=r"/health answered 307: a redirect to /health/, which is not foll"):
        server.start()


def test_a_health_check_that_is_slow_gets_more_time(reach_server: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang's generates a token, after all requests that came before."""
    monkeypatch.setattr("pytest_infserver.launcher.startup.readiness._REQUEST_LIMIT", 0.2)
    server = reach_server("--slow=1").start()
    assert server.check_health()


def test_a_server_that_is_silent_is_not_said_to_be_away(reach_server: Make) -> None:
    """Its port was closed at first, and the one question after that was cut by the limit of the start."""
    server = reach_server("--slow=1000", startup_timeout=3)
    with pytest.raises(ServerStartupTimeout, match=r"/health gave no answer within [\d.]+ s"):
        server.start()


class _Answers(Probe):
    """Answers once, and never again."""

    subject = "it"

    def __init__(self, first: Answer) -> None:
        self.first: Answer | None = first
        self.limits: list[float] = []

    def look(self, limit: float, pointless: Pointless = lambda: False) -> Answer:
        self.limits.append(limit)
        answer, self.first = self.first, None
        if answer is None:
            time.sleep(limit)
            answer = Answer(None, "gave no answer", limit)
        return answer


class _Runs:
    """A process that does not end."""

    exit = None

    def wait_exit(self, seconds: float) -> None:
        time.sleep(min(seconds, 0.01))


@pytest.mark.parametrize(
    ("first", "told"),
    [
        (Answer(503, "", 0.0), "it answered 503"),
        # Nobody was there then; since then somebody is.
        (Answer(None, "refused the connection", 0.0, refused=True), "it gave no answer"),
    ],
)
def test_what_is_told_is_the_last_complete_answer(tmp_path: Path, first: Answer, told: str) -> None:
    probe = _Answers(first)
    check = ReadinessCheck([probe], startup_timeout=0.5, download_timeout=1, request_timeout=30)
    outcome = wait_until_ready(check, _Runs(), ServerLog(tmp_path, "x"))  # type: ignore[arg-type]
    assert isinstance(outcome, NotReady)
    assert outcome.problem == f"was not ready after 0.5 s (startup_timeout): {told}"
    # The second one was cut.
    assert len(probe.limits) == 2


def test_a_health_check_gets_no_more_time_than_a_heartbeat(reach_server: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_infserver.launcher.startup.readiness._REQUEST_LIMIT", 0.2)
    server = reach_server("--slow=1000", heartbeat_timeout=0.5, startup_timeout=3)
    with pytest.raises(ServerStartupTimeout, match=r"gave no answer within 0\.5 s"):
        server.start()


def test_a_line_of_an_earlier_launch_does_not_count(tmp_path: Path, nothing_left: None) -> None:
    # It says that it listens with its first start only.
    code = "import os, sys, time; os.path.exists(sys.argv[1]) or print('it listens', flush=True)\n"
    code += "open(sys.argv[1], 'w').close(); time.sleep(1000)"
    command = [sys.executable, "-S", "-c", code, str(tmp_path / "first")]
    settings: dict[str, Any] = {"ready": {"log": "^it listens"}, "output_dir": tmp_path / "logs"}
    server = create_server("command", launch_command=command, startup_timeout=4, **settings).start()
    server.stop()
    for one in (server, create_server("command", launch_command=command, startup_timeout=1, **settings)):
        with pytest.raises(ServerStartupTimeout, match="has no such line so far"):
            one.start()


def test_a_line_of_the_log(reach_server: Make) -> None:
    server = reach_server(port=False, ready={"log": "server (listens|waits)"}).start()
    assert "the server listens" in server.read_log()
    assert server.check_health()


def test_a_line_that_does_not_come(reach_server: Make) -> None:
    server = reach_server(ready={"log": "never written"}, startup_timeout=1)
    with pytest.raises(ServerStartupTimeout, match=r"its log has no such line so far .expected: a line that matches"):
        server.start()


def test_a_command(reach_server: Make, tmp_path: Path) -> None:
    code = f"import sys, os; print('not yet'); sys.exit(not os.path.exists('{tmp_path}/there'))"
    threading.Timer(1, (tmp_path / "there").touch).start()
    server = reach_server(ready={"command": [sys.executable, "-S", "-c", code]}).start()
    assert server.start_seconds > 0.9


def test_a_command_that_fails(reach_server: Make) -> None:
    ready = {"command": [sys.executable, "-S", "-c", "import sys; print('not yet, {port}'); sys.exit(3)"]}
    server = reach_server(ready=ready, startup_timeout=2)
    with pytest.raises(ServerStartupTimeout, match=r"exit status 3, its last line: not yet, \d+ .expected: exit"):
        server.start()


@pytest.mark.parametrize("script", ["sleep 1000", "exec >&- 2>&-; sleep 1000"], ids=["silent", "without output"])
def test_a_command_that_hangs_does_not_hide_the_server_s_end(
    tmp_path: Path, nothing_left: None, hard_limit: None, script: str
) -> None:
    code = "import sys, time; time.sleep(0.5); sys.exit(3)"
    settings: dict[str, Any] = {"ready": {"command": ["sh", "-c", script]}, "startup_timeout": 1000}
    server = create_server(
        "command",
        launch_command=[sys.executable, "-S", "-c", code],
        output_dir=tmp_path,
        heartbeat_timeout=900,
        **settings,
    )
    begin = time.monotonic()
    with pytest.raises(ServerStartupError, match="exited with code 3, before it was ready"):
        server.start()
    # The command itself gets 900 s.
    assert time.monotonic() - begin < 60


def test_all_must_hold(reach_server: Make) -> None:
    ready = [{"tcp": True}, {"log": "listens"}, {"http": "/nothing", "status": [404]}]
    assert reach_server(ready=ready).start().check_health()


def test_the_one_that_does_not_hold_is_named(reach_server: Make) -> None:
    server = reach_server(ready=[{"tcp": True}, {"http": "/nothing"}], startup_timeout=1)
    with pytest.raises(ServerStartupTimeout, match=r"/nothing answered 404"):
        server.start()


def test_log_lines_in_pieces_and_of_20_mb() -> None:
    news = [b"x" * (20 << 20), b"y\nit is re", b"ady\n"]
    probe = LogProbe("it is ready", lambda position, limit: (news.pop(0)[-limit:], 0, 0), 0)
    assert [probe.look(1).ok for _ in range(3)] == [False, False, True]
    assert len(probe._unfinished) <= 16 * 1024


def test_a_port_that_nobody_listens_on() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        probe = TcpProbe(Address(port=bound.getsockname()[1]))
        assert probe.told(probe.look(1)).endswith("refused the connection (expected: a connection)")


Serve = Callable[..., Address]
PEERS: list[str] = []
"""Who has asked a health service, one entry a question."""


@pytest.fixture
def health_service() -> Iterator[Serve]:
    """Return what serves a health service with an answer: the real server of grpcio."""
    grpc = pytest.importorskip("grpc")
    from concurrent.futures import ThreadPoolExecutor

    servers = []

    def serve(
        answer: bytes, where: str = "127.0.0.1:0", files: tuple[str, ...] = (), key: str | None = None
    ) -> Address:
        def check(request: bytes, context: Any) -> bytes:
            PEERS.append(context.peer())
            if key is not None and ("authorization", f"Bearer {key}") not in context.invocation_metadata():
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
            return answer

        server = grpc.server(ThreadPoolExecutor(1))
        handler = grpc.unary_unary_rpc_method_handler(check)
        handlers = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler})
        server.add_generic_rpc_handlers((handlers,))
        if files:
            certificate, private = (Path(file).read_bytes() for file in files[:2])
            port = server.add_secure_port(where, grpc.ssl_server_credentials([(private, certificate)]))
        else:
            port = server.add_insecure_port(where)
        server.start()
        servers.append(server)
        return Address("https" if files else "http", port=port)

    yield serve
    for server in servers:
        server.stop(0).wait()


@pytest.mark.parametrize(
    ("answer", "ok", "words"),
    [
        (b"\x08\x01", True, "answered SERVING"),
        (b"\x08\x02", False, "answered NOT_SERVING"),
        (b"", False, "answered UNKNOWN"),
    ],
)
def test_the_health_service_of_grpc(
    health_service: Serve, hard_limit: None, answer: bytes, ok: bool, words: str
) -> None:
    seen = GrpcProbe(health_service(answer)).look(10)
    assert (seen.ok, str(seen)) == (ok, words)


SERVING = b"\x08\x01"


def test_grpc_over_tls_with_an_authority(
    health_service: Serve, hard_limit: None, good_certificate: tuple[str, str, str]
) -> None:
    address = health_service(SERVING, files=good_certificate)
    assert GrpcProbe(dataclasses.replace(address, ca=good_certificate[2])).look(10).ok
    assert not GrpcProbe(address).look(10).ok


@pytest.mark.parametrize(
    ("trusts", "ok"),
    [
        ({"ca": 2}, False),
        ({"ca": 2, "check_hostname": False}, True),
        ({"ca": 0, "check_hostname": False}, True),
        ({"verify": False}, True),
    ],
    ids=["name is checked", "authority", "the server's own", "not verified"],
)
def test_grpc_over_tls_where_the_certificate_is_for_another_host(
    health_service: Serve, hard_limit: None, certificate: tuple[str, str, str], trusts: dict[str, Any], ok: bool
) -> None:
    address = health_service(SERVING, files=certificate)
    if "ca" in trusts:
        trusts = {**trusts, "ca": certificate[trusts["ca"]]}
    seen = GrpcProbe(dataclasses.replace(address, **trusts)).look(10)
    assert seen.ok is ok, str(seen)


def test_grpc_over_tls_where_another_certificate_is_trusted(
    health_service: Serve, hard_limit: None, certificate: tuple[str, str, str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    _, _, ca = write_certificate(other, "127.0.0.1")
    seen = GrpcProbe(dataclasses.replace(health_service(SERVING, files=certificate), ca=ca)).look(10)
    assert not seen.ok
    seen = GrpcProbe(dataclasses.replace(health_service(SERVING, files=certificate), ca=ca, check_hostname=False)).look(
        10
    )
    assert "CERTIFICATE_VERIFY_FAILED" in str(seen)


def test_grpc_with_a_key(health_service: Serve, hard_limit: None, good_certificate: tuple[str, str, str]) -> None:
    for files, ca in (((), None), (good_certificate, good_certificate[2])):
        address = dataclasses.replace(health_service(SERVING, files=files, key="key-of-the-test"), ca=ca)
        seen = GrpcProbe(address).look(10)
        assert str(seen).startswith("answered UNAUTHENTICATED: it wants an API key; name it with 'api_key'")
        assert GrpcProbe(dataclasses.replace(address, api_key="key-of-the-test")).look(10).ok


@pytest.mark.parametrize("kept", [True, False])
def test_a_heartbeat_keeps_its_channel(health_service: Serve, hard_limit: None, kept: bool) -> None:
    PEERS.clear()
    probe = GrpcProbe(health_service(SERVING))
    if kept:
        probe.keep()
    assert [probe.look(10).ok for _ in range(3)] == [True] * 3
    assert (len(PEERS), len(set(PEERS))) == (3, 1 if kept else 3)
    probe.close()
    assert probe.look(10).ok
    assert len(set(PEERS)) == (2 if kept else 4)
    probe.close()


def test_a_channel_that_is_kept_is_replaced_after_a_failure(health_service: Serve, hard_limit: None) -> None:
    probe = GrpcProbe(health_service(b"\x08\x02"))
    probe.keep()
    PEERS.clear()
    assert [probe.look(10).ok for _ in range(2)] == [False] * 2
    assert len(set(PEERS)) == 2


@pytest.mark.parametrize("name", ["file", "abstract"])
def test_grpc_on_a_unix_socket(
    health_service: Serve, hard_limit: None, name: str, good_certificate: tuple[str, str, str]
) -> None:
    with tempfile.TemporaryDirectory(prefix="reach-") as folder:
        path = f"{folder}/s.sock"
        where, uds = (f"unix:{path}", path) if name == "file" else (f"unix-abstract:{path}", f"\0{path}")
        address = dataclasses.replace(health_service(SERVING, where), uds=uds)
        assert GrpcProbe(address).look(10).ok
        assert TcpProbe(address).look(10).ok


def test_the_health_service_that_comes_with_grpcio(hard_limit: None) -> None:
    grpc = pytest.importorskip("grpc")
    health = pytest.importorskip("grpc_health.v1.health")
    messages = pytest.importorskip("grpc_health.v1.health_pb2")
    wiring = pytest.importorskip("grpc_health.v1.health_pb2_grpc")
    from concurrent.futures import ThreadPoolExecutor

    statuses = health.HealthServicer()
    server = grpc.server(ThreadPoolExecutor(1))
    wiring.add_HealthServicer_to_server(statuses, server)
    probe = GrpcProbe(Address(port=server.add_insecure_port("127.0.0.1:0")))
    server.start()
    try:
        told = {}
        for name in ("NOT_SERVING", "SERVING", "UNKNOWN"):
            statuses.set("", getattr(messages.HealthCheckResponse, name))
            told[str(probe.look(10))] = probe.look(10).ok
        assert told == {"answered NOT_SERVING": False, "answered SERVING": True, "answered UNKNOWN": False}
    finally:
        server.stop(0).wait()


def test_a_grpc_server_that_is_not_there(hard_limit: None) -> None:
    pytest.importorskip("grpc")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        begin = time.monotonic()
        seen = GrpcProbe(Address(port=bound.getsockname()[1])).look(5)
        assert not seen.ok
        assert str(seen) == "refused the connection"
        assert time.monotonic() - begin < 4
