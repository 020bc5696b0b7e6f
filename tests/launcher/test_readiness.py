"""When a server counts as ready, and how soon it is known that it never will be."""

from __future__ import annotations

import itertools
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import CommandServer, PortInUseError, ServerStartupError, ServerStartupTimeout
from pytest_infserver.launcher.diagnosis.log import ServerLog
from pytest_infserver.launcher.startup import readiness
from pytest_infserver.launcher.startup.probes.http import HttpProbe
from pytest_infserver.launcher.startup.readiness import NotReady, ReadinessCheck, _LogWatch, wait_until_ready
from pytest_infserver.system.http.address import Address
from pytest_infserver.system.http.probe import Answer

pytestmark = pytest.mark.usefixtures("nothing_left")

FakeServer = Callable[..., CommandServer]
SOON = 15.0
"""Generous: far below the startup_timeout of the fixture, far above what it takes."""


def variant(server: CommandServer, **patterns: tuple[bytes, ...]) -> CommandServer:
    """Return the same server with log patterns of its own."""
    compiled = {name: tuple(map(re.compile, values)) for name, values in patterns.items()}
    server.__class__ = type("Variant", (CommandServer,), compiled)
    return server


@contextmanager
def foreign_listener(answer: bytes) -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    kept = []

    def serve() -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            kept.append(connection)
            if answer:
                connection.recv(4096)
                connection.sendall(answer)
                connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for connection in kept:
            connection.close()


def test_loading_is_waited_for(fake_server: FakeServer) -> None:
    server = fake_server("--delay", "0.2", "--loading", "0.4").start()
    assert server.check_health()
    assert server.start_seconds is not None
    assert server.start_seconds >= 0.6


@pytest.mark.parametrize(
    ("switch", "reason"),
    [
        ("--mute", "gave no answer"),
        ("--drip", "gave no answer"),
        ("--garbage", "not HTTP"),
        ("--loading=100", "answered 503"),
        ("--delay=100", "refused the connection"),
    ],
)
def test_timeout_says_what_the_server_did(fake_server: FakeServer, switch: str, reason: str) -> None:
    server = fake_server(switch, startup_timeout=2, heartbeat_timeout=0.5)
    begin = time.monotonic()
    with pytest.raises(ServerStartupTimeout, match=reason):
        server.start()
    assert time.monotonic() - begin < SOON


@pytest.mark.parametrize(
    ("arguments", "code", "how"),
    [
        (["--exit=0"], 0, "exited with code 0"),
        (["--exit=1"], 1, "exited with code 1"),
        (["--die-of=9"], -9, "was killed by SIGKILL"),
        (["--die-of=6"], -6, "was killed by SIGABRT"),
    ],
)
def test_end_before_ready_is_reported_at_once(
    fake_server: FakeServer, arguments: list[str], code: int, how: str
) -> None:
    server = fake_server("--say", "RuntimeError: the reason", *arguments)
    begin = time.monotonic()
    with pytest.raises(ServerStartupError, match=f"{how}, before it was ready") as caught:
        server.start()
    assert time.monotonic() - begin < SOON
    assert not isinstance(caught.value, ServerStartupTimeout)
    assert caught.value.exit_code == code
    assert "cause:   RuntimeError: the reason" in str(caught.value)


def test_end_of_a_silent_server(fake_server: FakeServer) -> None:
    with pytest.raises(ServerStartupError, match="it wrote nothing"):
        fake_server("--exit=1").start()


