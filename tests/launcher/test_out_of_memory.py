"""Whether the kernel has killed a server for memory: on made-up counters, and with a kernel that does it."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import CommandServer, ServerStartupError
from pytest_infserver.launcher.diagnosis import out_of_memory
from pytest_infserver.launcher.diagnosis.out_of_memory import Finding, OutOfMemoryWatch, Whom, shown_bytes
from pytest_infserver.launcher.supervision.exit import Exit
from pytest_infserver.system.kernel_log import KMSG, KernelLog, knows_our_pids

FAKE_ENGINE = Path(__file__).parents[1] / "fake_engine.py"

pytestmark = pytest.mark.usefixtures("nothing_left")

NO_PID = 2**22 + 77
"""No process has it: it is above the largest."""
OTHER = NO_PID + 1
SIGKILLED = Exit(-signal.SIGKILL, 0)
LARGE = 200_000_000


class Machine:
    """A made-up machine with cgroups v2, one for the server below one for others, and a log of its kernel."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.own = folder / "fs" / "above" / "own"
        self.above = self.own.parent
        self.kmsg = folder / "kmsg"
        (self.proc / "self/ns").mkdir(parents=True)
        (self.proc / "self/ns/pid").symlink_to("pid:[4026531836]")
        (self.proc / "self/cgroup").write_text("0::/above/own\n")
        mount = f"30 25 0:26 / {folder / 'fs'} rw - cgroup2 cgroup2 rw\n"
        (self.proc / "self/mountinfo").write_text(mount)
        self.own.mkdir(parents=True)
        self.count(0, 0)
        (self.own / "memory.max").write_text("1073741824\n")
        (self.own / "memory.peak").write_text("1073741000\n")
        (self.above / "memory.max").write_text("max\n")
        self.kmsg.write_text("")

    def count(self, own: int, above: int) -> None:
        """Set the counters."""
        (self.own / "memory.events").write_text(f"oom 1\noom_kill {own}\n")
        (self.own / "memory.events.local").write_text(f"oom 1\noom_kill {own}\n")
        (self.above / "memory.events").write_text(f"oom 1\noom_kill {above}\n")

    def log(self, pid: int, name: str = "python3", head: str = "Memory cgroup out of memory") -> None:
        """Write that a process was killed."""
        with self.kmsg.open("a") as file:
            file.write(
                f"3,1,1,-;{head}: Killed process {pid} ({name}) total-vm:9kB, anon-rss:1048576kB, file-rss:0kB\n"
            )

    def watch(self) -> OutOfMemoryWatch:
        """Begin to watch."""
        return OutOfMemoryWatch(proc=self.proc, kmsg=self.kmsg)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_root_that_the_kernel_names(machine: Machine) -> None:
    watch = machine.watch()
    machine.count(1, 1)
    machine.log(NO_PID)
    found = watch.finding(NO_PID, SIGKILLED)
    assert found is not None
    assert found.whom is Whom.ROOT
    assert found.lines[0] == f"the kernel killed pid {NO_PID} (python3, 1.0 GiB resident) for memory"
    assert found.lines[1] == f"the limit of its cgroup is 1.0 GiB, peak 1024 MiB ({machine.own}/memory.max)"
    assert "raise memory.max" in found.lines[2]
    assert "--gpu-memory-utilization does not change it" in found.lines[2]
    assert found.end("was killed by SIGKILL", -9) == "was killed by the kernel for memory (SIGKILL)"
    assert found.end("exited with code 1", 1) == "exited with code 1, killed by the kernel for memory"


def test_the_whole_machine_was_short(machine: Machine) -> None:
    watch = machine.watch()
    machine.count(1, 1)
    machine.log(NO_PID, head="Out of memory")
    found = watch.finding(NO_PID, SIGKILLED)
    assert found is not None
    assert found.lines[1] == "no limit of its cgroup is known that was reached"
    assert "raise" not in found.lines[2]


@pytest.mark.parametrize("code", [-signal.SIGKILL, 137])
def test_without_the_log_an_unexplained_sigkill_and_the_counter_are_enough(machine: Machine, code: int) -> None:
    machine.kmsg.unlink()
    watch = machine.watch()
    machine.count(2, 2)
    found = watch.finding(NO_PID, Exit(code, 0))
    assert found is not None
    assert found.whom is (Whom.PART if code == 137 else Whom.ROOT)
    assert f"{machine.own}/memory.events counts 2 more" in found.lines[0]


