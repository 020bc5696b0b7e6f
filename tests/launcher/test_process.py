"""ServerProcess and its supervisor, with plain commands instead of servers."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_infserver.launcher.supervision.supervised_process import Exit, Launch, LaunchFailed, ServerProcess
from pytest_infserver.system.processes.table import descendants, find_process

FD_FOLDER = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
LONG = 30.0

pytestmark = pytest.mark.usefixtures("nothing_left")

MakeProcess = Callable[..., ServerProcess]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "output.log"


@pytest.fixture
def launch(log: Path, nothing_left: None) -> Iterator[MakeProcess]:
    made: list[ServerProcess] = []

    def make(*argv: str, env: dict[str, str] | None = None, stop_timeout: float = 5, **fields: str) -> ServerProcess:
        process = ServerProcess()
        made.append(process)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            process.launch(Launch(argv, {**os.environ, **(env or {})}, output, stop_timeout, **fields))
        except LaunchFailed:
            process.stop(0)
            raise
        finally:
            os.close(output)
        return process

    yield make
    for process in made:
        process.stop(0)


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def wait_for(condition: Callable[[], object], limit: float = LONG) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("code", "expected", "text"),
    [
        ("", 0, "exited with code 0"),
        ("raise SystemExit(3)", 3, "exited with code 3"),
        ("import os; os.kill(os.getpid(), 9)", -9, "was killed by SIGKILL"),
        ("import os; os.kill(os.getpid(), 40)", -40, "was killed by signal 40"),
    ],
)
def test_exit_is_reported_with_code_or_signal(launch: MakeProcess, code: str, expected: int, text: str) -> None:
    end = launch(*python(code)).wait_exit(LONG)
    assert end is not None
    assert end.code == expected
    assert str(end) == text


def test_exit_of_an_unknown_kind_is_described() -> None:
    assert "supervisor" in str(Exit(None, 0))


def test_peak_memory_is_reported_in_bytes(launch: MakeProcess) -> None:
    end = launch(*python("x = bytearray(100 << 20); x[:] = b'1' * len(x)")).wait_exit(LONG)
    assert end is not None
    assert 100 << 20 < end.max_rss < 4 << 30


def test_wait_exit_gives_up(launch: MakeProcess) -> None:
    assert launch("sleep", "100").wait_exit(0.05) is None


def test_stop_ends_it_and_reaps(launch: MakeProcess) -> None:
    process = launch("sleep", "100")
    process.stop(LONG)
    assert process.exit is not None
    assert process.exit.code == -signal.SIGTERM
    assert process.survivors == ()
    assert not psutil.pid_exists(process.pid or 0)
    assert not psutil.pid_exists(process.supervisor_pid or 0)


def test_stop_before_launch_and_twice_is_harmless(launch: MakeProcess) -> None:
    ServerProcess().stop(1)
    process = launch("sleep", "100")
    process.stop(LONG)
    process.stop(LONG)


@pytest.mark.parametrize("binary", ["/nonexistent/binary", "no-such-binary-anywhere"])
def test_missing_binary(launch: MakeProcess, binary: str) -> None:
    with pytest.raises(LaunchFailed, match="No such file"):
        launch(binary)


def test_file_that_is_no_program(launch: MakeProcess, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_bytes(b"\0\0not a program")
    script.chmod(0o755)
    with pytest.raises(LaunchFailed, match="Exec format error"):
        launch(str(script))


def test_value_that_no_environment_can_hold(launch: MakeProcess) -> None:
    with pytest.raises(LaunchFailed, match="null"):
        launch("true", env={"A": "b\0c"})
    with pytest.raises(LaunchFailed, match=r"surrogates|encode"):
        launch("true", env={"A": "\ud800"})
    with pytest.raises(LaunchFailed, match="too long"):
        launch("true", env={"A": "x" * (1 << 20)})


def test_environment_arrives_byte_for_byte(launch: MakeProcess, log: Path) -> None:
    values = {
        b"NEWLINES": b"a\nb\r\n\tc ",
        b"RAW": bytes(range(1, 256)),
        b"EMPTY": b"",
        b"QUOTES": b"'\"\\${HOME}`id`",
    }
    values |= {f"BIG_{index}".encode(): b"x" * 50_000 for index in range(10)}
    code = "import os, sys; sys.stdout.buffer.write(repr({k: v for k, v in os.environb.items()}).encode())"
    launch(*python(code), env={os.fsdecode(k): os.fsdecode(v) for k, v in values.items()}).wait_exit(LONG)
    seen = eval(log.read_bytes(), {"__builtins__": {}})
    assert {name: seen[name] for name in values} == values


def test_arguments_arrive_byte_for_byte(launch: MakeProcess, log: Path) -> None:
    words = [b"a b", b"", b"'\"", b"\xff\xfe", "ü".encode()]
    code = "import os, sys; print([os.fsencode(word) for word in sys.argv[1:]])"
    launch(*python(code), *map(os.fsdecode, words)).wait_exit(LONG)
    assert eval(log.read_text(), {"__builtins__": {}}) == words


def test_server_reads_nothing_and_gets_no_descriptors_of_ours(launch: MakeProcess, log: Path) -> None:
    left, right = socket.socketpair()
    with left, right:
        right.set_inheritable(True)
        code = f"import os, sys; print(repr(sys.stdin.read()), sorted(map(int, os.listdir({FD_FOLDER!r})))[:-1])"
        launch(*python(code)).wait_exit(LONG)
    assert log.read_text().strip() == "'' [0, 1, 2]"


def test_server_starts_with_default_signals_whatever_ours_are(launch: MakeProcess, log: Path) -> None:
    numbers = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        process = launch("sleep", "100")
        if sys.platform == "linux":
            status = Path(f"/proc/{process.pid}/status").read_text()
            masks = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))
            wanted = sum(1 << (number - 1) for number in numbers)
            assert not int(masks["SigBlk"], 16) & wanted
            assert not int(masks["SigIgn"], 16) & wanted
        process.stop(LONG)
        assert process.exit is not None
        assert process.exit.code == -signal.SIGTERM
        end = launch("true").wait_exit(LONG)
        assert end is not None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def test_default_timeout_of_sockets_is_not_ours(launch: MakeProcess) -> None:
    socket.setdefaulttimeout(0.05)
    try:
        process = launch("sleep", "100")
        assert process.wait_exit(0.3) is None
        process.stop(LONG)
        assert process.exit is not None
        assert process.exit.code == -signal.SIGTERM
    finally:
        socket.setdefaulttimeout(None)


def test_broken_pipe_does_not_kill_an_owner_that_wants_sigpipe(launch: MakeProcess) -> None:
    process = launch("sleep", "100")
    previous = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        psutil.Process(process.supervisor_pid).kill()
        assert process.wait_exit(LONG) is not None
        process.mark_ready()
        process.stop(1)
    finally:
        signal.signal(signal.SIGPIPE, previous)


def test_death_of_the_supervisor_ends_the_server(launch: MakeProcess) -> None:
    process = launch("sleep", "100")
    psutil.Process(process.supervisor_pid).kill()
    end = process.wait_exit(LONG)
    assert end is not None
    assert end.code is None
    assert "supervisor" in str(end)
    wait_for(lambda: not alive(process.pid or 0))
    process.stop(1)


def test_supervisor_that_does_not_answer_is_killed_with_its_tree(
    launch: MakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_infserver.launcher.supervision.limits.KILL_LIMIT", 0)
    monkeypatch.setattr("pytest_infserver.launcher.supervision.supervised_process._GRACES", 0)
    monkeypatch.setattr("pytest_infserver.launcher.supervision.supervised_process._ANSWER_LIMIT", 0.2)
    process = launch("sleep", "100")
    os.kill(process.supervisor_pid or 0, signal.SIGSTOP)
    process.stop(0)
    wait_for(lambda: not alive(process.pid or 0))


@pytest.fixture
def foreign(nothing_left: None) -> Iterator[subprocess.Popen[bytes]]:
    """A process of somebody else that has got the number of one of ours."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        yield process
        process.kill()


