"""The life of one InferenceServer, with the fake engine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_infserver import (
    CommandServer,
    InferenceServer,
    InferenceServerError,
    PortInUseError,
    RemoteServer,
    ServerDiedError,
    ServerStartupError,
    ServerStartupTimeout,
    ServerState,
    VLLMServer,
)
from pytest_infserver.launcher.runtime import runtime
from pytest_infserver.launcher.startup.phases import Phase
from pytest_infserver.launcher.supervision.supervised_process import ServerProcess

pytestmark = pytest.mark.usefixtures("nothing_left")

FakeServer = Callable[..., CommandServer]


def children() -> list[psutil.Process]:
    """Return this process's children but those of the run itself: what is to be reaped, helpers, the pool's process."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            words = " ".join(child.cmdline())
            of_run = "multiprocessing" in words or "pytest_infserver.pool_process" in words
            if child.status() != psutil.STATUS_ZOMBIE and not of_run:
                found.append(child)
    return found


def get(server: CommandServer, path: str) -> Any:
    with urllib.request.urlopen(server.url_for(path), timeout=30) as response:
        return json.load(response)


def ask_for_death(server: CommandServer, path: str) -> None:
    with pytest.raises(OSError):
        get(server, path)
    assert server.wait_death(30)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


# Starting and stopping.


def test_a_life(fake_server: FakeServer) -> None:
    server = fake_server()
    assert (server.state, server.pid, server.launches, server.check_health()) == (ServerState.NEW, None, 0, False)
    assert server.start() is server
    assert server.state is ServerState.READY
    assert server.check_health()
    assert server.pid == get(server, "/argv")["pid"]
    assert server.start_seconds is not None
    assert server.start_seconds > 0
    server.stop()
    assert server.state is ServerState.STOPPED
    assert (server.pid, server.check_health(), server.why_died()) == (None, False, None)


def test_state_is_a_plain_word() -> None:
    words = ["new", "starting", "ready", "stopping", "stopped", "failed", "died"]
    assert [str(state) for state in ServerState] == words
    assert [f"{state}" for state in ServerState] == words
    assert ServerState.READY.value == "ready"


def test_start_twice_is_one_start(fake_server: FakeServer) -> None:
    server = fake_server().start()
    pid = server.pid
    assert server.start() is server
    assert (server.pid, server.launches) == (pid, 1)


def test_stop_before_start_and_twice(fake_server: FakeServer) -> None:
    server = fake_server()
    server.stop()
    assert server.state is ServerState.NEW
    server.start()
    server.stop()
    server.stop()
    assert server.state is ServerState.STOPPED


