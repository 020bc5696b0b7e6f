"""Whether a server is about to end: what is seen, and what cannot be seen, in a test's own process."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_infserver.launcher.health import liveness
from pytest_infserver.launcher.health.liveness import notice_death
from pytest_infserver.launcher.startup import ports
from pytest_infserver.system.http.address import Address

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("hard_limit"),
]


class Server:
    """A server that runs and is healthy; notes for how long its end is waited for."""

    running = True
    attached = False
    is_asked_at_port = True
    pid = os.getpid()

    def __init__(self, port: int, *, remote: bool = False, own_listener: bool = True) -> None:
        self.port = port
        self.reach = Address(port=port)
        self.remote = remote
        self.settings = SimpleNamespace(own_listener=own_listener)
        self.waited: list[float] = []

    def wait_death(self, seconds: float) -> bool:
        self.waited.append(seconds)
        return False

    def check_health(self, _: float) -> bool:
        return True


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        yield one


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ports to which connections are made."""
    made: list[int] = []
    connect = socket.create_connection

    def note(address: tuple[str, int], *limit: float, **options: float) -> socket.socket:
        made.append(address[1])
        return connect(address, *limit, **options)

    monkeypatch.setattr(socket, "create_connection", note)
    return made


def restrict(monkeypatch: pytest.MonkeyPatch, error: OSError | None) -> None:
    """Let the system tell of no listener."""

    def fail(*_: object) -> Iterator[None]:
        if error is not None:
            raise error
        yield from ()

    monkeypatch.setattr(ports, "listeners", fail)
    monkeypatch.setattr(liveness, "is_listening", lambda port: any(fail()))


@pytest.mark.parametrize("error", [PermissionError(), FileNotFoundError(), None], ids=repr)
def test_a_server_whose_listener_cannot_be_seen_is_asked_by_a_connection(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, connections: list[int], error: OSError | None
) -> None:
    restrict(monkeypatch, error)
    port = listener.getsockname()[1]
    server = Server(port)
    for thorough in (False, True):
        notice_death(server, thorough=thorough)  # type: ignore[arg-type]
    assert server.waited == []
    assert connections == [port, port]
    listener.close()
    notice_death(server)  # type: ignore[arg-type]
    assert server.waited == [liveness._LIMIT]


def test_a_server_whose_listener_is_seen_gets_no_connection(listener: socket.socket, connections: list[int]) -> None:
    server = Server(listener.getsockname()[1])
    notice_death(server)  # type: ignore[arg-type]
    assert server.waited == []
    listener.close()
    notice_death(server)  # type: ignore[arg-type]
    assert server.waited == [liveness._LIMIT]
    # Now that nobody is seen to listen.
    assert connections == [server.port]


@pytest.mark.parametrize("how", [{"remote": True}, {"own_listener": False}], ids=["remote", "not its own"])
def test_a_server_that_listens_elsewhere_is_asked_by_a_connection(
    how: dict[str, bool], listener: socket.socket, monkeypatch: pytest.MonkeyPatch, connections: list[int]
) -> None:
    monkeypatch.setattr(liveness, "is_listening", lambda port: pytest.fail("these are other listeners"))
    server = Server(listener.getsockname()[1], **how)
    notice_death(server)  # type: ignore[arg-type]
    assert server.waited == []
    assert connections == [server.port]


def test_a_process_of_which_nothing_tells_is_not_about_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert liveness._is_ending(2**22 + 1)
    monkeypatch.setattr(liveness, "Path", lambda path: Path(path.replace("/proc", "/nonexistent")))
    assert not liveness._is_ending(os.getpid())


def test_whose_listener_it_is_that_cannot_be_seen_is_unknown(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    def fail(*_: object) -> None:
        raise FileNotFoundError(2, "restricted")

    port = listener.getsockname()[1]
    assert ports.is_listener(port, os.getpid(), os.getppid())
    restrict(monkeypatch, PermissionError())
    monkeypatch.setattr(psutil.Process, "net_connections", fail)
    assert ports.is_listener(port, os.getpid(), os.getppid()) is None
