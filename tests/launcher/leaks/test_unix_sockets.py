"""Files of unix sockets: which are the server's, and that all others stay."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_infserver.launcher.leaks.unix_sockets import UnixSockets
from pytest_infserver.leak_finding import Finding
from pytest_infserver.system.proc_net import unix_sockets

from .holders import RECEIVE, SEND, Holder, channel, linux_only, root_only, send

pytestmark = [linux_only, pytest.mark.usefixtures("hard_limit")]

Start = Callable[..., Holder]
BIND = """
import socket
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return a folder with a short path."""
    link = Path(f"/tmp/infs-{os.getpid()}-{tmp_path.name[-8:]}")
    link.mkdir()
    yield link
    left = sorted(link.rglob("*"), reverse=True)
    for path in left:
        path.rmdir() if path.is_dir() else path.unlink()
    link.rmdir()
    assert left == []


def bind(path: Path) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(os.fspath(path))
    return bound


def left(watch: UnixSockets, folder: Path) -> list[Finding]:
    """Return what is found of this test's sockets."""
    return [finding for finding in watch.left() if finding.name.startswith(f"{folder}/")]


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM", "SOCK_SEQPACKET"])
def test_socket_of_the_server_is_found_and_its_file_removed(start: Start, folder: Path, kind: str) -> None:
    path = folder / "s"
    watch = UnixSockets()
    code = f"import socket\nbound = socket.socket(socket.AF_UNIX, socket.{kind})\nbound.bind(sys.argv[1])"
    server = start(code, path)
    watch.look([server.holdings], None)
    command = server.holdings.command
    server.end()
    [finding] = left(watch, folder)
    assert finding == Finding("socket", str(path), "", server.pid, command, finding.age, fails=True, removed=True)
    assert finding.age is not None
    assert 0 <= finding.age < 100
    assert not path.exists()


def test_file_that_the_server_removes_is_none(start: Start, folder: Path) -> None:
    watch = UnixSockets()
    server = start(f"{BIND}\nsay('up')\nwait()\nos.unlink(sys.argv[1])\nsay('removed')", folder / "s")
    watch.look([server.holdings], None)
    server.go_on(until="removed")
    watch.look([server.holdings], None)
    server.end()
    assert left(watch, folder) == []


def test_path_that_the_server_binds_again(start: Start, shm: str) -> None:
    # In /dev/shm, where no inode comes twice.
    path = Path("/dev/shm") / shm
    watch = UnixSockets()
    again = "listener.close()\nos.unlink(sys.argv[1])"
    server = start(f"{BIND}\nsay('up')\nwait()\n{again}\n{BIND}\nsay('again')", path)
    watch.look([server.holdings], None)
    server.go_on(until="again")
    watch.look([server.holdings], None)
    server.end()
    assert [finding.name for finding in watch.left() if shm in finding.name] == [str(path)]


def test_path_that_an_old_socket_has_lost_to_somebody_else(start: Start, shm: str) -> None:
    path = Path("/dev/shm") / shm
    watch = UnixSockets()
    server = start(BIND, path)
    watch.look([server.holdings], None)
    path.unlink()
    bind(path).close()
    watch.look([server.holdings], None)
    server.end()
    assert [finding.name for finding in watch.left() if shm in finding.name] == []
    path.unlink()


@pytest.mark.parametrize("moved", [False, True])
def test_relative_path(start: Start, folder: Path, moved: bool) -> None:
    watch = UnixSockets()
    # A name that no other test has at this moment: relative ones cannot be told apart.
    name = f"s{os.getpid()}"
    server = start(BIND + ("os.chdir('/')" if moved else ""), name, cwd=str(folder))
    watch.look([server.holdings], None)
    server.end()
    # Where it was bound is not known any more once the process has moved.
    assert [finding.name for finding in left(watch, folder)] == ([] if moved else [f"{folder}/{name}"])
    if moved:
        (folder / name).unlink()


def test_relative_path_of_a_process_whose_folder_is_gone(start: Start, folder: Path) -> None:
    (folder / "sub").mkdir()
    watch = UnixSockets()
    server = start(f"{BIND}\nos.unlink('s')\nos.rmdir(os.getcwd())", "s", cwd=str(folder / "sub"))
    watch.look([server.holdings], None)
    server.end()
    assert left(watch, folder) == []


def test_abstract_and_unnamed_sockets_have_no_file(start: Start, folder: Path) -> None:
    watch = UnixSockets()
    code = """
import socket
kept = [socket.socket(socket.AF_UNIX) for _ in range(3)]
kept[0].bind(b"\\0" + sys.argv[1].encode())
kept[1].bind("")  # the kernel chooses an abstract name
"""
    server = start(code, f"{folder}/abstract")
    assert not any("abstract" in path for path in unix_sockets().values())
    watch.look([server.holdings], None)
    server.end()
    assert left(watch, folder) == []
    assert watch._bound == {}


@pytest.mark.parametrize("name", ["with space", os.fsdecode(b"\xff\xfe"), "x" * 60])
def test_odd_names(start: Start, folder: Path, name: str) -> None:
    watch = UnixSockets()
    server = start(BIND, folder / name)
    watch.look([server.holdings], None)
    server.end()
    assert [finding.name for finding in left(watch, folder)] == [f"{folder}/{name}"]


