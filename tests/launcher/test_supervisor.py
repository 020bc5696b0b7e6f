"""How trees of processes end, whatever they do about it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from fake_servers import fake_command

from pytest_infserver import CommandServer, LeakError
from pytest_infserver.launcher.supervision import limits, program, supervisor
from pytest_infserver.launcher.supervision.exit import Exit
from pytest_infserver.system.processes import own_cgroup
from pytest_infserver.system.processes import table as processes
from pytest_infserver.system.processes.owner import Owner

pytestmark = pytest.mark.usefixtures("nothing_left")

FakeServer = Callable[..., CommandServer]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs a child subreaper")


def tree(server: CommandServer) -> list[psutil.Process]:
    return psutil.Process(server.pid).children(recursive=True)


def cgroup_of(pid: int) -> str | None:
    """Return the cgroup that a supervisor has made."""
    return own_cgroup.cgroup_made_by(pid, own_cgroup.start_of(pid))


def ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def test_obedient_tree_has_no_survivors(fake_server: FakeServer) -> None:
    server = fake_server("--children", "3").start()
    children = tree(server)
    assert len(children) == 3
    server.stop()
    assert server.survivors == ()
    assert all(map(ended, children))


def test_forgotten_children_are_asked_to_end_at_once(fake_server: FakeServer) -> None:
    server = fake_server("--children", "2", "--forget-children").start()
    children = tree(server)
    begin = time.monotonic()
    server.stop()
    # Not after the time that those have who may end by themselves.
    assert time.monotonic() - begin < limits.DRAIN_GRACE
    assert all(map(ended, children))
    assert server.survivors == ()


def test_forgotten_children_are_a_leak_in_debug_mode(fake_server: FakeServer) -> None:
    server = fake_server("--children", "2", "--forget-children", debug_mode=True, stop_timeout=1).start()
    children = tree(server)
    with pytest.raises(LeakError, match="left behind 2 processes") as caught:
        server.stop()
    assert {finding.pid for finding in caught.value.findings} == {child.pid for child in children}
    assert all(map(ended, children))


@linux_only
def test_daemon_in_a_session_of_its_own_is_found(fake_server: FakeServer) -> None:
    server = fake_server("--daemon").start()
    process = server.runtime.process
    assert process is not None
    below = psutil.Process(process.supervisor_pid).children(recursive=True)
    daemon = [one for one in below if one.pid != server.pid and not ended(one)]
    assert len(daemon) == 1
    server.stop()
    assert all(map(ended, daemon))


@linux_only
def test_stubborn_children_are_killed_and_named(fake_server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server = fake_server("--children", "2", "--forget-children", "--stubborn-children").start()
    pids = {child.pid for child in tree(server)}
    server.stop()
    assert {survivor.pid for survivor in server.survivors} == pids
    assert "2 of its processes did not end by themselves" in caplog.text


def test_survivors_are_a_leak_in_debug_mode(fake_server: FakeServer) -> None:
    server = fake_server("--ignore-term", stop_timeout=0.3, debug_mode=True).start()
    pid = server.pid
    with pytest.raises(LeakError, match=rf"(?s)pid {pid}, the root process, .*fake_engine"):
        server.stop()
    assert server.pid is None


def test_root_that_ignores_sigterm_gets_its_whole_time(fake_server: FakeServer) -> None:
    server = fake_server("--ignore-term", stop_timeout=1).start()
    begin = time.monotonic()
    server.stop()
    assert 1 <= time.monotonic() - begin < 20
    assert [survivor.stuck for survivor in server.survivors] == [False]


def test_slow_stop_is_waited_for(fake_server: FakeServer) -> None:
    server = fake_server("--stop-delay", "0.7", stop_timeout=30).start()
    begin = time.monotonic()
    server.stop()
    assert time.monotonic() - begin >= 0.7
    assert server.survivors == ()


def test_descendants_of_a_root_that_dies_by_itself_end_too(fake_server: FakeServer) -> None:
    server = fake_server("--children", "2").start()
    children = tree(server)
    os.kill(server.pid or 0, signal.SIGKILL)
    assert server.wait_death(30)
    psutil.wait_procs(children, 30)
    assert all(map(ended, children))


def test_stopped_server_ends(fake_server: FakeServer) -> None:
    server = fake_server(stop_timeout=0.5).start()
    os.kill(server.pid or 0, signal.SIGSTOP)
    server.stop()
    assert server.pid is None


@linux_only
@pytest.mark.parametrize("how", ["--fork-chain", "--fork-tree"])
def test_forking_at_the_stop_helps_nobody(fake_server: FakeServer, how: str) -> None:
    fake_server(how, "200", stop_timeout=1).start().stop()


@linux_only
def test_process_whose_first_thread_has_ended_is_killed(fake_server: FakeServer) -> None:
    if os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip("the number of the system call is not known")
    server = fake_server("--headless", stop_timeout=0.5).start()
    pid = server.pid
    begin = time.monotonic()
    server.stop()
    assert time.monotonic() - begin < limits.KILL_LIMIT
    assert [(survivor.pid, survivor.stuck) for survivor in server.survivors] == [(pid, False)]


@linux_only
def test_sigterm_to_the_supervisor_is_a_stop(fake_server: FakeServer) -> None:
    server = fake_server("--children", "1").start()
    process = server.runtime.process
    assert process is not None
    os.kill(process.supervisor_pid or 0, signal.SIGTERM)
    assert server.wait_death(30)
    assert process.exit is not None
    assert process.exit.code == 0


def test_signal_reaches_only_the_process_that_was_meant() -> None:
    child = subprocess.Popen(["sleep", "100"])
    try:
        found = next(one for one in processes.list_processes() if one.pid == child.pid)
        processes.send_signal(found._replace(start="0"), signal.SIGKILL)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.1)
        processes.send_signal(found, signal.SIGKILL)
        assert child.wait(30) == -signal.SIGKILL
        processes.send_signal(found, signal.SIGKILL)
    finally:
        child.kill()
        child.wait()


def test_processes_are_listed_with_parents() -> None:
    name = "print(input())"
    child = subprocess.Popen([sys.executable, "-c", name], stdin=subprocess.PIPE)
    try:
        below = processes.descendants(os.getpid())
        assert child.pid in {process.pid for process in below}
        assert all(process.pid != os.getpid() for process in below)
        assert supervisor.describe(below[0])["pid"] == below[0].pid
    finally:
        child.communicate(b"\n", timeout=30)


@pytest.mark.skipif(not Path("/bin/ps").exists(), reason="needs ps")
def test_processes_can_be_listed_by_ps() -> None:
    found = {process.pid: process for process in processes._list_processes_by_ps()}
    assert found[os.getpid()].parent == os.getppid()


def processes_of_ours(server: CommandServer) -> list[psutil.Process]:
    """Return the server's supervisor and the guard above it."""
    assert server.runtime.process is not None
    supervisor_process = psutil.Process(server.runtime.process.supervisor_pid)
    return [supervisor_process, psutil.Process(supervisor_process.ppid())]