def launched(process: ServerProcess, *, pid: int, supervisor: int) -> None:
    """Tell it that its launch went well, of processes that have begun at a time when these had not."""
    process._handle(
        {
            "event": "launched",
            "pid": pid,
            "start": "1",
            "supervisor": supervisor,
            "supervisor_start": "1",
            "control_socket": None,
        }
    )


def test_the_root_of_a_lost_supervisor_may_have_given_its_number_away(foreign: subprocess.Popen[bytes]) -> None:
    process = ServerProcess()
    launched(process, pid=foreign.pid, supervisor=foreign.pid)
    process.exit = Exit(0, 0)
    process._supervisor_lost(foreign.pid)
    assert foreign.poll() is None


def test_a_supervisor_that_does_not_answer_may_have_given_its_number_away(foreign: subprocess.Popen[bytes]) -> None:
    process = ServerProcess()
    launched(process, pid=foreign.pid, supervisor=foreign.pid)
    with subprocess.Popen(["sleep", "0.1"]) as guard:
        process._supervisor = guard
        process._kill_supervisor()
    assert foreign.poll() is None


def test_a_launch_tells_when_its_processes_began(launch: MakeProcess) -> None:
    process = launch("sleep", "100")
    for pid, start in ((process.pid, process._start), (process.supervisor_pid, process._supervisor_start)):
        found = find_process(pid or 0)
        assert found is not None
        assert found.start == start