def test_in_a_container_the_pids_of_the_log_are_not_believed(machine: Machine) -> None:
    (machine.proc / "self/ns/pid").unlink()
    (machine.proc / "self/ns/pid").symlink_to("pid:[4026532201]")
    watch = machine.watch()
    machine.log(NO_PID)
    assert watch.finding(NO_PID, SIGKILLED) is None
    watch = machine.watch()
    machine.count(1, 1)
    machine.log(OTHER)
    found = watch.finding(NO_PID, SIGKILLED)
    assert found is not None
    assert found.whom is Whom.ROOT
    assert found.lines[0].startswith("the kernel killed it for memory: ")


@pytest.mark.parametrize(
    ("how", "ours"),
    [
        (Exit(0, 0), False),
        (Exit(1, 0), False),
        (Exit(-signal.SIGSEGV, 0), False),
        (Exit(-signal.SIGKILL, 0, "`infserver stop` (pid 1)"), False),
        (SIGKILLED, True),
        (None, False),
    ],
)
def test_a_server_that_ended_otherwise_is_not_blamed(machine: Machine, how: Exit | None, ours: bool) -> None:
    machine.kmsg.unlink()
    watch = machine.watch()
    machine.count(1, 1)
    found = watch.finding(NO_PID, how, ours=ours)
    assert found is not None
    assert found.whom is Whom.SOMEBODY
    assert found.lines[-1] == "nothing says that it was one of this server's processes"
    assert found.end("exited with code 1", 1) == "exited with code 1"


def test_a_neighbour_that_the_kernel_names_explains_the_counter(machine: Machine) -> None:
    watch = machine.watch()
    machine.count(1, 1)
    machine.log(OTHER, "greedy")
    found = watch.finding(NO_PID, SIGKILLED)
    assert found is not None
    assert found.whom is Whom.SOMEBODY
    assert f"pid {OTHER} (greedy, 1.0 GiB resident)" in found.lines[0]


def test_one_more_than_the_neighbour_is_the_server(machine: Machine) -> None:
    watch = machine.watch()
    machine.count(2, 2)
    machine.log(OTHER, "greedy")
    found = watch.finding(NO_PID, SIGKILLED)
    assert found is not None
    assert found.whom is Whom.ROOT


def test_a_kill_in_a_cgroup_beside_it_blames_nobody(machine: Machine) -> None:
    machine.kmsg.unlink()
    watch = machine.watch()
    machine.count(0, 5)
    assert watch.finding(NO_PID, SIGKILLED) is None


def test_of_a_cgroup_that_went_with_the_server_the_one_above_has_counted(machine: Machine) -> None:
    machine.kmsg.unlink()
    watch = machine.watch()
    machine.count(1, 1)
    for file in machine.own.iterdir():
        file.unlink()
    machine.own.rmdir()
    found = watch.finding(NO_PID, SIGKILLED)
    assert found is not None
    assert found.whom is Whom.SOMEBODY
    assert str(machine.above / "memory.events") in found.lines[0]


def test_what_was_counted_before_the_launch_does_not_count(machine: Machine) -> None:
    machine.count(3, 3)
    machine.log(NO_PID)
    watch = machine.watch()
    assert watch.finding(NO_PID, SIGKILLED) is None
    # A counter that begins anew.
    watch = machine.watch()
    machine.count(0, 0)
    assert watch.finding(NO_PID, SIGKILLED) is None


@pytest.mark.parametrize(("below", "found"), [("", True), ("/infserver-1", True), ("/moved", False)])
def test_what_was_counted_before_the_first_look_counts_in_a_cgroup_of_the_servers_own(
    machine: Machine, below: str, found: bool
) -> None:
    watch = machine.watch()
    machine.count(1, 1)
    if below == "/moved":
        # One that counts for itself: its counter has never been read.
        moved = machine.own / "moved"
        moved.mkdir()
        for name in ("memory.events", "memory.events.local"):
            (moved / name).write_text("oom_kill 1\n")
    else:
        (machine.own / below.strip("/")).mkdir(exist_ok=True)
    (machine.proc / str(NO_PID)).mkdir()
    (machine.proc / str(NO_PID) / "cgroup").write_text(f"0::/above/own{below}\n")
    watch.look(NO_PID, os.getpid(), now=True)
    assert (watch.finding(NO_PID, Exit(1, 0)) is not None) is found