@linux_only
@pytest.mark.parametrize("debug_mode", [True, False])
def test_who_kills_pytest_by_name_does_not_hit_the_supervisor(fake_server: FakeServer, debug_mode: bool) -> None:
    """`pkill -9 -f pytest` and `pkill -9 python`: somebody must be left to stop the server."""
    with fake_server(debug_mode=debug_mode) as server:
        for process in processes_of_ours(server):
            assert process.name() == "infserver"
            # The interpreter may lie in a folder that says anything.
            assert "pytest" not in " ".join(process.cmdline()[1:])


@linux_only
@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM])
def test_signals_that_a_server_sends_to_its_parent_are_survived(
    fake_server: FakeServer, number: signal.Signals
) -> None:
    with fake_server() as server:
        for process in processes_of_ours(server):
            process.send_signal(number)
        assert not server.wait_death(0.3)
        assert server.check_health()


@linux_only
def test_server_does_not_inherit_what_its_supervisor_does_with_signals(fake_server: FakeServer) -> None:
    with fake_server() as server:
        [ignored] = [
            int(line.split()[1], 16)
            for line in Path(f"/proc/{server.pid}/status").read_text().splitlines()
            if line.startswith("SigIgn")
        ]
    # Python itself ignores SIGPIPE and SIGXFSZ.
    assert ignored & ~(1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1) == 0


