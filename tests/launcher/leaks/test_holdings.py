"""What is read of the things that a process holds."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_infserver.launcher.leaks import holdings as module
from pytest_infserver.launcher.leaks.holdings import held_by_others, read_holdings
from pytest_infserver.system.processes.table import Process, read_process

from .holders import BECOME_NOBODY, NOBODY, SHM, Holder, linux_only, root_only

pytestmark = [linux_only, pytest.mark.usefixtures("hard_limit")]

Start = Callable[..., Holder]
HOLD = f"{SHM}\nhold(*sys.argv[1:])"


def identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


@pytest.mark.parametrize("how", ["fd", "mapping", "both"])
def test_shared_memory_by_descriptor_and_by_mapping(start: Start, shm: str, how: str) -> None:
    path = Path("/dev/shm") / shm
    holder = start(HOLD, path, how)
    assert holder.holdings.shm == {identity(path)}
    assert held_by_others([identity(path), (0, 0)]) == {identity(path)}
    path.unlink()


@pytest.mark.parametrize("how", ["fd", "mapping"])
def test_object_without_a_name_is_still_held(start: Start, shm: str, how: str) -> None:
    path = Path("/dev/shm") / shm
    holder = start(HOLD, path, how)
    wanted = identity(path)
    path.unlink()
    assert holder.holdings.shm == {wanted}


def test_files_elsewhere_and_private_memory_are_not_shared_memory(start: Start, tmp_path: Path) -> None:
    code = f"{SHM}\nhold(sys.argv[1])\nmmap.mmap(-1, 4096)\nos.memfd_create('/dev/shm/x')"
    assert start(code, tmp_path / "file").holdings.shm == frozenset()


@pytest.mark.parametrize("chunk", [1, 50, 4096])
def test_long_memory_maps_are_read_in_pieces(
    start: Start, shm: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [Path("/dev/shm") / f"{shm}-{number}" for number in range(40)]
    holder = start(f"{SHM}\nfor path in sys.argv[1:]:\n    hold(path, 'mapping')", *paths)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    assert holder.holdings.shm == set(map(identity, paths))
    for path in paths:
        path.unlink()


def test_sockets(start: Start) -> None:
    code = """
import socket
kept = [socket.socket(socket.AF_INET), socket.socket(socket.AF_UNIX)]
for one in kept:
    say(os.fstat(one.fileno()).st_ino)
"""
    holder = start(code)
    assert holder.holdings.sockets == set(holder.said)


def test_command_and_process(start: Start) -> None:
    holder = start("pass", "some", "words")
    assert holder.holdings.command.endswith(" some words")
    assert holder.holdings.process == holder.process


@root_only
def test_users(start: Start) -> None:
    assert start("pass").holdings.users == {os.getuid()}
    assert start(BECOME_NOBODY).holdings.users == {NOBODY}
    assert start(f"os.seteuid({NOBODY})").holdings.users == {0, NOBODY}


def test_process_that_has_ended_holds_nothing(start: Start, shm: str) -> None:
    path = Path("/dev/shm") / shm
    holder = start(HOLD, path)
    process = holder.process
    holder.end()
    assert read_holdings(process) == (process, "", frozenset(), frozenset(), frozenset())
    assert held_by_others([identity(path)]) == set()
    path.unlink()


def test_zombie_holds_nothing(start: Start) -> None:
    holder = start("import socket\nkept = socket.socket()")
    os.kill(holder.pid, 9)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    held = holder.holdings
    assert held.process.zombie
    assert (held.command, held.shm, held.sockets) == ("", frozenset(), frozenset())


def test_kernel_threads_do_no_harm() -> None:
    thread = Process(2, 0, "0", False, 0, 0)
    assert read_holdings(thread).shm == frozenset()


def test_what_only_this_process_holds_is_not_held_by_others(shm: str) -> None:
    path = Path("/dev/shm") / shm
    with path.open("w"):
        assert held_by_others([identity(path)]) == set()
    path.unlink()


def test_nothing_wanted_costs_no_look_at_any_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_open_objects", lambda pid: pytest.fail("it looked"))
    assert held_by_others([]) == set()


def test_processes_that_come_and_go_do_no_harm(start: Start) -> None:
    code = """
while True:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    if not said:
        say("forking")
        said = True
"""
    holder = start(f"said = False\nsay('up'){code}")
    for _ in range(20):
        assert held_by_others([(0, 0)]) == set()
    assert holder.process.pid == holder.pid


def test_descriptors_beyond_number(start: Start) -> None:
    code = """
import resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
kept = [socket.socket() for _ in range(2000)]
"""
    holder = start(code)
    begin = time.monotonic()
    assert len(holder.holdings.sockets) == 2000
    assert time.monotonic() - begin < 20


def test_own_process_can_be_read_too() -> None:
    own = read_process(os.getpid())
    assert own is not None
    with socket.socket() as one:
        assert str(os.fstat(one.fileno()).st_ino) in read_holdings(own).sockets