@pytest.fixture
def quiet_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose ports that other runs of these tests do not choose between a stop and a start."""
    first = 20_000 + os.getpid() % 1000 * 10
    monkeypatch.setattr("pytest_infserver.launcher.startup.ports._SEARCH", range(first, first + 10))


def test_start_after_stop_is_the_same_server_again(fake_server: FakeServer, quiet_ports: None) -> None:
    server = fake_server("--say", "launched").start()
    before = (server.name, server.port, server.server_url, server.log_path)
    first = server.pid
    server.stop()
    server.start()
    assert (server.name, server.port, server.server_url, server.log_path) == before
    assert server.pid != first
    assert server.read_log().count("launched") == 2
    assert server.read_log(server.runtime.status.launch_log_start).count("launched") == 1


@pytest.mark.parametrize(
    ("path", "how"),
    [
        ("/exit?code=0&say=bye", "exited with code 0"),
        ("/exit?code=7&say=ValueError:+broken", "exited with code 7"),
        ("/kill?signal=9", "was killed by SIGKILL"),
    ],
)
def test_crash_is_known_at_once_and_can_be_restarted(
    fake_server: FakeServer, quiet_ports: None, path: str, how: str
) -> None:
    server = fake_server("--children", "1").start()
    before = (server.port, server.server_url, server.name, server.log_path)
    ask_for_death(server, path)
    assert server.state is ServerState.DIED
    assert (server.pid, server.running, server.check_health()) == (None, False, False)
    with pytest.raises(ServerDiedError) as caught:
        server.raise_if_dead()
    assert how in str(caught.value)
    assert str(server.log_path) in str(caught.value)
    if "ValueError" in path:
        assert "ValueError: broken" in str(caught.value)
    server.start()
    assert server.check_health()
    assert (server.port, server.server_url, server.name, server.log_path) == before
    assert server.launches == 2


def test_stop_after_a_crash(fake_server: FakeServer) -> None:
    server = fake_server(debug_mode=True).start()
    ask_for_death(server, "/kill?signal=9")
    server.stop()
    assert server.state is ServerState.STOPPED


def test_with(fake_server: FakeServer) -> None:
    with fake_server() as server:
        assert server.check_health()
    assert server.state is ServerState.STOPPED


def test_with_on_a_server_that_runs_already(fake_server: FakeServer) -> None:
    server = fake_server().start()
    pid = server.pid
    with server as same:
        assert same is server
        assert server.pid == pid
    assert server.state is ServerState.STOPPED


def test_exception_inside_with_stops_and_passes_on(fake_server: FakeServer) -> None:
    server = fake_server()
    with pytest.raises(ZeroDivisionError), server:
        raise ZeroDivisionError
    assert server.state is ServerState.STOPPED


def test_failed_start_leaves_nothing_and_can_be_repeated(fake_server: FakeServer, tmp_path: Path) -> None:
    server = fake_server("--exit", "3", "--say", "ValueError: no such model", "--children", "2", "--daemon")
    for _ in range(2):
        with pytest.raises(ServerStartupError) as caught:
            server.start()
        error = caught.value
        assert (error.exit_code, error.log_path) == (3, server.log_path)
        for part in ("fake", "exited with code 3", "ValueError: no such model", str(server.log_path), "fake_engine"):
            assert part in str(error)
        assert server.state is ServerState.FAILED
        assert server.pid is None
        assert children() == []
    server.stop()


def test_startup_timeout(fake_server: FakeServer) -> None:
    server = fake_server("--delay", "100", "--ignore-term", startup_timeout=0.3, stop_timeout=0.5)
    with pytest.raises(ServerStartupTimeout, match=r"startup_timeout") as caught:
        server.start()
    assert caught.value.exit_code is None
    assert server.state is ServerState.FAILED


def test_stop_while_starting_in_another_thread(fake_server: FakeServer) -> None:
    server = fake_server("--loading", "0.3")
    thread = threading.Thread(target=server.start)
    thread.start()
    while server.state is ServerState.NEW:
        time.sleep(0.001)
    assert server.state is ServerState.STARTING
    server.stop()
    thread.join(60)
    assert server.state is ServerState.STOPPED


def test_two_threads_start_one_server(fake_server: FakeServer) -> None:
    server = fake_server()
    threads = [threading.Thread(target=server.start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (server.state, server.launches) == (ServerState.READY, 1)


# Cutting a start short.


class Start(threading.Thread):
    """A start in a thread of its own, and how it went."""

    def __init__(self, server: InferenceServer) -> None:
        super().__init__()
        self.server = server
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.server.start()
        except Exception as error:
            self.error = error

    def must_be_cancelled(self) -> None:
        self.join(30)
        assert not self.is_alive()
        assert isinstance(self.error, ServerStartupError)
        assert str(self.error) == f"{self.server}: its start was cancelled"
        assert (self.server.state, self.server.pid) == (ServerState.FAILED, None)


@pytest.mark.parametrize(
    "arguments",
    [["--delay", "600"], ["--delay", "600", "--ignore-term", "--children", "2"], ["--loading", "600"], ["--mute"]],
)
def test_cancelled_start(fake_server: FakeServer, arguments: list[str]) -> None:
    server = fake_server(*arguments, startup_timeout=600)
    start = Start(server)
    while server.pid is None:
        time.sleep(0.001)
    time.sleep(0.3)
    server.cancel_start()
    begin = time.monotonic()
    start.must_be_cancelled()
    assert time.monotonic() - begin < 30
    server.stop()
    assert server.state is ServerState.STOPPED


def test_start_cancelled_before_its_launch(fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = fake_server()
    monkeypatch.setattr(server, "require_engine", server.cancel_start)
    Start(server).must_be_cancelled()
    assert server.launches == 0


@pytest.mark.parametrize("moment", ["launch", "mark_ready"])
def test_start_cancelled_around_its_launch(
    fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    server = fake_server()
    real = getattr(ServerProcess, moment)

    def cancel(process: ServerProcess, *arguments: Any) -> None:
        server.cancel_start()
        real(process, *arguments)

    monkeypatch.setattr(ServerProcess, moment, cancel)
    Start(server).must_be_cancelled()
    assert server.launches == 1


def test_cancelling_is_about_one_start(fake_server: FakeServer) -> None:
    server = fake_server()
    server.cancel_start()
    server.start()
    server.cancel_start()
    assert server.check_health()
    server.stop()
    server.cancel_start()
    server.start()
    assert server.check_health()


def test_cancelling_at_any_moment(fake_server: FakeServer) -> None:
    server = fake_server()
    for step in range(12):
        start = Start(server)
        time.sleep(step * 0.012)
        server.cancel_start()
        start.join(30)
        assert not start.is_alive()
        if start.error is None:
            assert server.check_health()
            server.stop()
        else:
            assert "start was cancelled" in str(start.error)
        assert children() == []


@pytest.mark.parametrize("arguments", [["--loading", "600"], ["--mute"]])
def test_cancelled_attaching(fake_server: FakeServer, arguments: list[str]) -> None:
    own = fake_server(*arguments)
    own_start = Start(own)
    while not own.pid or not has_listener(own.port):
        time.sleep(0.01)
    remote = RemoteServer(url=own.server_url, startup_timeout=600, heartbeat_timeout=600)
    start = Start(remote)
    while remote.state is not ServerState.STARTING:
        time.sleep(0.001)
    time.sleep(0.2)
    remote.cancel_start()
    start.join(10)
    assert str(start.error) == "remote: its start was cancelled"
    own.cancel_start()
    own_start.must_be_cancelled()


def test_cancelled_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nothing_left: None) -> None:
    def endless(model: str, progress: Callable[[str], None]) -> None:
        while True:
            progress("1 of 2 MB")
            time.sleep(0.01)

    monkeypatch.setattr("pytest_infserver.launcher.startup.launching.ensure_builtin", endless)
    server = CommandServer(
        launch_command=[sys.executable, "{model}", "{port}"], model="builtin:smollm2", output_dir=tmp_path
    )
    server.on_progress = lambda text: server.cancel_start()
    Start(server).must_be_cancelled()


def test_kill_ends_a_stop_that_waits(fake_server: FakeServer) -> None:
    server = fake_server("--ignore-term", "--children", "1", stop_timeout=600).start()
    thread = threading.Thread(target=server.stop)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    server.kill()
    thread.join(30)
    assert not thread.is_alive()
    assert server.state is ServerState.STOPPED


@pytest.mark.parametrize("arguments", [(), ("--ignore-term",)])
def test_a_killed_server_says_so_and_has_left_nothing_behind(
    fake_server: FakeServer, arguments: tuple[str, ...]
) -> None:
    server = fake_server(*arguments, "--children", "1").start()
    server.kill()
    assert server.wait_death(30)
    assert (server.why_died() or "").startswith(f"{server} was killed by server.kill(), while it was in use")
    server.stop()
    assert server.survivors == ()


def test_kill_ends_a_start(fake_server: FakeServer) -> None:
    server = fake_server("--delay", "600", "--ignore-term")
    server.kill()
    start = Start(server)
    while server.pid is None:
        time.sleep(0.001)
    server.kill()
    start.join(30)
    assert isinstance(start.error, ServerStartupError)
    assert server.state is ServerState.FAILED


def has_listener(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def test_shared_server_refuses_to_stop(fake_server: FakeServer) -> None:
    server = fake_server().start()
    server.runtime.stop_refusal = "shared with others"
    with pytest.raises(InferenceServerError, match="shared with others"):
        server.stop()
    assert server.check_health()


def in_a_fork(function: Callable[[], object]) -> str:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os.write(write, b"done")
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text


def test_fork_of_the_owner_cannot_stop_or_restart_it(fake_server: FakeServer) -> None:
    server = fake_server().start()
    assert "belongs to process" in in_a_fork(server.stop)
    assert "belongs to process" in in_a_fork(server.start)
    assert server.check_health()


def test_fork_can_start_a_server_made_before(fake_server: FakeServer) -> None:
    server = fake_server()

    def live() -> None:
        server.start()
        server.stop()

    assert in_a_fork(live) == "done"


# What it tells.


def test_check_health_asks_now(fake_server: FakeServer) -> None:
    server = fake_server(heartbeat_interval=100).start()
    assert server.check_health()
    get(server, "/sick")
    assert not server.check_health()
    assert server.state is ServerState.READY


def test_check_health_is_bounded(fake_server: FakeServer) -> None:
    server = fake_server(heartbeat_timeout=0.2).start()
    os.kill(server.pid or 0, signal.SIGSTOP)
    begin = time.monotonic()
    assert not server.check_health()
    assert time.monotonic() - begin < 30
    os.kill(server.pid or 0, signal.SIGCONT)
    assert server.check_health()


@pytest.mark.parametrize("path", ["/v1/models", "v1/models", "//v1/models"])
def test_url_for(fake_server: FakeServer, path: str) -> None:
    assert fake_server(port=9).url_for(path) == "http://127.0.0.1:9/v1/models"


def test_read_log(fake_server: FakeServer) -> None:
    server = fake_server("--say", "erste Zeile: ä", "--say", "second").start()
    assert server.read_log().splitlines()[:2] == ["erste Zeile: ä", "second"]
    before = server.log_size
    get(server, "/say?text=later")
    assert server.read_log(before) == "later\n"
    assert server.read_log(0, 6).endswith("later\n")
    assert "left out" in server.read_log(0, 6)


def test_log_that_is_deleted_while_it_runs(fake_server: FakeServer) -> None:
    server = fake_server().start()
    server.log_path.unlink()
    get(server, "/say?text=unheard")
    assert server.read_log() == ""
    assert server.log_size == 0
    ask_for_death(server, "/exit?code=1")
    assert "exited with code 1" in str(server.why_died())
    server.start()
    assert server.log_path.exists()


# What it is given.


def test_env_vars_reach_the_server_and_null_unsets(fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INHERITED", "yes")
    monkeypatch.setenv("UNWANTED", "yes")
    monkeypatch.setenv("CHANGED", "before")
    values = {"UNWANTED": None, "CHANGED": "after", "NUMBER": 3, "LINES": "a\nb", "NEVER_SET": None}
    server = fake_server(env_vars=values).start()
    env = get(server, "/argv")["env"]
    assert (env["INHERITED"], env["CHANGED"], env["NUMBER"], env["LINES"]) == ("yes", "after", "3", "a\nb")
    assert "UNWANTED" not in env
    assert "NEVER_SET" not in env
    assert "PYTEST_CURRENT_TEST" not in env


def test_working_directory_is_ours(fake_server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    server = fake_server(output_dir="logs").start()
    assert Path(get(server, "/argv")["cwd"]) == tmp_path
    assert server.log_path == tmp_path / "logs" / "fake" / "server.log"


@pytest.mark.parametrize(
    ("host", "url"), [("0.0.0.0", "http://127.0.0.1"), ("localhost", "http://localhost"), ("::1", "http://[::1]")]
)
def test_host(fake_server: FakeServer, host: str, url: str) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("no IPv6 on this machine")
    if host == "0.0.0.0":
        # Only the address: the engine itself listens on loopback.
        server = fake_server(host=host).start()
    else:
        server = fake_server("--host", "{host}", host=host).start()
    assert server.server_url == f"{url}:{server.port}"
    assert server.check_health()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_host_that_is_not_this_machine(fake_server: FakeServer, host: str) -> None:
    for port in (None, 8123):
        with pytest.raises(ServerStartupError, match=rf"{host}.*Set 'host'") as caught:
            fake_server(host=host, port=port).start()
        assert not isinstance(caught.value, PortInUseError)


def test_second_server_of_one_name_gets_a_folder_of_its_own(fake_server: FakeServer, tmp_path: Path) -> None:
    first, second, third = (fake_server("--say", word) for word in ("one", "two", "three"))
    first.start()
    second.start()
    assert [server.log_path.parent.name for server in (first, second)] == ["fake", "fake-2"]
    assert [server.read_log() for server in (first, second)] == ["one\n", "two\n"]
    first.stop()
    second.stop()
    second.start()
    assert second.log_path.parent.name == "fake-2"
    assert second.read_log() == "two\ntwo\n"
    third.start()
    assert third.log_path.parent.name == "fake"
    assert third.read_log() == "three\n"
    assert third.log_path.with_name("server.previous.log").read_text() == "one\n"


def test_output_dir_that_cannot_be_written(fake_server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    server = fake_server(output_dir=tmp_path / "file" / "logs")
    with pytest.raises(ServerStartupError, match=r"log cannot be written.*output_dir"):
        server.start()
    assert server.state is ServerState.FAILED
    assert server.launches == 0


def test_missing_binary_starts_nothing(tmp_path: Path) -> None:
    server = CommandServer(launch_command=["no-such-engine", "{port}"], output_dir=tmp_path / "logs")
    with pytest.raises(ServerStartupError, match=r"no-such-engine.*not on PATH.*binary_path"):
        server.start()
    assert not (tmp_path / "logs").exists()


def test_file_that_cannot_be_executed(tmp_path: Path, nothing_left: None) -> None:
    engine = tmp_path / "engine"
    engine.write_bytes(b"\0")
    engine.chmod(0o755)
    server = CommandServer(launch_command=[str(engine), "{port}"], output_dir=tmp_path / "logs")
    with pytest.raises(ServerStartupError, match="Exec format error") as caught:
        server.start()
    assert str(engine) in str(caught.value)
    assert children() == []


def test_attached_server_is_neither_started_nor_stopped(fake_server: FakeServer) -> None:
    server = fake_server().start()
    remote = RemoteServer(url=server.server_url, name="there")
    assert remote.start().state is ServerState.READY
    assert remote.check_health()
    assert (remote.pid, remote.server_url, remote.attached) == (None, server.server_url, True)
    remote.stop()
    assert remote.state is ServerState.STOPPED
    assert server.check_health()


def test_twenty_cycles_leak_nothing(fake_server: FakeServer) -> None:
    server = fake_server()

    def state() -> tuple[int, int, int]:
        deadline = time.monotonic() + 20
        while threading.active_count() > threads and time.monotonic() < deadline:
            time.sleep(0.01)
        process = psutil.Process()
        return process.num_fds(), threading.active_count(), len(process.children())

    threads = threading.active_count()
    with server:
        pass
    before = state()
    for number in range(20):
        with server:
            if number % 5 == 0:
                os.kill(server.pid or 0, signal.SIGKILL)
    after = state()
    assert all(now <= then for now, then in zip(after, before, strict=True)), (after, before)


@pytest.mark.parametrize(
    ("settings", "arguments", "warnings"),
    [
        ({"host": "0.0.0.0"}, [], ["listens on 0.0.0.0, where others may reach it, and has no API key"]),
        ({"host": "0.0.0.0"}, ["--api-key", "a-key-of-mine"], []),
        ({"gpus": 0}, [], []),
        ({}, [], []),
    ],
)
def test_warnings_before_the_launch(
    fake_server: FakeServer, settings: dict[str, Any], arguments: list[str], warnings: list[str]
) -> None:
    # The engine itself listens on loopback, whatever the address that the server is configured with.
    server = fake_server(*arguments, **settings)
    heard: list[str] = []
    server.on_warning = heard.append
    server.start()
    assert len(heard) == len(warnings)
    assert all(expected in text for expected, text in zip(warnings, heard, strict=True))


def test_leak_does_not_hide_what_went_wrong_in_the_block(fake_server: FakeServer) -> None:
    server = fake_server("--ignore-term", debug_mode=True, stop_timeout=0.3)
    warnings: list[str] = []
    server.on_warning = warnings.append
    with pytest.raises(KeyboardInterrupt), server:
        raise KeyboardInterrupt
    assert [warning.splitlines()[0] for warning in warnings] == ["fake (command) left behind a process:"]


def test_a_model_path_that_does_not_exist_is_said_where_the_engine_talks_of_the_hub(tmp_path: Path) -> None:
    complaint = tmp_path / "vllm"
    complaint.write_text("#!/bin/sh\necho \"HFValidationError: Repo id must be in the form 'name': '$2'\"\nexit 1\n")
    complaint.chmod(0o755)
    settings: dict[str, Any] = {"binary_path": str(complaint), "output_dir": tmp_path / "logs"}
    for model, said in ((str(tmp_path / "missing"), True), (str(tmp_path), False), ("org/name", False)):
        with pytest.raises(ServerStartupError) as caught:
            VLLMServer(model=model, **settings).start()
        text = f"           the model is a path that does not exist on this machine: {model}"
        assert (text in str(caught.value).splitlines()) is said


def test_a_starting_server_tells_its_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_server: Any) -> None:
    monkeypatch.setattr(CommandServer, "first_phase", "importing")
    monkeypatch.setattr(CommandServer, "phases", (Phase(re.compile(rb"weights (\d+)"), "loading weights {} %"),))
    seen: list[tuple[str, bool]] = []
    server = fake_server("--say", "weights 50", "--delay", "0.8")
    server.on_wait = lambda one: seen.append((one.phase, one.runtime.starting_seconds is not None))
    assert server.runtime.starting_seconds is None
    server.start()
    assert ("loading weights 50 %", True) in seen
    assert seen[-1][1] is False
    assert [starting for _, starting in seen].count(False) == 1
    assert server.runtime.starting_seconds is None


def test_a_timeout_says_where_the_start_was(monkeypatch: pytest.MonkeyPatch, fake_server: Any) -> None:
    monkeypatch.setattr(CommandServer, "phases", (Phase(re.compile(rb"weights (\d+)"), "loading weights {} %"),))
    server = fake_server("--say", "weights 50", "--delay", "60", startup_timeout=1)
    with pytest.raises(
        ServerStartupTimeout, match=r"not ready after 1 s .*; its log was last at: loading weights 50 %"
    ):
        server.start()


def test_a_model_path_that_cannot_be_looked_at_does_not_hide_the_cause(tmp_path: Path) -> None:
    engine = tmp_path / "vllm"
    engine.write_text('#!/bin/sh\necho "RuntimeError: CUDA is gone, $2"\nexit 1\n')
    engine.chmod(0o755)
    with pytest.raises(ServerStartupError, match="cause:   RuntimeError: CUDA is gone"):
        VLLMServer(model="/" + "a" * 300, binary_path=str(engine), output_dir=tmp_path / "logs").start()


def test_whoever_watches_a_start_cannot_break_it(fake_server: Any) -> None:
    def fail(one: Any) -> None:
        raise RuntimeError("no terminal")

    server = fake_server("--delay", "0.6")
    server.on_wait = fail
    with server:
        assert server.check_health()
    failing = fake_server("--exit", "3", name="failing")
    failing.on_wait = fail
    with pytest.raises(ServerStartupError, match="exited with code 3"):
        failing.start()


def test_a_stop_for_somebody_else_is_a_death_that_says_who(fake_server: FakeServer) -> None:
    server = fake_server("--children", "2", "--stop-delay", "0.3").start()
    tree = [psutil.Process(pid) for pid in server.process_tree()]
    assert len(tree) >= 3
    assert server.runtime.stop_for("somebody (pid 1 on far-away)")
    assert not [process for process in tree if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert server.state is ServerState.DIED
    why = server.why_died()
    assert why is not None
    assert why.startswith("fake (command) was stopped by somebody (pid 1 on far-away)")
    # Nothing is left to stop, and who owns it may start it again.
    assert server.runtime.stop_for("somebody else")
    with server:
        assert server.check_health()
        assert server.why_died() is None
        assert not server.runtime.last_exit()[0]


def test_what_is_said_of_a_death_while_another_thread_starts_the_server_again(
    fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = fake_server().start()
    os.kill(server.pid or 0, signal.SIGKILL)
    assert server.wait_death(30)
    process = server.runtime.process

    class Replaced:
        """Its successor comes when somebody asks when it ended."""

        def __getattr__(self, name: str) -> Any:
            if name == "exit_at":
                server.runtime.change(process=None)
            return getattr(process, name)

    server.runtime.change(process=Replaced())
    assert server.runtime.view().how == "was killed by SIGKILL"
    server.runtime.change(process=process)
    monkeypatch.setattr(runtime, "cause_of_failure", lambda one: one.runtime.change(process=None))
    assert "was killed by SIGKILL" in str(server.why_died())
    server.runtime.change(process=process)


def test_a_stop_for_somebody_else_ends_a_start_too(fake_server: FakeServer) -> None:
    server = fake_server("--delay", "60")
    assert server.runtime.stop_for("nobody, as there is nothing yet")

    def stop_it() -> None:
        while server.runtime.process is None or server.runtime.process.pid is None:
            time.sleep(0.01)
        server.runtime.stop_for("somebody")

    stopping = threading.Thread(target=stop_it)
    stopping.start()
    with pytest.raises(ServerStartupError, match=r"was stopped by somebody, before it was ready"):
        server.start()
    stopping.join()
    assert server.state is ServerState.FAILED


@pytest.mark.parametrize("planted", ["pipe", "link", "folder that anybody may write"])
def test_output_folder_that_somebody_has_prepared_stops_the_start_at_once(
    fake_server: Any, tmp_path: Path, planted: str
) -> None:
    folder, precious = tmp_path / "logs" / "fake", tmp_path / "precious"
    folder.mkdir(parents=True)
    precious.write_text("precious")
    if planted == "pipe":
        os.mkfifo(folder / "server.log")
    elif planted == "link":
        (folder / "server.log").symlink_to(precious)
    else:
        folder.parent.chmod(0o777)
    server = fake_server(output_dir=str(folder.parent))
    with pytest.raises(
        ServerStartupError, match=r"(?s)its log cannot be written: .*(remove it|chmod o-w).*'output_dir'"
    ):
        server.start()
    assert server.pid is None
    assert precious.read_text() == "precious"