@linux_only
def test_processes_in_other_sessions_end_when_supervisor_and_guard_are_both_killed(fake_server: FakeServer) -> None:
    server = fake_server("--setsid-child", "--children", "1").start()
    children = tree(server)
    assert len(children) == 2
    for process in reversed(processes_of_ours(server)):
        process.kill()
    assert server.wait_death(30)
    psutil.wait_procs(children, 30)
    assert all(map(ended, children))


@linux_only
def test_a_daemon_ends_too_when_both_are_killed_if_it_has_been_seen(
    fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(own_cgroup.SWITCH, "0")
    server = fake_server("--daemon", heartbeat_interval=0.05).start()
    process = server.runtime.process
    assert process is not None
    [daemon] = [one for one in psutil.Process(process.supervisor_pid).children() if one.pid != server.pid]
    # Looks are a second apart.
    time.sleep(1.5)
    for one in reversed(processes_of_ours(server)):
        one.kill()
    assert server.wait_death(30)
    psutil.wait_procs([daemon], 30)
    assert ended(daemon)
    how = str(server.why_died())
    assert "cannot be known" in how
    assert f"pid {daemon.pid} (" in how
    assert f"pid {server.pid or process.pid} (" in how


@linux_only
def test_a_daemon_that_nobody_has_seen_ends_too_where_the_server_has_a_cgroup(
    fake_server: FakeServer, needs_cgroup: None
) -> None:
    # Nobody looks in an hour.
    server = fake_server("--daemon", heartbeat_interval=3600).start()
    process = server.runtime.process
    assert process is not None
    process._last_seen._seen = {}
    [daemon] = [one for one in psutil.Process(process.supervisor_pid).children() if one.pid != server.pid]
    folder = cgroup_of(process.supervisor_pid or 0)
    assert folder is not None
    for one in reversed(processes_of_ours(server)):
        one.kill()
    assert server.wait_death(30)
    psutil.wait_procs([daemon], 30)
    assert ended(daemon)
    assert not Path(folder).exists()
    assert "ended together with its supervisor (was that killed?)" in str(server.why_died())


@linux_only
def test_a_server_that_its_cgroup_refuses_has_none(
    fake_server: FakeServer, needs_cgroup: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the kernel lets it make one, and not move into it."""
    code = "from pytest_infserver.system.processes import own_cgroup; own_cgroup.enter_cgroup = lambda folder: None; "
    monkeypatch.setattr(program, "PROGRAM", program.PROGRAM.replace('__import__("py"', f'{code}__import__("py"'))
    server = fake_server("--daemon", heartbeat_interval=3600).start()
    supervisor_process, _ = processes_of_ours(server)
    assert cgroup_of(supervisor_process.pid) is None
    for one in reversed(processes_of_ours(server)):
        one.kill()
    assert server.wait_death(30)
    assert "cannot be known" in str(server.why_died())


@linux_only
@pytest.mark.parametrize("killed", ["nobody", "supervisor", "engine"])
def test_the_cgroup_goes_with_the_server(fake_server: FakeServer, needs_cgroup: None, killed: str) -> None:
    server = fake_server("--children", "1", "--daemon").start()
    supervisor_process, _ = processes_of_ours(server)
    folder = cgroup_of(supervisor_process.pid)
    assert folder is not None
    inside = {int(line) for line in Path(folder, "cgroup.procs").read_text().split()}
    assert server.pid in inside
    assert {one.pid for one in tree(server)} <= inside
    assert len(inside) == 3
    if killed != "nobody":
        os.kill(supervisor_process.pid if killed == "supervisor" else server.pid or 0, signal.SIGKILL)
        assert server.wait_death(30)
    server.stop()
    assert not Path(folder).exists()


@linux_only
def test_what_is_left_when_nobody_is_left_ends_before_the_next_server(
    fake_server: FakeServer, needs_cgroup: None, tmp_path: Path
) -> None:
    code = (
        "import os, signal, psutil\n"
        "from pytest_infserver import CommandServer\n"
        f"server = CommandServer(launch_command={fake_command('--setsid-child', '--daemon')!r}, output_dir='logs')\n"
        "server.start()\n"
        "supervisor = psutil.Process(server.runtime.process.supervisor_pid)\n"
        "print(supervisor.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert owner.stdout is not None
    supervisor_process = psutil.Process(int(owner.stdout.readline()))
    folder = cgroup_of(supervisor_process.pid)
    assert folder is not None
    left = [psutil.Process(int(line)) for line in Path(folder, "cgroup.procs").read_text().split()]
    assert len(left) == 3
    for number in (owner.pid, supervisor_process.ppid(), supervisor_process.pid):
        os.kill(number, signal.SIGKILL)
    owner.wait(30)
    owner.stdout.close()
    assert not all(map(ended, left))
    with fake_server():
        psutil.wait_procs(left, 30)
        assert all(map(ended, left))
        assert not Path(folder).exists()


def test_what_was_never_seen_is_said_to_be_unknown() -> None:
    assert "cannot be known; nothing of it had been seen" in str(Exit(None, 0, last_seen=()))
    many = str(Exit(None, 0, last_seen=tuple(f"pid {number} (x)" for number in range(20))))
    assert "pid 7 (x), ..." in many
    assert "pid 8 (x)" not in many
    assert str(Exit(None, 0)) == "ended together with its supervisor (was that killed?)"


@linux_only
def test_what_was_seen_before_the_supervisor_was_killed_is_said_to_be_lost(fake_server: FakeServer) -> None:
    server = fake_server(debug_mode=True).start()
    processes_of_ours(server)[0].kill()
    assert server.wait_death(30)
    server.stop()
    assert server.leak_report is not None
    assert "what the server held before its supervisor was killed" in server.leak_report.not_checked


def test_nothing_is_said_to_an_owner_that_is_gone() -> None:
    """Nobody would read it, and the channel may be full."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        try:
            alone = supervisor.Supervisor(ours, Owner(os.getppid()))
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in handlers.items():
                with contextlib.suppress(OSError, TypeError):
                    signal.signal(number, handler)
        alone.ownership.send(event="first")
        alone.lose_owner()
        alone.ownership.send(event="second")
        assert theirs.recv(1000) == b'{"event": "first"}\n'
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1000)


@pytest.mark.parametrize("system_tells", [True, False])
def test_end_of_the_owner_is_seen(
    system_tells: bool, tmp_path: Path, nothing_left: None, fake_server: FakeServer
) -> None:
    """Also where there is no pidfd, and a fork of the owner holds its socket open."""
    package = Path(supervisor.__file__).parents[2]
    copy = shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    script = copy / "system" / "processes" / "owner.py"
    source = script.read_text()
    assert 'hasattr(os, "pidfd_open")' in source
    script.write_text(source if system_tells else source.replace('hasattr(os, "pidfd_open")', "False"))
    command = fake_server().settings.launch_command
    owner = f"""
import os, sys, time
from pytest_infserver import CommandServer
from pytest_infserver.launcher.supervision import program
from pytest_infserver.system.processes import table as processes
program.__file__ = {str(script)!r}
server = CommandServer(launch_command={command!r}, output_dir={str(tmp_path)!r}, stop_timeout=2).start()
fork = os.fork()
if fork == 0:
    os.close(1)
    time.sleep(60)
    os._exit(0)
print(server.pid, fork, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", owner], stdout=subprocess.PIPE, timeout=60, check=True)
    pid, fork = map(int, done.stdout.split())
    outlives = psutil.Process(fork)
    server = [process for process in psutil.process_iter() if process.pid == pid]
    psutil.wait_procs(server, 30)
    assert all(map(ended, server))
    assert not ended(outlives)
    outlives.kill()
