"""Objects in /dev/shm: which are the server's, and that all others stay."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_infserver.launcher.leaks import shm as module
from pytest_infserver.launcher.leaks.shm import SharedMemory
from pytest_infserver.leak_finding import Finding
from pytest_infserver.system.disk.removal import Seen

from .holders import BECOME_NOBODY, NOBODY, SHM, Holder, linux_only, root_only

pytestmark = [linux_only, pytest.mark.usefixtures("hard_limit")]

Start = Callable[..., Holder]
FOLDER = Path("/dev/shm")
HOLD = f"{SHM}\nhold(*sys.argv[1:])"
SEMAPHORE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.sem_open.restype = ctypes.c_void_p
assert libc.sem_open(b"/" + sys.argv[1].encode(), os.O_CREAT, 0o600, 1)
"""


def left(watch: SharedMemory, token: str) -> list[Finding]:
    """Return what is found of this test's objects: others come and go all the time."""
    return [finding for finding in watch.left() if token in finding.name]


@pytest.mark.parametrize("how", ["fd", "mapping", "both"])
def test_object_of_the_server_is_found_and_removed(start: Start, shm: str, how: str) -> None:
    path = FOLDER / shm
    watch = SharedMemory()
    server = start(HOLD, path, how)
    watch.look([server.holdings], None)
    command = server.holdings.command
    server.end()
    [finding] = left(watch, shm)
    assert finding == Finding("shm", str(path), "4 KiB", server.pid, command, finding.age, fails=True, removed=True)
    assert finding.age is not None
    assert 0 <= finding.age < 100
    assert "python" in command
    assert not path.exists()


def test_object_that_the_server_removes_is_none(start: Start, shm: str) -> None:
    watch = SharedMemory()
    server = start(HOLD, FOLDER / shm)
    watch.look([server.holdings], None)
    server.end()
    (FOLDER / shm).unlink()
    assert left(watch, shm) == []


def test_each_object_of_several_processes_is_named_with_its_holder(start: Start, shm: str) -> None:
    watch = SharedMemory()
    servers = [start(HOLD, FOLDER / f"{shm}-{number}") for number in range(3)]
    watch.look([server.holdings for server in servers], None)
    for server in servers:
        server.end()
    found = {finding.pid: finding.name for finding in left(watch, shm)}
    assert found == {server.pid: f"/dev/shm/{shm}-{number}" for number, server in enumerate(servers)}


def test_object_that_was_there_before_stays(start: Start, shm: str) -> None:
    path = FOLDER / shm
    path.write_bytes(b"x" * 4096)
    watch = SharedMemory()
    server = start(HOLD, path)
    watch.look([server.holdings], None)
    server.end()
    assert left(watch, shm) == []
    path.unlink()


@pytest.mark.parametrize("owner_first", [True, False])
def test_object_of_the_test_stays(start: Start, shm: str, owner_first: bool) -> None:
    path = FOLDER / shm
    watch = SharedMemory()
    owner, server = start(HOLD, path), start(HOLD, path)
    if owner_first:
        watch.look([], owner.holdings)
        owner.end()
        watch.look([server.holdings], None)
    else:
        watch.look([server.holdings], None)
        watch.look([], owner.holdings)
    server.end()
    owner.end()
    assert left(watch, shm) == []
    path.unlink()


@pytest.mark.parametrize("how", ["fd", "mapping"])
def test_object_that_somebody_else_holds_stays(start: Start, shm: str, how: str) -> None:
    path = FOLDER / shm
    watch = SharedMemory()
    server, other = start(HOLD, path), start(HOLD, path, how)
    watch.look([server.holdings], None)
    server.end()
    assert left(watch, shm) == []
    assert path.exists()
    other.end()
    assert [finding.removed for finding in left(watch, shm)] == [True]