def test_end_is_noticed_while_a_request_is_under_way(
    tmp_path: Path, nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection does not break: a child of the server, or anybody else, holds it open."""
    code = (
        "import os, socket, sys, time\n"
        "listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
        "kept = listener.accept()\n"
        "os.fork() or time.sleep(600)\n"
        "time.sleep(0.3); os._exit(5)\n"
    )
    command = [sys.executable, "-I", "-S", "-c", code, "{port}"]
    monkeypatch.setattr("pytest_infserver.launcher.startup.readiness._REQUEST_LIMIT", 60)
    server = CommandServer(launch_command=command, output_dir=tmp_path, stop_timeout=1, heartbeat_timeout=60)
    begin = time.monotonic()
    with pytest.raises(ServerStartupError, match="exited with code 5"):
        server.start()
    assert time.monotonic() - begin < SOON, "it took until the end of the request"


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_infserver.launcher.startup.readiness._FATAL_GRACE", 0.3)


def test_listening_where_nobody_asks_is_said_soon(fake_server: FakeServer) -> None:
    # The fake engine listens where its last --host says.
    server = fake_server("--host", "127.0.0.1", host="127.0.0.2", startup_timeout=60)
    begin = time.monotonic()
    with pytest.raises(ServerStartupError) as caught:
        server.start()
    assert time.monotonic() - begin < SOON
    text = str(caught.value)
    assert f"listens on 127.0.0.1 only, and is asked at http://127.0.0.2:{server.port}/health" in text
    assert "What to do: let it listen on 'host'; in a 'launch_command' that is {host}." in text


@pytest.mark.parametrize("host", ["127.0.0.2", "0.0.0.0"])
def test_listening_also_elsewhere_is_no_matter(fake_server: FakeServer, host: str) -> None:
    server = fake_server("--host", "0.0.0.0", "--delay", "2", host=host)
    server.on_warning = lambda text: None
    assert server.start().check_health()


def test_a_host_may_have_a_name(fake_server: FakeServer) -> None:
    # It listens at once and is silent for longer than one that listens elsewhere gets.
    server = fake_server("--host", "127.0.0.1", "--mute", host="localhost", startup_timeout=6)
    with pytest.raises(ServerStartupTimeout, match="was not ready after 6 s"):
        server.start()


def test_fatal_line_ends_the_wait(fake_server: FakeServer, short_grace: None) -> None:
    server = variant(
        fake_server("--say", "12:00 MODEL BROKEN beyond repair", "--delay=100"), fatal_patterns=(b"BROKEN",)
    )
    begin = time.monotonic()
    with pytest.raises(ServerStartupError, match=r"cause: +12:00 MODEL BROKEN beyond repair"):
        server.start()
    assert time.monotonic() - begin < SOON


def test_fatal_line_waits_for_the_servers_own_end(fake_server: FakeServer) -> None:
    server = variant(fake_server("--say=BROKEN", "--delay=1", "--exit=4"), fatal_patterns=(b"BROKEN",))
    with pytest.raises(ServerStartupError, match="exited with code 4") as caught:
        server.start()
    assert caught.value.exit_code == 4


def test_fatal_line_written_in_pieces_is_seen(tmp_path: Path, nothing_left: None, short_grace: None) -> None:
    code = (
        "import sys, time\n"
        "for piece in ('ok\\nMODEL ', 'BRO', 'KEN\\n', 'after\\n'):\n"
        "    print(piece, end='', flush=True); time.sleep(0.4)\n"
        "time.sleep(100)"
    )
    command = [sys.executable, "-I", "-S", "-c", code, "{port}"]
    server = variant(
        CommandServer(launch_command=command, output_dir=tmp_path, startup_timeout=30),
        fatal_patterns=(b"^MODEL BROKEN",),
    )
    with pytest.raises(ServerStartupError, match="reported a fatal error"):
        server.start()


def test_a_line_that_is_written_while_the_log_is_read_is_seen_once(tmp_path: Path) -> None:
    """Between two bytes of a look the server may write: they are read now or the next time, and never twice."""
    log = ServerLog(tmp_path, "a")
    log.path.parent.mkdir()
    pieces = [b"load", b"ing 4", b"3% d", b"one\n"]

    def write_on() -> None:
        with log.path.open("ab") as file:
            file.write(pieces.pop(0) if pieces else b"")

    class Written(ServerLog):
        def size(self) -> int:
            size = super().size()
            write_on()
            return size

        def read_new(self, position: int, limit: int) -> tuple[bytes, int, int]:
            found = super().read_new(position, limit)
            write_on()
            return found

    write_on()
    check = ReadinessCheck((), 1, 1, 1, fatal=[re.compile(rb"^loading 43% done$")])
    watch = _LogWatch(check, Written(tmp_path, "a"), 0, 0.0)
    found = []
    for _ in range(6):
        watch._read_new()
        found.append(watch.fatal_line)
    assert any(found)


DOWNLOAD = ("download_patterns", (rb"safetensors: +\d+%\|",))


def test_download_stops_the_startup_clock(fake_server: FakeServer) -> None:
    server = fake_server("--say", "model.safetensors:  43%|####", "--delay=2.5", startup_timeout=2)
    assert variant(server, **dict([DOWNLOAD])).start().check_health()


def test_download_has_a_limit_of_its_own(fake_server: FakeServer) -> None:
    server = fake_server(
        "--say", "model.safetensors:  43%|####", "--delay=100", startup_timeout=20, download_timeout=0.8
    )
    with pytest.raises(ServerStartupTimeout, match=r"still downloading.*download_timeout"):
        variant(server, **dict([DOWNLOAD])).start()


def test_startup_clock_goes_on_after_the_download(fake_server: FakeServer) -> None:
    server = fake_server("--say", "model.safetensors:  43%|####", "--say", "loading", "--delay=100", startup_timeout=1)
    with pytest.raises(ServerStartupTimeout, match=r"startup_timeout"):
        variant(server, **dict([DOWNLOAD])).start()


HEALTHY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def test_answer_of_a_foreign_server_is_not_ours(fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took the port after we had looked, and answers 200."""
    monkeypatch.setattr("pytest_infserver.launcher.startup.ports.is_free", lambda host, port, **how: True)
    found = pytest.raises(PortInUseError, match="another process answers there")
    with foreign_listener(HEALTHY) as port, found:
        fake_server("--delay=100", port=port).start()


def test_own_reason_counts_more_than_the_foreign_server(
    fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_infserver.launcher.startup.ports.is_free", lambda host, port, **how: True)
    found = pytest.raises(PortInUseError, match="Address already in use")
    with foreign_listener(HEALTHY) as port, found as caught:
        fake_server(port=port).start()
    assert caught.value.exit_code == 1


def test_listener_that_is_not_ours_to_own(fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under docker: the process that we launch is not the one that listens."""
    monkeypatch.setattr("pytest_infserver.launcher.startup.ports.is_free", lambda host, port, **how: True)
    with foreign_listener(HEALTHY) as port:
        server = fake_server("--delay=100", port=port, own_listener=False).start()
        assert server.check_health()
        server.stop()


def test_listener_may_be_a_daemon_of_the_server(tmp_path: Path, nothing_left: None) -> None:
    code = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0: os.execv(sys.argv[1], sys.argv[1:])\n"
        "    os._exit(0)\n"
        "time.sleep(100)"
    )
    engine = str(Path(__file__).parents[1] / "fake_engine.py")
    command = [sys.executable, "-I", "-S", "-c", code, sys.executable, "-S", engine, "--port", "{port}"]
    if sys.platform != "linux":
        pytest.skip("needs a child subreaper")
    with CommandServer(launch_command=command, output_dir=tmp_path, startup_timeout=30) as server:
        assert server.check_health()


def test_key_is_brought_to_a_health_endpoint_that_wants_one(fake_server: FakeServer) -> None:
    arguments = ["--need-key", "a-key-of-mine", "--api-key", "a-key-of-mine"]
    server = fake_server(*arguments, startup_timeout=20, heartbeat_interval=0.1).start()
    assert server.check_health()


class Clock:
    """The time as a wait for a server sees it, with a process and a log that change at given moments."""

    exit = None

    def __init__(self, news: Sequence[float], status: int | None) -> None:
        self.now = 0.0
        self.news = news
        self.status = status
        self.asked: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def wait_exit(self, seconds: float) -> None:
        self.now += seconds

    def ask(self, *_: object, **__: object) -> Answer:
        self.asked.append(self.now)
        return Answer(self.status, "refused the connection", 0.001)

    def size(self) -> int:
        # The server writes down that it was asked, some time later.
        asked = sum(moment + 0.05 < self.now for moment in self.asked)
        return asked + 100 * sum(moment <= self.now for moment in self.news)

    def read_new(self, position: int, limit: int) -> tuple[bytes, int, int]:
        return b"", 0, position


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Clock]:
    def wait(*news: float, status: int | None = 503) -> Clock:
        clock: Any = Clock(news, status)
        monkeypatch.setattr(readiness, "time", clock)
        probe = HttpProbe(Address(port=1), "http://127.0.0.1:1/health", asking=clock.ask)
        check = ReadinessCheck([probe], 60, 60, 5)
        outcome = wait_until_ready(check, clock, clock)
        assert isinstance(outcome, NotReady)
        assert outcome.timed_out
        return clock

    return wait


def test_a_server_that_answers_is_asked_less_often_the_longer_it_takes(clock: Callable[..., Clock]) -> None:
    asked = clock().asked
    assert len([moment for moment in asked if moment < 8]) < 120
    assert len(asked) < 180
    pauses = [later - moment for moment, later in itertools.pairwise(asked)]
    assert max(pauses) < 1.1
    # A quick server does not wait for that.
    assert max(pauses[:20]) < 0.02
    # Nor does it cost a server anything that its port is not open.
    assert len(clock(status=None).asked) > 500


def test_what_a_server_writes_by_itself_has_it_asked_at_once(clock: Callable[..., Clock]) -> None:
    news = [20.33, 20.77, 41.5]
    asked = clock(*news).asked
    for moment in news:
        assert min(late for when in asked if (late := when - moment) >= 0) < 0.11
    assert len(asked) < 190
