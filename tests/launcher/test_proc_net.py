"""The machine's sockets, as /proc/net shows them."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver.system import proc_net
from pytest_infserver.system.proc_net import Listener, is_listening, listeners, socket_inodes, unix_sockets

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/net")


def inode_of(one: socket.socket) -> str:
    return str(os.fstat(one.fileno()).st_ino)


def found(one: socket.socket) -> list[Listener]:
    return [listener for listener in listeners() if listener.inode == inode_of(one)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder with a short path."""
    path = Path(f"/tmp/infs-{os.getpid()}-{time.monotonic_ns()}")
    path.mkdir()
    yield path
    for one in path.iterdir():
        one.unlink()
    path.rmdir()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "0.0.0.0"])
def test_listener(host: str) -> None:
    with socket.create_server((host, 0)) as one:
        port = one.getsockname()[1]
        assert found(one) == [Listener(inode_of(one), host, port)]
        assert str(found(one)[0]) == f"{host}:{port}"


@pytest.mark.parametrize("host", ["::1", "::"])
def test_listener_in_ipv6(host: str) -> None:
    try:
        one = socket.create_server((host, 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("needs IPv6")
    with one:
        port = one.getsockname()[1]
        assert found(one) == [Listener(inode_of(one), host, port)]
        assert str(found(one)[0]) == f"[{host}]:{port}"


def test_addresses_are_printed_as_the_kernel_does_it() -> None:
    # 32-bit words of a little-endian machine.
    assert proc_net._listener(b"1", b"0100007F:1F90") == Listener("1", "127.0.0.1", 8080)
    assert proc_net._listener(b"2", b"00000000000000000000000001000000:0050") == Listener("2", "::1", 80)
    mapped = b"0000000000000000FFFF00000100007F:0050"
    assert proc_net._listener(b"3", mapped) == Listener("3", "::ffff:127.0.0.1", 80)


def test_only_listeners_are_found_among_many_connections() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=200) as one, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        clients = [socket.create_connection(one.getsockname()) for _ in range(100)]
        accepted = [one.accept()[0] for _ in clients]
        others = {inode_of(other) for other in (*clients, *accepted, bound)}
        assert found(one) == [Listener(inode_of(one), *one.getsockname())]
        assert not others & {listener.inode for listener in listeners()}
        for other in (*clients, *accepted):
            other.close()


def test_whether_somebody_listens_on_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        assert is_listening(port)
        assert not is_listening(bound.getsockname()[1])
    assert not is_listening(port)


def test_many_listeners_are_all_found() -> None:
    many = [socket.create_server(("127.0.0.1", 0)) for _ in range(100)]
    wanted = {Listener(inode_of(one), *one.getsockname()) for one in many}
    assert wanted <= set(listeners())
    for one in many:
        one.close()
    assert not wanted & set(listeners())


def test_listeners_as_another_process_sees_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        assert inode_of(one) in {listener.inode for listener in listeners(os.getppid())}


class Refusing:
    """Opens files, but for those of which the test says otherwise."""

    def __init__(self, refused: dict[str, OSError]) -> None:
        self.refused = refused

    def __call__(self, path: str, *arguments: Any, **options: Any) -> Any:
        if path in self.refused:
            raise self.refused[path]
        return open(path, *arguments, **options)


def test_listeners_that_cannot_be_seen_are_not_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        list(listeners(2**22 + 1))
    for error in (FileNotFoundError(2, "restricted"), PermissionError(13, "restricted")):
        monkeypatch.setattr(proc_net, "open", Refusing({"/proc/self/net/tcp": error}), raising=False)
        with pytest.raises(OSError, match="restricted"):
            list(listeners())
    monkeypatch.setattr(proc_net, "open", Refusing({"/proc/net/unix": PermissionError(13, "no")}), raising=False)
    with pytest.raises(PermissionError):
        unix_sockets()


def test_listeners_in_a_system_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = {"/proc/self/net/tcp6": FileNotFoundError(2, "no IPv6")}
    monkeypatch.setattr(proc_net, "open", Refusing(refused), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as one:
        assert found(one) == [Listener(inode_of(one), *one.getsockname())]


def test_what_is_seen_before_the_rest_cannot_be_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    refused: dict[str, OSError] = {"/proc/self/net/tcp6": PermissionError(13, "restricted")}
    monkeypatch.setattr(proc_net, "open", Refusing(refused), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as one:
        assert any(listener.inode == inode_of(one) for listener in listeners())
    with pytest.raises(PermissionError):
        list(listeners())


def test_unix_sockets_with_their_paths(folder: Path) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as client:
        one.bind(str(path))
        one.listen()
        client.connect(str(path))
        accepted = one.accept()[0]
        names = unix_sockets()
        assert names[inode_of(one)] == names[inode_of(accepted)] == str(path)
        assert inode_of(client) not in names
        accepted.close()
        path.unlink()
        # Its name stays as it was bound, whatever has become of the file.
        assert unix_sockets()[inode_of(one)] == str(path)
    assert str(path) not in unix_sockets().values()


@pytest.mark.parametrize("name", ["with space", "@at", os.fsdecode(b"\xff\xfe"), "ü", "x" * 60])
def test_odd_paths(folder: Path, name: str) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / name))
        assert unix_sockets()[inode_of(one)] == str(folder / name)


def test_longest_path(folder: Path) -> None:
    path = f"{folder}/{'x' * (107 - len(str(folder)) - 1)}"
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path)
        assert unix_sockets()[inode_of(one)] == path


def test_path_with_a_newline_does_not_break_the_others(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as odd, socket.socket(socket.AF_UNIX) as one:
        odd.bind(str(folder / "new\nline"))
        one.bind(str(folder / "s"))
        assert unix_sockets()[inode_of(one)] == str(folder / "s")


def test_abstract_and_unnamed_sockets_are_left_out() -> None:
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as unnamed:
        abstract.bind(f"\0infs-{time.monotonic_ns()}")
        assert not {inode_of(abstract), inode_of(unnamed)} & unix_sockets().keys()


def test_inodes_of_a_process() -> None:
    with socket.socket() as one, socket.socket(socket.AF_UNIX) as other:
        own = socket_inodes(os.getpid())
        assert {inode_of(one), inode_of(other)} <= own
        gone = inode_of(one)
    assert gone not in socket_inodes(os.getpid())
    assert socket_inodes(2**22 + 1) == set()
