"""What is written about a server that hangs, before it is killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_infserver import CommandServer, ServerState
from pytest_infserver.launcher.health import hang
from pytest_infserver.launcher.runtime.watch import Watch
from pytest_infserver.system.processes.bounded_run import run_bounded

pytestmark = pytest.mark.usefixtures("nothing_left")

FakeServer = Callable[..., CommandServer]
StandIn = Callable[[str], None]
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")


def hang_up(server: CommandServer) -> None:
    urllib.request.urlopen(server.url_for("/sick"), timeout=30).close()


@pytest.fixture
def hanging(fake_server: FakeServer) -> FakeServer:
    """Make a server that is about to be found hanging."""

    def make(*arguments: str, **settings: object) -> CommandServer:
        server = fake_server(*arguments, heartbeat_interval=0.05, hang_timeout=0.6, stop_timeout=5, **settings).start()
        hang_up(server)
        return server

    return make


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Put a shell script in the place of py-spy."""

    def install(script: str) -> None:
        path = tmp_path / "stand-in" / "py-spy"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(hang, "_find_py_spy", lambda: str(path))

    return install


def report_of(server: CommandServer) -> str:
    match = re.search(r"; stacks: (.*/hang-\d+\.txt)", str(server.why_died()))
    assert match is not None, server.why_died()
    assert Path(match[1]).parent == server.log_path.parent
    return Path(match[1]).read_text()


@needs_proc
def test_all_processes_with_their_threads(hanging: FakeServer, stand_in: StandIn) -> None:
    stand_in('echo "stacks of $4"')
    server = hanging("--children", "2", "--daemon", "--idle-first-thread", "--api-key", "a-long-secret")
    root = server.pid
    assert server.wait_death(30)
    text = report_of(server)
    assert text.startswith("fake (command) hangs: its health check has failed for ")
    assert "answered 503" in text
    assert re.search(r"^4 processes, parents first$", text, re.MULTILINE)
    pids = re.findall(r"^=== pid (\d+): parent \d+, State S \(sleeping\), Threads \d+, VmRSS", text, re.MULTILINE)
    assert len(pids) == 4
    assert pids[0] == str(root)
    assert len(re.findall(r"^  thread \d+ \(\S+\) [SR]", text.partition(f"pid {pids[1]}")[0], re.MULTILINE)) >= 6
    for pid in pids:
        assert f"py-spy dump --nonblocking --pid {pid}\nstacks of {pid}\n" in text
    assert "fake_engine.py" in text
    assert "a-long-secret" not in text


@pytest.mark.skipif(sys.platform != "linux", reason="py-spy needs root on macOS")
@pytest.mark.parametrize("stopped", [False, True])
def test_real_py_spy(hanging: FakeServer, fake_server: FakeServer, stopped: bool) -> None:
    if hang._find_py_spy() is None:
        pytest.skip("needs py-spy (extra test)")
    server = fake_server(heartbeat_interval=0.05, heartbeat_timeout=0.1, hang_timeout=0.6).start()
    os.kill(server.pid or 0, signal.SIGSTOP) if stopped else hang_up(server)
    assert server.wait_death(30)
    text = report_of(server)
    if "sudo setcap cap_sys_ptrace=ep" in text:
        pytest.skip("this machine does not let py-spy look into other processes")
    assert "serve_forever (socketserver.py" in text
    assert "main (fake_engine.py" in text
    assert "Stack backtrace" not in text


def test_without_py_spy(hanging: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hang, "_find_py_spy", lambda: None)
    server = hanging()
    assert server.wait_death(30)
    assert "pip install 'pytest-infserver[profile]'" in report_of(server)


def test_where_py_spy_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert hang._find_py_spy() is None
    for folder in ("bin", "venv"):
        path = tmp_path / folder / "py-spy"
        path.parent.mkdir()
        path.touch(0o755)
        assert hang._find_py_spy() == str(path)


def test_py_spy_that_may_not_trace(hanging: FakeServer, stand_in: StandIn) -> None:
    stand_in('echo "Permission Denied: Try running again with elevated permissions"; exit 1')
    server = hanging("--children", "2")
    assert server.wait_death(30)
    text = report_of(server)
    assert text.count("dump --nonblocking") == 1
    assert "[exit status 1]" in text
    assert "sudo sysctl kernel.yama.ptrace_scope=0" in text
    assert "--cap-add SYS_PTRACE" in text


def test_py_spy_that_hangs_is_killed_with_what_it_started(
    hanging: FakeServer, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hang, "_COMMAND_LIMIT", 0.3)
    monkeypatch.setattr(hang, "_STACKS_LIMIT", 0.5)
    stand_in("echo begin; trap '' TERM; sleep 600 & sleep 600")
    server = hanging("--children", "4")
    assert server.wait_death(30)
    text = report_of(server)
    assert "begin\n[killed: it did not end within 0.3 s]" in text
    assert "left out: the time is up" in text