@pytest.mark.skipif(sys.platform != "linux", reason="there is no guard elsewhere")
def test_a_lost_supervisor_and_its_guard_leave_nothing(launch: MakeProcess) -> None:
    process = launch("sh", "-c", "sleep 100 & sleep 100")
    wait_for(lambda: len(descendants(process.pid or 0)) == 2)
    family = [process.pid, *(child.pid for child in descendants(process.pid or 0))]
    supervisor = psutil.Process(process.supervisor_pid)
    guard = supervisor.parent()
    assert guard is not None
    assert guard.pid != os.getpid()
    # First: it would take the tree over.
    guard.suspend()
    supervisor.kill()
    guard.kill()
    end = process.wait_exit(LONG)
    assert end is not None
    assert end.code is None
    wait_for(lambda: not any(alive(pid or 0) for pid in family))
    process.stop(1)


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_twenty_lives_leave_no_descriptor_thread_zombie_or_warning(launch: MakeProcess) -> None:
    def state() -> tuple[int, list[str], int]:
        gc.collect()
        threads = sorted(thread.name for thread in threading.enumerate())
        return len(os.listdir(FD_FOLDER)), threads, len(psutil.Process().children())

    launch("sleep", "100").stop(LONG)
    before = state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(20):
            if number % 4 == 0:
                with pytest.raises(LaunchFailed):
                    launch("/nonexistent")
            else:
                launch("sleep", "100").stop(LONG)
        # A thread of an earlier test may have a file open just now.
        wait_for(lambda: state() == before)
    assert [str(one.message) for one in caught if one.category is ResourceWarning] == []


OWNER = """
import os, sys
# First: Python 3.13.0 imports nothing in a deleted folder.
from pytest_infserver.launcher.supervision.supervised_process import Launch, ServerProcess
{before}
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
process = ServerProcess()
argv = [sys.executable, "-I", "-S", "-c", "print('hello', flush=True); import time; time.sleep(100)"]
process.launch(Launch(argv, env=dict(os.environ), log_fd=log, stop_timeout=5))
while b"hello" not in open(sys.argv[1], "rb").read() and process.exit is None:
    pass
process.stop(5)
os.write(log, f"exit {{process.exit.code}}".encode())
"""


@pytest.mark.parametrize(
    ("before", "wrapper"),
    [
        pytest.param("os.close(0)", [], id="stdin closed"),
        pytest.param("os.close(0); os.close(1); os.close(2)", [], id="all three closed"),
        pytest.param(
            "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\n"
            "kept = [os.open('/dev/null', 0) for _ in range(1500)]",
            [],
            id="1500 open files",
        ),
        pytest.param("os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')", [], id="working directory deleted"),
        pytest.param("", ["nohup"], id="nohup"),
        pytest.param("import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)", [], id="SIGCHLD ignored"),
        pytest.param("os.environ['PYTHONPATH'] = '/nonexistent'; os.environ['PYTHONHOME'] = '/x'", [], id="PYTHONHOME"),
    ],
)
def test_odd_owners(before: str, wrapper: list[str], tmp_path: Path, log: Path, nothing_left: None) -> None:
    if "1500" in before and sys.platform != "linux":
        pytest.skip("the limit is lower there")
    command = [*wrapper, sys.executable, "-c", OWNER.format(before=before), str(log)]
    if "PYTHONHOME" in before:
        # The server is told of it and cannot start; the supervisor must not care.
        command[-2] = command[-2].replace("env=dict(os.environ)", "env={}")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert log.read_text().split("\n") == ["hello", f"exit {-signal.SIGTERM}"]


def test_interpreter_with_spaces_in_its_path(
    launch: MakeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "my python's" / "python"
    link.parent.mkdir()
    link.symlink_to(Path(sys.executable).resolve())
    monkeypatch.setattr(sys, "executable", str(link))
    end = launch("true").wait_exit(LONG)
    assert end is not None
    assert end.code == 0


def test_interpreter_that_is_gone(launch: MakeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(LaunchFailed, match="nonexistent/python"):
        launch("true")


# The folder that goes with it.


def test_the_folder_of_a_server_goes_with_all_that_is_in_it(launch: MakeProcess, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    (scratch / "a").mkdir(parents=True)
    (scratch / "a" / "file").write_text("")
    process = launch(*python("import time; time.sleep(60)"), scratch=str(scratch))
    process.stop(5)
    assert not scratch.exists()


@pytest.mark.parametrize("instead", ["a link", "another folder", "a link on the way"])
def test_what_a_server_has_put_in_its_place_stays(launch: MakeProcess, tmp_path: Path, instead: str) -> None:
    scratch, precious = tmp_path / "parent" / "scratch", tmp_path / "precious" / "scratch"
    for folder in (scratch, precious):
        folder.mkdir(parents=True)
    (precious / "file").write_text("precious")
    process = launch(*python("import time; time.sleep(60)"), scratch=str(scratch))
    scratch.rename(tmp_path / "moved")
    if instead == "a link":
        scratch.symlink_to(precious)
    elif instead == "another folder":
        precious = precious.rename(scratch)
    else:
        scratch.parent.rmdir()
        scratch.parent.symlink_to("precious")
    process.stop(5)
    assert (precious / "file").read_text() == "precious"


def test_a_pipe_in_place_of_the_pid_of_an_engine_hangs_nobody(launch: MakeProcess, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pid")
    process = launch(*python("import time; time.sleep(60)"), pid_file=str(tmp_path / "pid"))
    assert process.engine_pid == process.pid
    begin = time.monotonic()
    process.stop(5)
    assert time.monotonic() - begin < LONG
    assert process.exit is not None