@pytest.mark.parametrize("write", [True, False])
def test_holder_that_cannot_be_seen_counts_too(
    start: Start, shm: str, write: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in another container on the same /dev/shm: the kernel knows of it, /proc does not show it."""
    path = FOLDER / shm
    watch = SharedMemory()
    server = start(HOLD, path)
    other = start(f"{SHM}\nhold(sys.argv[1], 'mapping', {os.O_RDWR if write else os.O_RDONLY})", path)
    watch.look([server.holdings], None)
    server.end()
    if module._is_held(str(path)) is None:
        pytest.skip("this kernel does not tell")
    monkeypatch.setattr(module, "held_by_others", lambda wanted: set())
    assert left(watch, shm) == []
    other.end()
    assert [finding.removed for finding in left(watch, shm)] == [True]


def test_kernel_that_does_not_tell(start: Start, shm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_held", lambda path: None)
    held, free = FOLDER / f"{shm}-held", FOLDER / f"{shm}-free"
    watch = SharedMemory()
    servers, other = [start(HOLD, held), start(HOLD, free)], start(HOLD, held, "mapping")
    watch.look([server.holdings for server in servers], None)
    for server in servers:
        server.end()
    assert [finding.name for finding in left(watch, shm)] == [str(free)]
    other.end()
    held.unlink()


def test_object_made_anew_under_the_same_name_stays(start: Start, shm: str) -> None:
    path = FOLDER / shm
    watch = SharedMemory()
    server = start(HOLD, path)
    watch.look([server.holdings], None)
    path.unlink()
    path.write_text("another run's")
    server.end()
    assert left(watch, shm) == []
    assert path.read_text() == "another run's"
    path.unlink()


def test_object_that_nobody_was_seen_with_is_a_warning_only_if_it_is_named_after_the_server(
    start: Start, shm: str
) -> None:
    watch = SharedMemory()
    server = start("pass")
    watch.look([server.holdings], None)
    server.end()
    named, whose, part = (FOLDER / f"{shm}-{word}" for word in (f"{server.pid}.shm", "other", f"a{server.pid}b"))
    for path in (named, whose, part):
        path.write_text("whose?")
    [finding] = left(watch, shm)
    detail = "6 bytes, new, named after a process of the server but never seen held, left alone"
    assert finding == Finding("shm", str(named), detail, age=finding.age, fails=False)
    for path in (named, whose, part):
        assert path.read_text() == "whose?"
        path.unlink()


def test_object_that_only_another_process_was_seen_with_is_not_even_a_warning(start: Start, shm: str) -> None:
    watch = SharedMemory()
    other = start(HOLD, FOLDER / shm)
    assert left(watch, shm) == []
    other.end()
    (FOLDER / shm).unlink()


@root_only
@pytest.mark.parametrize("held_by_the_server", [True, False])
def test_object_of_another_user_stays(start: Start, shm: str, held_by_the_server: bool) -> None:
    path = FOLDER / shm
    watch = SharedMemory()
    other = start(f"{SHM}{BECOME_NOBODY}hold(sys.argv[1])", path)
    assert path.stat().st_uid == NOBODY
    if held_by_the_server:
        server = start(f"{SHM}\nhold(sys.argv[1], 'both', os.O_RDWR)", path)
        watch.look([server.holdings], None)
        server.end()
    other.end()
    assert left(watch, shm) == []
    path.unlink()


@root_only
def test_object_of_a_server_that_has_become_another_user_is_the_servers(start: Start, shm: str) -> None:
    watch = SharedMemory()
    server = start(f"{SHM}{BECOME_NOBODY}hold(sys.argv[1])", FOLDER / shm)
    watch.look([server.holdings], None)
    server.end()
    assert [(finding.fails, finding.removed) for finding in left(watch, shm)] == [(True, True)]


def test_file_in_a_folder_is_no_object(start: Start, shm: str) -> None:
    """Whoever wants fast files keeps caches and weights there; the names of objects have no slash."""
    folder = FOLDER / shm
    watch = SharedMemory()
    server = start(f"{SHM}\nos.mkdir(os.path.dirname(sys.argv[1]))\nhold(sys.argv[1])", folder / f"{shm}-weights")
    watch.prepare()
    watch.look([server.holdings], None)
    server.end()
    assert left(watch, shm) == []
    (folder / f"{shm}-weights").unlink()
    folder.rmdir()


@pytest.mark.parametrize("how", ["both", "fd"])
def test_object_that_somebody_else_has_made_stays_though_the_server_holds_it_later(
    start: Start, shm: str, how: str
) -> None:
    path = FOLDER / shm
    watch = SharedMemory()
    path.write_bytes(b"x" * 4096)
    early = start("pass")
    watch.prepare()
    watch.look([early.holdings], None)
    server = start(HOLD, path, how)
    watch.prepare()
    watch.look([early.holdings, server.holdings], None)
    server.end()
    early.end()
    assert left(watch, shm) == []
    assert path.read_bytes() == b"x" * 4096
    path.unlink()


def test_object_that_is_made_while_processes_are_looked_at_is_nobody_elses(start: Start, shm: str) -> None:
    watch = SharedMemory()
    watch.prepare()
    server = start(HOLD, FOLDER / shm)
    watch.look([], None)
    watch.prepare()
    watch.look([server.holdings], None)
    server.end()
    assert [finding.removed for finding in left(watch, shm)] == [True]


def test_semaphore_is_found_though_it_is_mapped_under_another_name(start: Start, shm: str) -> None:
    path = FOLDER / f"sem.{shm}"
    watch = SharedMemory()
    server = start(SEMAPHORE, shm)
    assert shm not in Path(f"/proc/{server.pid}/maps").read_text()
    watch.look([server.holdings], None)
    server.end()
    [finding] = left(watch, shm)
    assert (finding.kind, finding.name, finding.pid) == ("semaphore", str(path), server.pid)
    assert finding.removed
    assert not path.exists()


def test_semaphore_of_somebody_else_stays(start: Start, shm: str) -> None:
    before, shared = f"{shm}-before", f"{shm}-shared"
    others = [start(SEMAPHORE, before)]
    watch = SharedMemory()
    servers = [start(SEMAPHORE, before), start(SEMAPHORE, shared)]
    others.append(start(SEMAPHORE, shared))
    watch.look([server.holdings for server in servers], None)
    for server in servers:
        server.end()
    assert left(watch, shm) == []
    for other, name in zip(others, (before, shared), strict=True):
        other.end()
        (FOLDER / f"sem.{name}").unlink()


def test_links_and_pipes_are_left_alone(start: Start, shm: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    watch = SharedMemory()
    server = start("pass")
    watch.look([server.holdings], None)
    server.end()
    # Files of these names would be a warning.
    link, pipe = FOLDER / f"{shm}-{server.pid}-link", FOLDER / f"{shm}-{server.pid}-pipe"
    link.symlink_to(target)
    os.mkfifo(pipe)
    assert left(watch, shm) == []
    assert target.read_text() == "precious"
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    link.unlink()
    pipe.unlink()


def test_object_that_turns_into_a_link_is_not_followed(start: Start, shm: str, tmp_path: Path) -> None:
    path, target = FOLDER / shm, tmp_path / "target"
    target.write_text("precious")
    watch = SharedMemory()
    server = start(HOLD, path)
    watch.look([server.holdings], None)
    server.end()
    [(identity, name, _)] = [entry for entry in module._objects() if shm in entry[1]]
    path.unlink()
    path.symlink_to(target)
    assert module._is_held(name) is None
    assert Seen(name, *identity).remove()
    assert path.is_symlink()
    assert target.read_text() == "precious"
    path.unlink()


@pytest.mark.parametrize("name", ["a b", "new\nline", "ü", os.fsdecode(b"\xff\xfe")])
def test_odd_names(start: Start, shm: str, name: str) -> None:
    path = FOLDER / f"{shm}{name}"
    watch = SharedMemory()
    server = start(HOLD, path, "mapping")
    watch.look([server.holdings], None)
    server.end()
    assert [(finding.name, finding.removed) for finding in left(watch, shm)] == [(str(path), True)]


def test_more_objects_than_can_be_looked_at_are_an_error(shm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (FOLDER / shm).write_text("")
    monkeypatch.setattr(module, "_MAX_OBJECTS", 0)
    with pytest.raises(RuntimeError, match="more than 0 files in /dev/shm"):
        SharedMemory()
    (FOLDER / shm).unlink()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (4096, "4 KiB"),
        (5 << 20, "5 MiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 42, "4096.0 GiB"),
    ],
)
def test_sizes_are_shown_for_people(size: int, text: str) -> None:
    assert module._shown_size(size) == text
