"""Servers that outlive their run: who finds them, who gets them, and what ends them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from isolation import own_state_dir

from pytest_infserver import CommandServer, InferenceServerError, ServerState
from pytest_infserver.launcher.keeping import fingerprint as fingerprint_module
from pytest_infserver.launcher.keeping import handover
from pytest_infserver.launcher.keeping.kept import KeptServer, all_servers, ask, kept_servers
from pytest_infserver.launcher.supervision import control_socket as control_socket_file
from pytest_infserver.launcher.supervision.control_socket import MAX_QUESTION, MAX_VISITORS, ControlSocket, Visitor
from pytest_infserver.system.disk import places, socket_files
from pytest_infserver.system.peer import Peer, is_same_user, peer_of

pytestmark = [
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(sys.platform != "linux", reason="keeps servers on Linux"),
]

FakeServer = Callable[..., CommandServer]
LONG = 30.0
KEEP = 120.0
"""Seconds after which a server that a failing test forgets ends by itself."""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "state"
    own_state_dir(monkeypatch, folder)
    return folder


@pytest.fixture(autouse=True)
def all_stopped(state: Path, nothing_left: None) -> Iterator[None]:
    """Before `nothing_left` looks."""
    yield
    for server in all_servers():
        server.stop(0)


def wait_for(condition: Callable[[], object], limit: float = LONG) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def gone(pid: int | None) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kept_one(fake_server: FakeServer, *arguments: str, seconds: float = KEEP, **settings: Any) -> KeptServer:
    assert fake_server(*arguments, **settings).start().keep(seconds)
    [kept] = kept_servers()
    return kept


def socket_names(state: Path) -> list[str]:
    return os.listdir(state / "servers")


# One run after the other.


def test_the_next_run_takes_it_over(fake_server: FakeServer, state: Path) -> None:
    first = fake_server("--say-when-ready", "ready-1").start()
    pid, port, log_path = first.pid, first.port, first.log_path
    assert first.keep(KEEP)
    assert (first.state, first.pid) == (ServerState.STOPPED, None)
    first.stop()
    assert not gone(pid)
    second = fake_server("--say-when-ready", "ready-1")
    assert second.take_over()
    assert (second.state, second.pid, second.port, second.log_path) == (ServerState.READY, pid, port, log_path)
    assert second.check_health()
    assert (second.launches, second.runtime.status.taken_over) == (0, True)
    assert "ready-1" in second.read_log()
    assert second.runtime.status.launch_log_start == second.log_size > 0
    assert [(one.state, one.name, one.owner_pid) for one in all_servers()] == [("running", "fake", os.getpid())]
    second.stop()
    assert gone(pid)
    assert all_servers() == []
    assert socket_names(state) == []


def test_it_can_be_kept_again_and_again(fake_server: FakeServer) -> None:
    pid = kept_one(fake_server).pid
    for _ in range(5):
        server = fake_server()
        assert server.take_over()
        assert server.pid == pid
        assert server.keep(KEEP)
    server = fake_server()
    assert server.take_over()
    server.stop()
    assert gone(pid)


def test_twenty_passes_leave_no_descriptor_or_thread(fake_server: FakeServer) -> None:
    def pass_on() -> tuple[int, int]:
        server = fake_server()
        assert server.take_over()
        assert server.keep(KEEP)
        server = fake_server()
        assert server.take_over()
        server.stop()
        assert fake_server().start().keep(KEEP)
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    kept_one(fake_server)
    pass_on()
    before = pass_on()
    for _ in range(5):
        assert pass_on()[0] <= before[0]
    wait_for(lambda: threading.active_count() <= before[1])


def test_death_after_the_take_over_is_noticed_and_followed_by_a_start_on_the_same_port(fake_server: FakeServer) -> None:
    kept = kept_one(fake_server)
    server = fake_server()
    assert server.take_over()
    os.kill(kept.pid, signal.SIGKILL)
    assert server.wait_death(LONG)
    assert "was killed by SIGKILL" in (server.why_died() or "")
    server.start()
    assert server.port == kept.port
    assert server.log_path == kept.log_path
    assert server.pid != kept.pid
    server.stop()


def test_supervisor_killed_after_the_take_over_ends_the_tree(fake_server: FakeServer) -> None:
    kept_one(fake_server, "--children", "2")
    server = fake_server("--children", "2")
    assert server.take_over()
    family = psutil.Process(server.pid).children(recursive=True)
    assert server.runtime.process is not None
    os.kill(server.runtime.process.supervisor_pid or 0, signal.SIGKILL)
    assert server.wait_death(LONG)
    wait_for(lambda: all(gone(process.pid) for process in family))
    server.stop()


def test_nothing_to_take_over(fake_server: FakeServer) -> None:
    server = fake_server()
    assert not server.take_over()
    assert server.state is ServerState.NEW
    server.start()
    assert not server.take_over()
    assert not fake_server().take_over()


def test_it_keeps_its_port_and_its_log(fake_server: FakeServer) -> None:
    kept = kept_one(fake_server)
    other = fake_server("--loading", "0.01").start()
    assert other.port != kept.port
    assert other.log_path != kept.log_path


OTHER_RUN = """
import os, sys
from pytest_infserver import CommandServer
server = CommandServer(launch_command={command!r}, output_dir={folder!r}, name="fake", startup_timeout=30)
{body}
"""


def other_run(fake_server: FakeServer, tmp_path: Path, body: str) -> subprocess.Popen[str]:
    command = fake_server().settings.launch_command
    text = OTHER_RUN.format(command=command, folder=str(tmp_path / "server_logs"), body=body)
    return subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_it_outlives_its_run(fake_server: FakeServer, tmp_path: Path) -> None:
    run = other_run(fake_server, tmp_path, f"server.start(); print(server.pid, server.keep({KEEP}), flush=True)")
    output, _ = run.communicate(timeout=60)
    pid, kept = output.split()
    assert kept == "True"
    server = fake_server()
    assert server.take_over()
    assert server.pid == int(pid)


@pytest.mark.parametrize("keeps", [True, False])
def test_kill_of_the_owner(fake_server: FakeServer, tmp_path: Path, keeps: bool) -> None:
    """Without a word, before and after it has let go."""
    body = f"server.start(); {keeps} and server.runtime.process.keep({KEEP}); print('now', flush=True); input()"
    run = other_run(fake_server, tmp_path, body)
    assert run.stdout is not None
    assert run.stdout.readline() == "now\n"
    [server] = all_servers()
    run.kill()
    run.communicate(timeout=60)
    if not keeps:
        wait_for(lambda: gone(server.pid))
        assert all_servers() == []
        return
    time.sleep(0.2)
    [kept] = kept_servers()
    assert kept.pid == server.pid


def test_kill_of_the_owner_that_has_taken_it_over(fake_server: FakeServer, tmp_path: Path) -> None:
    kept = kept_one(fake_server)
    run = other_run(fake_server, tmp_path, "print(server.take_over(), flush=True); input()")
    assert run.stdout is not None
    assert run.stdout.readline() == "True\n"
    assert [server.owner_pid for server in all_servers()] == [run.pid]
    run.kill()
    run.communicate(timeout=60)
    wait_for(lambda: gone(kept.pid))


def test_fork_of_the_new_owner_does_not_keep_it_alive(fake_server: FakeServer, tmp_path: Path) -> None:
    kept = kept_one(fake_server)
    body = (
        "print(server.take_over(), flush=True); fork = os.fork()\n"
        "if fork == 0:\n    os.close(1); import time; time.sleep(60)\n"
        "print(fork, flush=True); os._exit(0)"
    )
    run = other_run(fake_server, tmp_path, body)
    taken, fork = run.communicate(timeout=60)[0].split()
    outlives = psutil.Process(int(fork))
    try:
        assert taken == "True"
        wait_for(lambda: gone(kept.pid))
        assert not gone(outlives.pid)
    finally:
        outlives.kill()


def test_of_two_runs_that_want_it_one_gets_it(fake_server: FakeServer, tmp_path: Path) -> None:
    kept_one(fake_server)
    body = "print('here', flush=True); input(); print(server.take_over(), flush=True); input()"
    runs = [other_run(fake_server, tmp_path, body) for _ in range(4)]
    try:
        for run in runs:
            assert run.stdout is not None
            assert run.stdout.readline() == "here\n"
        for run in runs:
            assert run.stdin is not None
            run.stdin.write("\n")
            run.stdin.flush()
        answers = [run.stdout.readline().strip() for run in runs if run.stdout is not None]
        assert sorted(answers) == ["False", "False", "False", "True"]
    finally:
        for run in runs:
            run.kill()
            run.communicate(timeout=60)


def test_of_many_threads_that_want_it_one_gets_it(fake_server: FakeServer) -> None:
    kept_one(fake_server)
    servers = [fake_server() for _ in range(8)]
    start, won = threading.Barrier(len(servers)), []

    def run(server: CommandServer) -> None:
        start.wait(LONG)
        won.append(server.take_over())

    threads = [threading.Thread(target=run, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert sorted(won) == [False] * 7 + [True]


# What ends a kept server.


def test_its_time_runs_out(fake_server: FakeServer, state: Path) -> None:
    begin = time.monotonic()
    kept = kept_one(fake_server, "--children", "1", seconds=0.5)
    assert 0 < (kept.seconds_left or 0) <= 0.5
    assert psutil.Process(kept.pid).children()
    wait_for(lambda: gone(kept.pid))
    assert time.monotonic() - begin >= 0.5
    wait_for(lambda: gone(kept.supervisor_pid))
    assert socket_names(state) == []


def test_time_that_runs_out_kills_one_that_does_not_obey(fake_server: FakeServer) -> None:
    kept = kept_one(fake_server, "--ignore-term", seconds=0.2, stop_timeout=0.3)
    wait_for(lambda: gone(kept.pid))


def test_time_that_runs_out_runs_the_stop_command(fake_server: FakeServer, tmp_path: Path) -> None:
    note = tmp_path / "stopped"
    kept_one(fake_server, seconds=0.2, stop_command=["touch", str(note)])
    wait_for(note.exists)


def test_time_does_not_run_while_somebody_uses_it(fake_server: FakeServer) -> None:
    kept_one(fake_server, seconds=0.4)
    server = fake_server()
    assert server.take_over()
    assert not server.wait_death(0.8)
    assert server.check_health()


def test_it_can_be_kept_for_months(fake_server: FakeServer) -> None:
    kept = kept_one(fake_server, seconds=1e15)
    time.sleep(0.1)
    assert not gone(kept.pid)
    assert [one.kept for one in all_servers()] == [True]
    kept.stop(0)


def test_root_that_dies(fake_server: FakeServer, state: Path) -> None:
    kept = kept_one(fake_server, "--children", "2")
    family = psutil.Process(kept.pid).children(recursive=True)
    os.kill(kept.pid, signal.SIGKILL)
    wait_for(lambda: all(gone(process.pid) for process in family) and gone(kept.supervisor_pid))
    assert kept_servers() == []
    assert not fake_server("--children", "2").take_over()
    assert socket_names(state) == []


def test_supervisor_that_is_killed(fake_server: FakeServer, state: Path) -> None:
    kept = kept_one(fake_server, "--children", "2", "--daemon")
    below = psutil.Process(kept.supervisor_pid).children(recursive=True)
    assert len(below) >= 4
    os.kill(kept.supervisor_pid, signal.SIGKILL)
    wait_for(lambda: all(gone(process.pid) for process in below))
    assert len(socket_names(state)) == 1
    assert all_servers() == []
    # Who lists them removes what nobody listens on.
    assert socket_names(state) == []


def test_stop_by_name_of_one_in_use_is_no_crash(fake_server: FakeServer) -> None:
    server = fake_server().start()
    [found] = all_servers()
    assert (found.state, found.owner_pid) == ("running", os.getpid())
    assert (found.memory() or 0) > 1_000_000
    assert found.stop()
    assert server.wait_death(LONG)
    assert f"was stopped by `infserver stop` (pid {os.getpid()})" in (server.why_died() or "")
    server.start()
    assert server.running


def test_stop_of_one_that_starts(fake_server: FakeServer) -> None:
    server = fake_server("--delay", "60", stop_timeout=5)
    problems: list[Exception] = []

    def start() -> None:
        try:
            server.start()
        except InferenceServerError as error:
            problems.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    wait_for(all_servers)
    [found] = all_servers()
    assert found.state == "starting"
    assert found.stop()
    thread.join(LONG)
    assert "was stopped by `infserver stop`" in str(problems[0])


def test_stop_of_a_kept_one_waits_for_its_end(fake_server: FakeServer) -> None:
    kept = kept_one(fake_server, "--stop-delay", "0.4")
    begin = time.monotonic()
    assert kept.stop()
    assert time.monotonic() - begin >= 0.4
    assert gone(kept.pid)
    assert kept.stop()


def test_who_waits_for_a_stop_may_leave(fake_server: FakeServer) -> None:
    kept = kept_one(fake_server, "--stop-delay", "0.4")
    for _ in range(3):
        with pytest.raises(TimeoutError):
            ask(kept.path, {"do": "stop", "timeout": 5}, 0.05)
    assert [one.state for one in all_servers()] == ["stopping"]
    assert not fake_server("--stop-delay", "0.4").take_over()
    wait_for(lambda: gone(kept.pid))


# What cannot be kept, and who does not get it.


PROFILE = {"tool": "py-spy", "args": ["--idle"]}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"debug_mode": True}, "debug mode"),
        ({"url": "http://127.0.0.1:9"}, "not started by us"),
        ({"profile": PROFILE}, "profiled with py-spy"),
    ],
)
def test_what_cannot_be_kept(fake_server: FakeServer, settings: dict[str, Any], words: str) -> None:
    server = fake_server(**settings)
    if "url" not in settings:
        server.start()
    assert not server.keep(KEEP)
    assert words in (server.why_not_kept or "")
    assert not fake_server(**settings).take_over()
    if "url" not in settings:
        assert server.running
        [found] = all_servers()
        assert (found.debug_mode, found.state) == (server.debug_mode, "running")


def test_one_that_is_profiled_when_somebody_asks_can_be_kept(fake_server: FakeServer) -> None:
    server = fake_server(profile={**PROFILE, "on_demand": True}).start()
    with server.profiling("first"):
        pid = server.pid
    assert server.keep(KEEP), server.why_not_kept
    # It is no other server to one who does not profile it.
    between = fake_server()
    assert between.take_over()
    assert between.keep(KEEP), between.why_not_kept
    later = fake_server(profile={**PROFILE, "on_demand": True})
    assert later.take_over()
    with later.profiling("second") as files:
        assert later.pid == pid
    assert files
    later.stop()


def test_a_profile_that_nobody_has_ended_ends_when_its_server_is_kept(fake_server: FakeServer) -> None:
    server = fake_server(profile={**PROFILE, "on_demand": True}).start()
    server.start_profile("forgotten")
    assert server.keep(KEEP), server.why_not_kept
    [trace] = server.profiles
    assert trace.name == "forgotten.svg"
    assert trace.stat().st_size
    assert not [one for one in psutil.Process().children() if one.name() == "py-spy"]


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_odd_times(fake_server: FakeServer, seconds: float) -> None:
    server = fake_server().start()
    assert not server.keep(seconds)
    assert "no time" in (server.why_not_kept or "")
    assert server.running


def test_one_that_does_not_run(fake_server: FakeServer) -> None:
    server = fake_server()
    assert not server.keep(KEEP)
    assert "does not run" in (server.why_not_kept or "")
    server.start()
    os.kill(server.pid or 0, signal.SIGKILL)
    assert server.wait_death(LONG)
    assert not server.keep(KEEP)
    assert "died" in (server.why_not_kept or "")


def test_shared_server_is_not_let_go_of(fake_server: FakeServer) -> None:
    server = fake_server().start()
    server.runtime.stop_refusal = "it is shared"
    with pytest.raises(InferenceServerError, match="shared"):
        server.keep(KEEP)


def test_without_a_state_dir(fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "state_dir", lambda: None)
    server = fake_server().start()
    assert not server.keep(KEEP)
    assert "INFSERVER_STATE_DIR" in (server.why_not_kept or "")
    assert all_servers() == []
    assert not fake_server().take_over()


@pytest.mark.parametrize("how", ["read-only", "file in its place"])
def test_folder_that_cannot_be_used(fake_server: FakeServer, state: Path, how: str) -> None:
    folder = state / "servers"
    state.mkdir(mode=0o700)
    if how == "read-only":
        if os.getuid() == 0:
            pytest.skip("root may write anywhere")
        folder.mkdir(mode=0o500)
    else:
        folder.write_text("")
    server = fake_server().start()
    assert server.check_health()
    assert not server.keep(KEEP)
    assert "no private folder" in (server.why_not_kept or "")


def test_folder_of_which_others_may_read(fake_server: FakeServer, state: Path) -> None:
    (state / "servers").mkdir(parents=True)
    state.chmod(0o700)
    (state / "servers").chmod(0o755)
    assert not fake_server().start().keep(KEEP)


def test_very_long_path(fake_server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path.joinpath(*["x" * 100] * 3)
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(folder))
    kept = kept_one(fake_server)
    assert len(kept.path) > 300
    server = fake_server()
    assert server.take_over()
    server.stop()
    assert os.listdir(folder / "servers") == []


def test_relative_state_dir(fake_server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFSERVER_STATE_DIR", "here")
    kept = kept_one(fake_server)
    assert kept.path.startswith(str(tmp_path))
    assert kept.stop()


def test_modes(fake_server: FakeServer, state: Path) -> None:
    kept = kept_one(fake_server)
    assert (state / "servers").stat().st_mode & 0o777 == 0o700
    assert Path(kept.path).stat().st_mode & 0o777 == 0o600


def test_no_secret_is_told(fake_server: FakeServer) -> None:
    secret = "sk-0123456789abcdef"
    with fake_server("--api-key", secret, model=f"m-{secret}", env_vars={"HF_TOKEN": secret}) as server:
        [found] = all_servers()
        assert secret not in json.dumps(ask(found.path, {"do": "describe"}, LONG))
        assert found.model == "m-********"
        assert server.running


def test_another_server_is_not_taken(fake_server: FakeServer) -> None:
    kept = kept_one(fake_server)
    assert not fake_server("--loading", "0.01").take_over()
    assert not fake_server(env_vars={"X": "1"}).take_over()
    assert not fake_server(port=kept.port).take_over()
    assert [one.pid for one in kept_servers()] == [kept.pid]
    # What only our side uses does not count.
    assert not fake_server(name="y").take_over()
    same = fake_server(stop_timeout=3, heartbeat_interval=1, startup_timeout=9)
    assert same.take_over()


def test_changed_script_starts_afresh(fake_server: FakeServer, tmp_path: Path) -> None:
    script = tmp_path / "engine.py"
    engine = Path(fake_server().settings.launch_command[2])  # type: ignore[index]
    script.write_text(engine.read_text())
    command = [sys.executable, "-S", str(script), "--port", "{port}"]

    def make() -> CommandServer:
        return CommandServer(launch_command=command, output_dir=tmp_path, name="scripted")

    assert make().start().keep(KEEP)
    # Changed while it runs: what it was started from counts.
    script.write_text(script.read_text() + "\n# another line\n")
    assert not make().take_over()
    [kept] = kept_servers()
    with make().start() as fresh:
        assert fresh.pid != kept.pid


def test_unhealthy_one_is_stopped_and_not_taken(fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_HEALTH_LIMIT", 0.3)
    kept = kept_one(fake_server)
    os.kill(kept.pid, signal.SIGSTOP)
    server, warnings = fake_server(stop_timeout=0.3), []
    server.on_warning = warnings.append
    assert not server.take_over()
    assert (server.state, server.pid) == (ServerState.NEW, None)
    assert "health check" in warnings[0]
    assert gone(kept.pid)
    server.start()
    assert server.check_health()


def test_one_that_does_not_listen_is_not_taken(fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = kept_one(fake_server)
    server = fake_server()
    monkeypatch.setattr(server.runtime, "owns_ports", lambda numbers: False)
    assert not server.take_over()
    assert gone(kept.pid)


def test_interrupt_of_the_take_over_ends_it(fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = kept_one(fake_server)
    server = fake_server()

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server.runtime, "owns_ports", interrupt)
    with pytest.raises(KeyboardInterrupt):
        server.take_over()
    assert server.state is ServerState.NEW
    wait_for(lambda: gone(kept.pid))
    server.stop()


def test_wrong_fingerprint_does_not_get_it(fake_server: FakeServer) -> None:
    kept = kept_one(fake_server)
    for fingerprint in ("", "x", None, [], kept.fingerprint[:-1]):
        answer = ask(kept.path, {"do": "take_over", "fingerprint": fingerprint}, LONG)
        assert answer is not None
        assert answer["event"] == "failed"
    assert [one.kept for one in all_servers()] == [True]


def test_one_in_use_cannot_be_taken(fake_server: FakeServer) -> None:
    server = fake_server().start()
    [found] = all_servers()
    answer = ask(found.path, {"do": "take_over", "fingerprint": found.fingerprint}, LONG)
    assert answer is not None
    assert answer["event"] == "failed"
    assert server.check_health()


# Visitors that misbehave.

GARBAGE = [
    b"\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"null\n",
    b"[]\n",
    b'{"do": 1}\n',
    b'{"do": "describe"',
    b"\xff\xfe\x00\n",
    b"[" * 50_000 + b"\n",
    b'{"do": "launch", "argv": ["true"]}\n',
    b'{"do": "stop_not"}\n',
    b'{"do": "keep", "seconds": 0}\n',
    b'{"do": "take_over"}\n',
    b'{"do": "take_over", "fingerprint": {"a": NaN}, "info": 3, "stop_timeout": "x"}\n',
    b"x" * (MAX_QUESTION * 3),
]


def test_garbage_disturbs_nobody(fake_server: FakeServer) -> None:
    kept = kept_one(fake_server)
    open_ones = []
    for text in GARBAGE * 3:
        connection = socket_files.connect(kept.path, LONG)
        open_ones.append(connection)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(text)
    assert [one.kept for one in all_servers()] == [True]
    for connection in open_ones:
        connection.close()
    server = fake_server()
    assert server.take_over()
    assert "Traceback" not in server.read_log()


@pytest.mark.parametrize("timeout", ['"x"', "-1", "NaN", "1e400", "true", "[1]", "1e308"])
def test_odd_timeouts_of_a_stop(fake_server: FakeServer, timeout: str) -> None:
    kept = kept_one(fake_server)
    with socket_files.connect(kept.path, LONG) as connection:
        connection.sendall(f'{{"do": "stop", "timeout": {timeout}}}\n'.encode())
        assert json.loads(connection.makefile().readline())["gone"] is True
    assert gone(kept.pid)


def test_flood_of_questions_disturbs_nobody(fake_server: FakeServer) -> None:
    kept = kept_one(fake_server)
    ended = threading.Event()

    def flood() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError), socket_files.connect(kept.path, 1) as connection:
                # Never reads.
                for _ in range(1000):
                    connection.sendall(b'{"do": "describe"}\n' * 100)

    threads = [threading.Thread(target=flood) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            wait_for(lambda: [one.kept for one in all_servers()] == [True])
        assert psutil.Process(kept.supervisor_pid).memory_info().rss < 100 << 20
    finally:
        ended.set()
        for thread in threads:
            thread.join(LONG)
    assert kept.stop()


def test_many_silent_visitors_keep_nobody_out(fake_server: FakeServer) -> None:
    kept = kept_one(fake_server)
    silent = [socket_files.connect(kept.path, LONG) for _ in range(MAX_VISITORS * 3)]
    # Who is kept out for longer than a question may take finds nobody.
    assert [one.kept for one in all_servers()] == [True]
    for connection in silent:
        connection.close()


def test_supervisor_sleeps_while_nobody_asks(fake_server: FakeServer) -> None:
    kept = kept_one(fake_server)
    with socket_files.connect(kept.path, LONG) as connection:
        connection.sendall(b'{"do": ')
        process = psutil.Process(kept.supervisor_pid)
        time.sleep(0.1)
        before = process.num_ctx_switches().voluntary
        time.sleep(0.5)
        assert process.num_ctx_switches().voluntary - before < 5


# The control_socket by itself.


@pytest.fixture
def control_socket(tmp_path: Path) -> Iterator[ControlSocket]:
    one = ControlSocket(str(tmp_path))
    yield one
    one.close()
    assert not os.path.exists(one.path)


def serve(control_socket: ControlSocket, timeout: float = 0.2) -> list[tuple[Visitor, dict[str, Any]]]:
    poller = select.poll()
    control_socket.register(poller)
    return control_socket.serve({handle for handle, _ in poller.poll(timeout * 1000)})


@pytest.mark.parametrize("peer", [None, Peer(1, os.getuid() + 1), Peer(0, 0 if os.getuid() else 1)])
def test_another_user_is_turned_away(
    control_socket: ControlSocket, monkeypatch: pytest.MonkeyPatch, peer: Peer | None
) -> None:
    monkeypatch.setattr(control_socket_file, "peer_of", lambda connection: peer)
    with socket_files.connect(control_socket.path, LONG) as connection:
        connection.sendall(b'{"do": "describe"}\n')
        assert serve(control_socket) == serve(control_socket) == []
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(10) == b""


def test_another_user_s_supervisor_is_not_believed(fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_one(fake_server)
    with monkeypatch.context() as context:
        context.setattr("pytest_infserver.launcher.keeping.kept.peer_of", lambda connection: Peer(1, os.getuid() + 1))
        assert all_servers() == []
    assert len(all_servers()) == 1


def test_peer_is_known() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert peer_of(left) == Peer(os.getpid(), os.getuid())
        assert is_same_user(peer_of(left))
    assert peer_of(left) is None
    assert not is_same_user(None)


def test_question_in_pieces(control_socket: ControlSocket) -> None:
    with socket_files.connect(control_socket.path, LONG) as connection:
        for piece in (b'{"do"', b': "x"', b"}\n"):
            connection.sendall(piece)
            questions = [*serve(control_socket), *serve(control_socket)]
        [(visitor, question)] = questions
        assert question == {"do": "x"}
        control_socket.answer(visitor, {"y": 1})
        assert connection.recv(100) == b'{"y": 1}\n'


def test_half_a_question_is_not_waited_for(control_socket: ControlSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_socket_file, "PATIENCE", 0.05)
    with socket_files.connect(control_socket.path, LONG) as connection:
        connection.sendall(b'{"do"')
        assert serve(control_socket) == []
        assert len(control_socket.moments()) == 1
        time.sleep(0.1)
        assert serve(control_socket, 0) == []
        assert control_socket.moments() == []


def test_answer_to_who_never_reads_is_dropped(control_socket: ControlSocket) -> None:
    with socket_files.connect(control_socket.path, LONG) as connection:
        connection.sendall(b'{"do": "x"}\n')
        [(visitor, _)] = [*serve(control_socket), *serve(control_socket)]
        begin = time.monotonic()
        assert control_socket.hand_over(visitor, {"y": "x" * (64 << 20)}) is None
        assert time.monotonic() - begin < LONG


def test_no_descriptor_left_is_no_busy_loop(control_socket: ControlSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, listener: socket.socket) -> None:
            self.fileno, self.close = listener.fileno, listener.close

        def accept(self) -> None:
            raise OSError(24, "Too many open files")

    listener = control_socket._listener
    monkeypatch.setattr(control_socket, "_listener", Full(listener))
    with socket_files.connect(control_socket.path, LONG):
        assert serve(control_socket) == []
        poller = select.poll()
        control_socket.register(poller)
        assert poller.poll(50) == []
        assert len(control_socket.moments()) == 1


def test_stale_files_are_removed(state: Path, fake_server: FakeServer) -> None:
    kept = kept_one(fake_server)
    folder = state / "servers"
    listener = socket_files.listen(str(folder), "1-stale.sock", 1)
    listener.close()
    (folder / "2-file.sock").write_text("no socket")
    (folder / ".3-half.sock").write_text("")
    (folder / "note.txt").write_text("somebody's")
    (folder / "broken.sock").symlink_to("nowhere")
    assert [one.pid for one in all_servers()] == [kept.pid]
    assert sorted(os.listdir(folder)) == [".3-half.sock", Path(kept.path).name, "broken.sock", "note.txt"]


def test_supervisor_that_stands_still_is_not_waited_for(fake_server: FakeServer) -> None:
    kept = kept_one(fake_server)
    os.kill(kept.supervisor_pid, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        assert all_servers() == []
        assert time.monotonic() - begin < LONG
    finally:
        os.kill(kept.supervisor_pid, signal.SIGCONT)
    wait_for(kept_servers)


def test_one_of_another_version_is_left_alone(fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = kept_one(fake_server)
    for answer in ({}, {"info": None}, {"info": {}, "state": "kept"}, {"info": {"name": "x"}}):
        with monkeypatch.context() as context:
            context.setattr("pytest_infserver.launcher.keeping.kept.ask", lambda *_, answer=answer: answer)
            assert all_servers() == []
    assert kept_servers()[0].pid == kept.pid


# Why one is not taken over.


def told(server: CommandServer) -> str:
    """Return what a server says when it takes nothing over."""
    warnings: list[str] = []
    server.on_warning = warnings.append
    assert not server.take_over()
    return "\n".join(warnings)


BASE: dict[str, Any] = {"env_vars": {"MY_TOKEN": "very-secret-1", "X": "1"}}


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        (["--said", "a", "--new"], BASE, r"word \d+ of the command \('--new'\)$"),
        (["--said", "b"], BASE, r"word \d+ of the command \('b'\)$"),
        ([], BASE, r"2 words less after '.*' in the command$"),
        (["--said", "a"], {"env_vars": {"MY_TOKEN": "very-secret-2", "X": "1"}}, "the variable MY_TOKEN$"),
        (["--said", "a"], {"env_vars": {**BASE["env_vars"], "Y": "2"}}, r"the variable Y \(new\)$"),
        (["--said", "a"], {"env_vars": {"X": "1"}}, r"the variable MY_TOKEN \(not set any more\)$"),
        (["--said", "a"], {**BASE, "stop_signal": "INT"}, "the 'stop_signal'$"),
    ],
)
def test_what_differs_is_said(
    fake_server: FakeServer, arguments: list[str], settings: dict[str, Any], words: str
) -> None:
    kept = kept_one(fake_server, "--said", "a", **BASE)
    text = told(fake_server(*arguments, **settings))
    assert text.startswith(f"fake (command): the one that is kept (pid {kept.pid}, ")
    assert re.search(f"is not taken over, since it is not the same any more: {words}", text)
    assert "very-secret" not in text + json.dumps(kept.parts)
    # Nor is a value known by its hash, which is another one each time.
    assert kept.parts["salt"] not in (None, "")


def test_a_changed_file_and_another_version_are_said(
    fake_server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("a")
    kept_one(fake_server, "--said", str(template))
    template.write_text("other")
    monkeypatch.setattr(fingerprint_module, "__version__", "0.0.0")
    text = told(fake_server("--said", str(template)))
    assert text.endswith(f": the file {template}, the version of pytest-infserver")


def test_of_several_that_differ_the_one_that_is_most_alike_is_named(fake_server: FakeServer) -> None:
    kept_one(fake_server, "--said", "a", env_vars={"Y": "1"})
    other = fake_server("--said", "a").start()
    pid = other.pid
    assert other.keep(KEEP)
    assert f"(pid {pid}, " in told(fake_server("--said", "b"))


def test_one_of_which_nothing_is_known_is_said_to_be_so(
    fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of an earlier version, or one with a very long command."""
    kept_one(fake_server, *(f"--word-{number}" for number in range(2000)))
    assert told(fake_server()).endswith(": what it was started with is not known")


@pytest.mark.parametrize(
    "script",
    ['exec 3>>"$0"; exec "$@"', 'echo state > "$0"; exec "$@"'],
    ids=["open", "made"],
)
def test_a_file_that_the_server_itself_writes_does_not_count(
    fake_server: FakeServer, tmp_path: Path, script: str
) -> None:
    """Such as a log that its command names."""
    written = tmp_path / "engine.log"
    if "exec 3" in script:
        written.write_text("of an earlier run\n")
    command = ["sh", "-c", script, str(written), *fake_server().settings.launch_command]

    def one() -> CommandServer:
        return CommandServer(launch_command=command, name="writes", output_dir=tmp_path / "logs")

    assert one().start().keep(KEEP)
    [kept] = kept_servers()
    with written.open("a") as file:
        file.write("more\n")
    server = one()
    assert server.take_over()
    assert server.pid == kept.pid
    server.stop()