def test_a_pid_that_another_process_has_now_is_not_meant(machine: Machine) -> None:
    watch = machine.watch()
    watch.look(NO_PID, os.getppid(), now=True)
    machine.log(os.getpid())
    assert watch.finding(NO_PID, Exit(1, 0)) is None


def test_a_finding_stays_what_it_was(machine: Machine) -> None:
    watch = machine.watch()
    assert watch.finding(NO_PID, SIGKILLED) is None
    machine.log(NO_PID)
    assert watch.finding(NO_PID, SIGKILLED) is None
    watch.close()
    assert watch.finding(NO_PID, SIGKILLED) is None


def test_many_kills_are_named_in_few_words(machine: Machine) -> None:
    watch = machine.watch()
    machine.count(100, 100)
    for number in range(100):
        machine.log(OTHER + number)
    found = watch.finding(NO_PID, Exit(1, 0))
    assert found is not None
    assert "and 97 more" in found.lines[0]
    assert len(found.lines[0]) < 500


def test_where_there_is_nothing_nothing_is_found(tmp_path: Path) -> None:
    watch = OutOfMemoryWatch(proc=tmp_path / "proc", kmsg=tmp_path / "kmsg")
    watch.look(os.getpid(), os.getppid(), now=True)
    assert watch.finding(os.getpid(), SIGKILLED) is None
    watch.close()