def test_longest_path(start: Start, folder: Path) -> None:
    path = f"{folder}/{'x' * (107 - len(str(folder)) - 1)}"
    watch = UnixSockets()
    server = start(BIND, path)
    watch.look([server.holdings], None)
    server.end()
    assert [finding.name for finding in left(watch, folder)] == [path]


def test_socket_that_somebody_else_has_bound_since_stays(start: Start, folder: Path) -> None:
    path = folder / "s"
    watch = UnixSockets()
    server = start(BIND, path)
    watch.look([server.holdings], None)
    path.unlink()
    with bind(path):
        server.end()
        assert left(watch, folder) == []
    assert left(watch, folder) == []
    path.unlink()


def test_file_that_is_no_socket_any_more_stays(start: Start, folder: Path) -> None:
    path = folder / "s"
    watch = UnixSockets()
    server = start(BIND, path)
    watch.look([server.holdings], None)
    path.unlink()
    path.write_text("precious")
    server.end()
    assert left(watch, folder) == []
    assert path.read_text() == "precious"
    path.unlink()


@pytest.mark.parametrize("relative", [False, True])
def test_socket_that_was_passed_on_stays_as_long_as_it_is_used(start: Start, folder: Path, relative: bool) -> None:
    # A name that no other test has at this moment: relative ones cannot be told apart.
    path = folder / folder.name
    watch = UnixSockets()
    with channel() as (ours, theirs):
        ends = ours.fileno(), theirs.fileno()
        name = path.name if relative else path
        server = start(f"{BIND}{SEND}\nsend({ends[0]}, listener.fileno())", name, pass_fds=ends, cwd=str(folder))
        other = start(f"{RECEIVE}\nreceive({ends[1]})", pass_fds=ends)
    watch.look([server.holdings], None)
    server.end()
    assert left(watch, folder) == []
    assert path.is_socket()
    other.end()
    assert [finding.removed for finding in left(watch, folder)] == [True]


@pytest.mark.parametrize("before", [True, False])
def test_socket_that_the_server_was_handed_is_not_the_servers(start: Start, folder: Path, before: bool) -> None:
    """By somebody who had it before, or by the test."""
    path = folder / "s"
    first = UnixSockets()
    with channel() as (ours, theirs), bind(path) as bound:
        watch = UnixSockets() if before else first
        send(ours, bound.fileno())
        server = start(f"{RECEIVE}\nreceive({theirs.fileno()})", pass_fds=[theirs.fileno()])
        held = server.holdings
        own = frozenset({str(os.fstat(bound.fileno()).st_ino)})
        assert own <= held.sockets
        watch.look([held], None if before else held._replace(sockets=own))
    server.end()
    assert left(watch, folder) == []
    path.unlink()


@root_only
def test_same_path_in_another_mount_namespace_is_another_file(start: Start, folder: Path) -> None:
    path = folder / "sub" / "s"
    path.parent.mkdir()
    bind(path).close()
    watch = UnixSockets()
    code = """
import ctypes
libc = ctypes.CDLL(None)
NEW_NAMESPACE, PRIVATE = 0x20000, 0x44000
def mount(source, target, kind, flags):
    return libc.mount(source, target, kind, ctypes.c_ulong(flags), None)
folder = os.path.dirname(sys.argv[1]).encode()
if libc.unshare(NEW_NAMESPACE) or mount(b"none", b"/", None, PRIVATE) or mount(b"x", folder, b"tmpfs", 0):
    say("refused")
    os._exit(0)
"""
    try:
        server = start(f"{code}{BIND}", path)
    except AssertionError:
        path.unlink()
        path.parent.rmdir()
        pytest.skip("needs mount namespaces")
    watch.look([server.holdings], None)
    server.end()
    assert left(watch, folder) == []
    assert path.is_socket()
    path.unlink()
    path.parent.rmdir()


def test_file_that_cannot_be_removed(start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = UnixSockets()
    server = start(BIND, folder / "s")
    watch.look([server.holdings], None)
    server.end()

    def refuse(path: str, **_: object) -> None:
        raise PermissionError(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        assert [finding.removed for finding in left(watch, folder)] == [False]
    (folder / "s").unlink()


@root_only
def test_folder_that_the_engine_has_swapped_for_a_link(start: Start, folder: Path) -> None:
    """The same socket, by a second name in a foreign folder: root does not go there by a link of the engine's."""
    engine, foreign = folder / "engine", folder / "foreign"
    for one in (engine, foreign):
        one.mkdir()
    watch = UnixSockets()
    server = start(BIND, engine / "s")
    watch.look([server.holdings], None)
    server.end()
    (engine / "s").rename(foreign / "s")
    engine.rmdir()
    engine.symlink_to("foreign")
    os.chown(engine, 65534, 65534, follow_symlinks=False)
    assert [finding.removed for finding in left(watch, folder)] == [False]
    assert (foreign / "s").exists()
    (foreign / "s").unlink()
    engine.unlink()
    foreign.rmdir()
