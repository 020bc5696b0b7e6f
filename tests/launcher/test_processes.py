"""Processes, told apart by pid and start time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_infserver.system.processes import table as processes
from pytest_infserver.system.processes.table import Process, age, command_line, descendants, is_alive, read_process

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.usefixtures("nothing_left"),
]

NOBODY_HAS = 2**22 + 1
"""A pid above the kernel's greatest."""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(nothing_left: None) -> Iterator[Start]:
    """Start Python programs that say "up" and then wait for the end of their input."""
    made: list[subprocess.Popen[str]] = []

    def make(code: str = "", *arguments: str, **options: object) -> subprocess.Popen[str]:
        program = f"import signal, sys\nsignal.alarm(60)\n{code}\nprint('up', flush=True)\nsys.stdin.read()"
        command = [sys.executable, "-I", "-S", "-c", program, *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        child = subprocess.Popen(command, text=True, **pipes, **options)  # type: ignore[call-overload]
        made.append(child)
        assert child.stdout.readline() == "up\n"
        return child

    yield make
    for child in made:
        child.kill()
        child.communicate()


def read(pid: int) -> Process:
    found = read_process(pid)
    assert found is not None
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_process(start: Start) -> None:
    child = start(start_new_session=True)
    found = read(child.pid)
    expected = Process(child.pid, os.getpid(), found.start, zombie=False, group=child.pid, session=child.pid)
    assert found == expected
    assert int(found.start) >= int(read(os.getpid()).start)


def test_process_that_does_not_exist() -> None:
    assert read_process(NOBODY_HAS) is None
    assert command_line(NOBODY_HAS) == ""
    assert not is_alive(NOBODY_HAS, "1")


@pytest.mark.parametrize("name", [") R 1 (", "a b", "(", ")", "\udcff", "new\nline"])
def test_odd_names(start: Start, name: str) -> None:
    child = start(f"open('/proc/self/comm', 'wb').write({os.fsencode(name)!r})")
    assert read(child.pid).parent == os.getpid()
    assert child.pid in {process.pid for process in descendants(os.getpid())}


def test_zombie_is_one_and_no_descendant(start: Start) -> None:
    child = start()
    identity = read(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert read(child.pid) == identity._replace(zombie=True)
    assert is_alive(child.pid, identity.start)
    assert command_line(child.pid) == ""
    assert child.pid not in {process.pid for process in descendants(os.getpid())}
    child.wait()
    assert not is_alive(child.pid, identity.start)


def test_process_whose_first_thread_has_ended_is_no_zombie(start: Start) -> None:
    number = {"x86_64": 60, "aarch64": 93}.get(os.uname().machine)
    if number is None:
        pytest.skip("the number of the system call is not known")
    child = start(
        f"import ctypes, threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
        f"print('up', flush=True)\nctypes.CDLL(None).syscall({number}, 0)"
    )
    deadline = time.monotonic() + 30
    while "Z" not in Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not read(child.pid).zombie


def test_another_process_with_the_same_pid_is_not_alive(start: Start) -> None:
    identity = read(start().pid)
    assert is_alive(identity.pid, identity.start)
    assert not is_alive(identity.pid, str(int(identity.start) - 1))


def test_descendants_come_after_their_parents(start: Start) -> None:
    code = """
import os
for _ in range(3):
    if os.fork():
        sys.stdin.read()
        os._exit(0)
"""
    root = start(code)
    below = descendants(root.pid)
    assert [process.parent for process in below] == [root.pid, *(process.pid for process in below[:2])]
    assert root.pid not in {process.pid for process in below}
    assert {process.pid for process in below} <= {process.pid for process in descendants(os.getpid())}


def running(*pids: int) -> list[bool]:
    return [(found := read_process(pid)) is not None and not found.zombie for pid in pids]


def children_of(root: subprocess.Popen[str], count: int) -> list[int]:
    found = [process.pid for process in descendants(root.pid)]
    assert len(found) == count
    return found


FORKS = """
import os
for _ in range(2):
    if not os.fork():
        if {apart}: os.setsid()
        sys.stdin.read()
        os._exit(0)
"""


def test_a_session_is_killed_with_what_descends_from_its_leader(start: Start) -> None:
    root = start(FORKS.format(apart=True), start_new_session=True)
    pids = [root.pid, *children_of(root, 2)]
    processes.kill_session(root.pid, read(root.pid).start)
    wait_until(lambda: not any(running(*pids)))


def test_a_group_is_killed_that_its_leader_has_left_behind(start: Start) -> None:
    root = start(FORKS.format(apart=False), start_new_session=True)
    identity, pids = read(root.pid), children_of(root, 2)
    root.kill()
    root.wait()
    assert running(*pids) == [True, True]
    processes.kill_session(root.pid, identity.start)
    wait_until(lambda: not any(running(*pids)))


def test_a_session_of_another_process_with_the_same_pid_is_left_alone(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = start(FORKS.format(apart=True), start_new_session=True)
    pids = [root.pid, *children_of(root, 2)]
    monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("a group of somebody else was signalled"))
    processes.kill_session(root.pid, str(int(read(root.pid).start) - 1))
    assert running(*pids) == [True, True, True]


def test_a_group_of_that_number_in_another_session_is_left_alone(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that a shell has made since."""
    root = start(f"import os\nos.setpgrp()\n{FORKS.format(apart=False)}")
    identity, pids = read(root.pid), children_of(root, 2)
    root.kill()
    root.wait()
    monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("a group of somebody else was signalled"))
    processes.kill_session(root.pid, identity.start)
    assert running(*pids) == [True, True]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_nothing_is_signalled_where_nobody_is_left() -> None:
    processes.kill_session(NOBODY_HAS, "1")


def test_signal_reaches_only_the_process_that_was_meant(start: Start) -> None:
    child = start()
    identity = read(child.pid)
    processes.send_signal(identity._replace(start="1"), signal.SIGKILL)
    assert not read(child.pid).zombie
    processes.send_signal(identity, signal.SIGTERM)
    assert child.wait(60) == -signal.SIGTERM
    processes.send_signal(identity, signal.SIGKILL)


def test_signal_without_pidfd(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(pid: int) -> int:
        raise OSError("no such system call")

    monkeypatch.setattr(os, "pidfd_open", fail)
    child = start()
    identity = read(child.pid)
    processes.send_signal(identity._replace(start="1"), signal.SIGKILL)
    assert not read(child.pid).zombie
    processes.send_signal(identity, signal.SIGKILL)
    assert child.wait(60) == -signal.SIGKILL


def test_stopped_processes_are_waited_for(start: Start) -> None:
    spin = "threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()"
    busy = f"import threading\nfor _ in range(8):\n    {spin}"
    children = [read(start(busy).pid) for _ in range(3)]
    for child in children:
        processes.send_signal(child, signal.SIGSTOP)
    processes.wait_until_stopped(children, 30)
    threads = [path for child in children for path in Path(f"/proc/{child.pid}/task").iterdir()]
    assert len(threads) == 27
    assert {(path / "stat").read_text().rpartition(") ")[2][0] for path in threads} == {"T"}


def test_processes_that_do_not_stop_are_given_up(start: Start) -> None:
    ended = start()
    gone = read(ended.pid)
    ended.communicate()
    begin = time.monotonic()
    processes.wait_until_stopped([gone], 30)
    assert time.monotonic() - begin < 20
    processes.wait_until_stopped([read(start().pid)], 0.2)
    assert 0.2 <= time.monotonic() - begin < 20


@pytest.mark.parametrize(
    ("code", "ignores", "handles"),
    [
        ("", False, False),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", True, False),
        ("signal.signal(signal.SIGHUP, signal.SIG_IGN)", False, False),
        ("signal.signal(signal.SIGTERM, lambda *_: None)", False, True),
        ("signal.signal(signal.SIGHUP, lambda *_: None)", False, False),
    ],
)
def test_what_sigterm_does(start: Start, code: str, ignores: bool, handles: bool) -> None:
    pid = start(code).pid
    assert processes.ignores_sigterm(pid) is ignores
    assert processes.handles_sigterm(pid) is handles


def test_command_line(start: Start) -> None:
    child = start("", "two  words", "", "tab\tnew\nline", "\udcff")
    assert command_line(child.pid).endswith(" two words tab new line \ufffd")


def test_long_command_line_ends_with_a_whole_word(start: Start) -> None:
    words = [f"--word-{number}" for number in range(1000)]
    child = start("", *words)
    shown = command_line(child.pid)
    assert len(shown) <= 4096
    last = shown.rpartition(" ")[2]
    assert last in words
    assert words.index(last) > 100


def test_half_a_secret_is_not_shown(start: Start) -> None:
    head = len(Path(f"/proc/{start('', '').pid}/cmdline").read_bytes())
    child = start("", "x" * (4096 - head - 10), "--secret=hunter22222hunter22222")
    assert "hunter" not in command_line(child.pid)
    assert "xxx" in command_line(child.pid)


def test_one_endless_word_is_cut(nothing_left: None) -> None:
    long = subprocess.Popen(["x" * 10_000, "60"], executable="/bin/sleep")
    try:
        deadline = time.monotonic() + 30
        while not (shown := command_line(long.pid)).startswith("xxx"):
            assert time.monotonic() < deadline
        assert shown == "x" * 4096
    finally:
        long.kill()
        long.wait()


def test_age(start: Start) -> None:
    begin = time.monotonic()
    child = start()
    time.sleep(0.1)
    found = age(read(child.pid))
    assert found is not None
    assert 0.05 <= found <= time.monotonic() - begin + 0.05
    assert age(Process(1, 0, "Mon Nov 22 12:00:00 2027", False, 0, 0)) is None
    assert age(read(child.pid)._replace(start="9" * 15)) == 0


def test_file_that_cannot_be_read_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("some text")
    assert processes.read_file(str(path), 4) == b"some"
    assert processes.read_file(str(tmp_path / "gone"), 4) == b""
    assert processes.read_file(str(tmp_path), 4) == b""


def test_list_while_processes_come_and_go(nothing_left: None) -> None:
    code = "import os, signal\nsignal.alarm(60)\nwhile True:\n    os.fork() or os._exit(0)\n    os.wait()"
    churn = [subprocess.Popen([sys.executable, "-I", "-S", "-c", code]) for _ in range(2)]
    try:
        wanted = {child.pid for child in churn}
        for _ in range(50):
            assert wanted <= {process.pid for process in descendants(os.getpid())}
    finally:
        for child in churn:
            child.kill()
            child.wait()


def test_threads_are_not_processes() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    assert thread.native_id not in {process.pid for process in processes.list_processes()}
    stop.set()
    thread.join()