def test_all_of_it_has_a_limit(hanging: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a read of /proc may do that waits for a lock of the process that hangs.
    go_on = threading.Event()
    monkeypatch.setattr(hang, "LIMIT", 0.5)
    monkeypatch.setattr(hang, "_write_state", lambda *_: go_on.wait(60))
    server = hanging()
    begin = time.monotonic()
    assert server.wait_death(30)
    assert time.monotonic() - begin < 30
    assert "hang-1.txt (not all: not done after 0.5 s)" in str(server.why_died())
    text = report_of(server)
    go_on.set()
    time.sleep(0.2)
    assert report_of(server) == text


def test_py_spy_that_floods(hanging: FakeServer, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hang, "MAX_BYTES", 500 * 1024)
    stand_in("exec yes a line of many")
    server = hanging("--children", "3")
    assert server.wait_death(30)
    text = report_of(server)
    assert len(text) == 500 * 1024
    assert text.count("[killed: it wrote more than 200 KB]") == 2
    assert "(not all: more than 500 KB)" in str(server.why_died())


def test_gpu_tools(hanging: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("nvidia-smi", "amd-smi", "rocm-smi"):
        (tools / name).write_text(f'#!/bin/sh\necho "{name} says: $*"\n')
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    server = hanging()
    assert server.wait_death(30)
    text = report_of(server)
    for words in ("nvidia-smi says: ", "amd-smi says: monitor", "rocm-smi says: "):
        assert f"\n{words}\n" in text


def test_secrets_of_the_environment(hanging: FakeServer, stand_in: StandIn) -> None:
    stand_in("echo the token is hf_0123456789")
    server = hanging(env_vars={"HF_TOKEN": "hf_0123456789"})
    assert server.wait_death(30)
    assert "the token is ********" in report_of(server)


def test_folder_that_cannot_be_written(
    ordinary_user: Callable[[], contextlib.AbstractContextManager[None]], tmp_path: Path
) -> None:
    tmp_path.chmod(0o500)
    with ordinary_user():
        text = hang.write_hang_report("x", None, tmp_path, frozenset())
    tmp_path.chmod(0o700)
    assert text.startswith("stacks could not be written: [Errno 13] Permission denied: ")


def test_the_file_cannot_be_made(hanging: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/logs/hang-1.txt")

    monkeypatch.setattr(hang._Report, "open", refuse)
    server = hanging()
    assert server.wait_death(30)
    reason = str(server.why_died())
    assert "hung and was killed: its health check has failed" in reason
    assert "; stacks could not be written: [Errno 13] Permission denied: '/logs/hang-1.txt'" in reason


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(hanging: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hang._Report.open

    def open_full(report: hang._Report) -> None:
        real(report)
        report._file = open("/dev/full", "wb", buffering=0)

    monkeypatch.setattr(hang._Report, "open", open_full)
    server = hanging()
    assert server.wait_death(30)
    assert "hang-1.txt (not all: [Errno 28] No space left on device)" in str(server.why_died())


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    text = hang.write_hang_report("x", None, tmp_path, frozenset())
    assert text == 'stacks could not be written: RuntimeError("can\'t start new thread")'


def test_numbers_go_up_and_the_umask_counts(tmp_path: Path) -> None:
    for number in (1, 2):
        assert hang.write_hang_report("heading", None, tmp_path, frozenset()).endswith(f"/hang-{number}.txt")
    mask = os.umask(0o022)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "hang-1.txt").stat().st_mode) == 0o666 & ~mask
    assert (tmp_path / "hang-2.txt").read_text().startswith("heading\n")


@pytest.mark.parametrize("restart", [False, True])
def test_server_that_is_stopped_meanwhile_is_not_killed(
    hanging: FakeServer, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    inside, go_on, done = threading.Event(), threading.Event(), threading.Event()
    real = Watch._kill_hung

    def slow(*_: object) -> str:
        inside.set()
        go_on.wait(60)
        return "stacks: none"

    def kill_hung(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        done.set()

    monkeypatch.setattr("pytest_infserver.launcher.runtime.watch.write_hang_report", slow)
    monkeypatch.setattr(Watch, "_kill_hung", kill_hung)
    server = hanging()
    assert inside.wait(30)
    server.stop()
    if restart:
        server.start()
    go_on.set()
    assert done.wait(30)
    assert server.state is (ServerState.READY if restart else ServerState.STOPPED)
    assert server.check_health() is restart
    assert server.why_died() is None


def test_server_that_ends_by_itself_meanwhile_did_not_hang(
    hanging: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> str:
        os.kill(server.pid or 0, signal.SIGKILL)
        assert server.wait_death(30)
        done.set()
        return "stacks: none"

    done = threading.Event()
    monkeypatch.setattr("pytest_infserver.launcher.runtime.watch.write_hang_report", kill)
    server = hanging()
    assert done.wait(30)
    time.sleep(0.2)
    assert "was killed by SIGKILL, while it was in use" in str(server.why_died())


@pytest.mark.parametrize(
    ("script", "data", "problem"),
    [
        ("echo a; echo b >&2", b"a\nb\n", None),
        ("echo a; exit 3", b"a\n", "exit status 3"),
        ("echo a; kill -9 $$", b"a\n", "exit status -9"),
        ("echo a; exec >&- 2>&-; sleep 600", b"a\n", "killed: it did not end within 0.5 s"),
        ("echo a; sleep 600 & exit 0", b"a\n", "killed: it did not end within 0.5 s"),
        ("printf '%s\\n' short; exec yes long-line", None, "killed: it wrote more than 1 KB"),
    ],
)
def test_run_bounded(script: str, data: bytes | None, problem: str | None, nothing_left: None) -> None:
    output = run_bounded(["sh", "-c", script], 0.5, 1024)
    assert output.problem == problem
    assert output.data == data if data is not None else output.data.endswith(b"long-line\n")
    assert len(output.data) <= 1024


def test_run_bounded_without_the_program() -> None:
    output = run_bounded(["/no/such/program"], 1, 1024)
    assert output.data == b""
    assert str(output.problem).startswith("cannot be run: ")