def test_what_is_odd_about_a_machine_harms_no_start_and_no_end(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("odd")

    watch = machine.watch()
    for name in ("levels", "place", "descendants", "reread"):
        monkeypatch.setattr(out_of_memory, name, broken)
    machine.watch().look(os.getpid(), os.getppid(), now=True)
    watch.look(os.getpid(), os.getppid(), now=True)
    assert watch.finding(NO_PID, SIGKILLED) is None


def test_a_starting_server_is_not_looked_at_all_the_time(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    monkeypatch.setattr(out_of_memory, "descendants", lambda root: looks.append(root) or [])
    watch = machine.watch()
    for _ in range(100):
        watch.look(NO_PID, OTHER)
    assert looks == [OTHER]
    watch.look(NO_PID, OTHER, now=True)
    watch.look(None, None, now=True)
    assert len(looks) == 2
    # Where nothing would name them.
    machine.kmsg.unlink()
    machine.watch().look(NO_PID, OTHER, now=True)
    assert len(looks) == 2


@pytest.mark.parametrize(("size", "text"), [(64 << 20, "64 MiB"), (3 << 29, "1.5 GiB"), (0, "0 MiB")])
def test_sizes(size: int, text: str) -> None:
    assert shown_bytes(size) == text


# With this machine's kernel.


@pytest.fixture
def limited(memory_cgroup: Path, tmp_path: Path, nothing_left: None) -> Iterator[Callable[..., CommandServer]]:
    """Make servers whose processes go into a cgroup with little memory."""
    made: list[CommandServer] = []

    def make(*arguments: str, **settings: Any) -> CommandServer:
        move = f'echo $$ > {memory_cgroup}/cgroup.procs; exec "$0" "$@"'
        engine = [sys.executable, "-S", str(FAKE_ENGINE), "--port", "{port}", *arguments]
        server = CommandServer(launch_command=["sh", "-c", move, *engine], output_dir=tmp_path, name="fake", **settings)
        made.append(server)
        return server

    yield make
    for server in made:
        server.stop()


def ask(server: CommandServer, path: str) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        urllib.request.urlopen(server.url_for(path), timeout=20).close()


def test_the_kernel_kills_a_server(limited: Callable[..., CommandServer], memory_cgroup: Path) -> None:
    server = limited().start()
    assert server.runtime.view().how is None
    ask(server, f"/eat?bytes={LARGE}")
    assert server.wait_death(30)
    reason = server.why_died()
    assert reason is not None
    lines = reason.splitlines()
    assert lines[0] == "fake (command) was killed by the kernel for memory (SIGKILL), while it was in use"
    assert lines[1].startswith("  cause:   the kernel killed ")
    assert lines[2].startswith("           the limit of its cgroup is 64 MiB, peak 6")
    assert str(memory_cgroup) in lines[2]
    assert server.runtime.view().how == "was killed by the kernel for memory (SIGKILL)"
    how, _ = server.runtime.last_exit()
    assert how is not None
    assert how.out_of_memory is not None
    assert how.out_of_memory.whom is Whom.ROOT
    # A new launch begins anew.
    server.start()
    os.kill(server.pid or 0, signal.SIGKILL)
    assert server.wait_death(30)
    assert str(server.why_died()).splitlines()[0] == "fake (command) was killed by SIGKILL, while it was in use"


def test_the_kernel_kills_a_process_of_a_server(limited: Callable[..., CommandServer]) -> None:
    server = limited("--hungry-child=1").start()
    ask(server, f"/feed?bytes={LARGE}")
    assert server.wait_death(30)
    reason = str(server.why_died())
    if KernelLog().complete and knows_our_pids():
        assert reason.startswith("fake (command) exited with code 1 after the kernel had killed one of its processes")
        assert "  cause:   the kernel killed pid " in reason
    else:
        assert "  memory:  the kernel killed for memory in its cgroup meanwhile" in reason


def test_the_kernel_kills_a_server_that_starts(limited: Callable[..., CommandServer]) -> None:
    with pytest.raises(ServerStartupError, match=r"killed by the kernel for memory .*before it was ready") as caught:
        # Time for a look that finds it in its cgroup.
        limited("--delay=1.5", f"--eat={LARGE}").start()
    assert "  cause:   the kernel killed " in str(caught.value)
    assert "the limit of its cgroup is 64 MiB" in str(caught.value)
    assert caught.value.exit_code == -signal.SIGKILL


def test_a_server_that_hangs_since_the_kernel_killed_a_process_of_it(limited: Callable[..., CommandServer]) -> None:
    server = limited("--hungry-child=-1", heartbeat_interval=0.05, hang_timeout=1).start()
    ask(server, f"/feed?bytes={LARGE}")
    assert server.wait_death(30)
    reason = str(server.why_died())
    assert reason.startswith("fake (command) hung and was killed: its health check has failed for")
    assert "the kernel killed" in reason
    assert "was killed by the kernel" not in reason


def test_a_server_that_was_taken_over(limited: Callable[..., CommandServer], monkeypatch: pytest.MonkeyPatch) -> None:
    # Short: sockets have 108 bytes for their path.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("INFSERVER_STATE_DIR", folder)
        assert limited().start().keep(60)
        server = limited()
        assert server.take_over()
        ask(server, f"/eat?bytes={LARGE}")
        assert server.wait_death(30)
        assert "was killed by the kernel for memory" in str(server.why_died())
        server.stop()


EATER = "import sys; print(flush=True); food = bytearray(int(sys.stdin.readline())); sys.stdin.readline()"


@pytest.fixture
def eater(memory_cgroup: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start processes in the cgroup which take as much memory as they are told."""
    made: list[subprocess.Popen[bytes]] = []

    def make() -> subprocess.Popen[bytes]:
        move = f'echo $$ > {memory_cgroup}/cgroup.procs; exec "$0" "$@"'
        command = ["sh", "-c", move, sys.executable, "-I", "-S", "-c", EATER]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        made.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield make
    for process in made:
        process.kill()
        process.communicate()


def feed(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{LARGE}\n".encode())
    process.stdin.flush()
    assert process.wait(30) == -signal.SIGKILL


def found_for(watch: OutOfMemoryWatch, process: subprocess.Popen[bytes]) -> Finding | None:
    return watch.finding(process.pid, Exit(process.returncode, 0))


def test_the_counter_alone_tells(eater: Callable[[], subprocess.Popen[bytes]], tmp_path: Path) -> None:
    process = eater()
    watch = OutOfMemoryWatch(process.pid, kmsg=tmp_path / "none")
    feed(process)
    found = found_for(watch, process)
    assert found is not None
    assert found.whom is Whom.ROOT
    assert "counts 1 more than at the launch" in found.lines[0]


def test_a_neighbour_is_killed_for_memory_and_the_server_by_somebody(
    eater: Callable[[], subprocess.Popen[bytes]],
) -> None:
    if not (KernelLog().complete and knows_our_pids()):
        pytest.skip(f"needs {KMSG}, and the pids of the machine: nothing else tells the two apart")
    neighbour, process = eater(), eater()
    watch = OutOfMemoryWatch(process.pid)
    feed(neighbour)
    process.kill()
    process.wait()
    found = found_for(watch, process)
    assert found is not None
    assert found.whom is Whom.SOMEBODY
    assert f"pid {neighbour.pid} " in found.lines[0]


def test_beginning_to_watch_is_cheap() -> None:
    OutOfMemoryWatch().close()
    begin = time.process_time()
    for _ in range(50):
        OutOfMemoryWatch().close()
    # Usually 0.1 ms, of this process's own time.
    assert time.process_time() - begin < 50 * 0.001
