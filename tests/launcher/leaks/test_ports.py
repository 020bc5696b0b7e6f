"""Listening ports of processes that should have ended, and those that outlive them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest

from pytest_infserver.launcher.leaks import ports as module
from pytest_infserver.launcher.leaks.ports import Ports
from pytest_infserver.leak_finding import Finding

from .holders import RECEIVE, SEND, Holder, channel, linux_only, send

pytestmark = [linux_only, pytest.mark.usefixtures("hard_limit")]

Start = Callable[..., Holder]
LISTEN = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
say(listener.getsockname()[1])
"""


def left(watch: Ports, *numbers: str) -> list[Finding]:
    """Return what is found of this test's ports."""
    return [finding for finding in watch.left() if finding.name.rpartition(":")[2] in numbers]


def test_port_of_a_process_that_should_have_ended(start: Start) -> None:
    watch = Ports()
    server = start(LISTEN)
    [finding] = watch.held_by([server.holdings])
    command, name = server.holdings.command, f"127.0.0.1:{server.said[0]}"
    assert finding == Finding("port", name, "", server.pid, command, finding.age, fails=True, removed=True)
    assert finding.age is not None
    assert 0 <= finding.age < 100


def test_port_in_ipv6(start: Start) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("needs IPv6")
    watch = Ports()
    server = start(LISTEN.replace('("127.0.0.1", 0)', '("::1", 0), family=socket.AF_INET6'))
    assert [finding.name for finding in watch.held_by([server.holdings])] == [f"[::1]:{server.said[0]}"]


def test_only_listeners_count(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        watch = Ports()
        client = start(f"""
import socket
connected = socket.create_connection({listener.getsockname()!r})
bound = socket.socket()
bound.bind(("127.0.0.1", 0))
datagrams = socket.socket(type=socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 0))
""")
        assert watch.held_by([client.holdings]) == []


def test_port_that_closes_with_the_server_is_none(start: Start) -> None:
    watch = Ports()
    server = start(LISTEN)
    watch.look([server.holdings], None)
    server.end()
    assert left(watch, server.said[0]) == []


def test_port_that_was_passed_on(start: Start) -> None:
    watch = Ports()
    with channel() as (ours, theirs):
        ends = ours.fileno(), theirs.fileno()
        server = start(f"{LISTEN}{SEND}\nsend({ends[0]}, listener.fileno())", pass_fds=ends)
        other = start(f"{RECEIVE}\nreceive({ends[1]})", "other", pass_fds=ends)
    watch.look([server.holdings], None)
    server.end()
    [finding] = left(watch, server.said[0])
    assert (finding.kind, finding.name, finding.pid) == ("port", f"127.0.0.1:{server.said[0]}", other.pid)
    assert finding.detail == "passed on to a process that is not the server's"
    assert finding.command.endswith("other")
    assert (finding.fails, finding.removed) == (True, False)
    assert other.holdings.sockets
    other.end()
    assert left(watch, server.said[0]) == []


def test_port_that_was_passed_on_to_nobody_we_can_see(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Ports()
    with channel() as (ours, theirs):
        ends = ours.fileno(), theirs.fileno()
        server = start(f"{LISTEN}{SEND}\nsend({ends[0]}, listener.fileno())", pass_fds=ends)
        start(f"{RECEIVE}\nreceive({ends[1]})", pass_fds=ends)
    watch.look([server.holdings], None)
    server.end()
    monkeypatch.setattr(module, "socket_inodes", lambda pid: set())
    [finding] = left(watch, server.said[0])
    assert (finding.detail, finding.pid) == ("holder unknown", None)


@pytest.mark.parametrize("before", [True, False])
def test_port_that_the_server_was_handed_is_not_the_servers(start: Start, before: bool) -> None:
    """By somebody who had it before, or by the test."""
    first = Ports()
    with channel() as (ours, theirs), socket.create_server(("127.0.0.1", 0)) as listener:
        watch = Ports() if before else first
        send(ours, listener.fileno())
        server = start(f"{RECEIVE}\nreceive({theirs.fileno()})", pass_fds=[theirs.fileno()])
        owner = module.read_process(os.getpid())
        assert owner is not None
        held = server.holdings
        own = str(os.fstat(listener.fileno()).st_ino)
        assert own in held.sockets
        watch.look([held], None if before else held._replace(process=owner, sockets=frozenset({own})))
        assert watch.held_by([held]) == []
        server.end()
        assert left(watch, str(listener.getsockname()[1])) == []


def test_port_that_another_process_has_taken_since(start: Start) -> None:
    watch = Ports()
    server = start(LISTEN)
    watch.look([server.holdings], None)
    server.end()
    with socket.create_server(("127.0.0.1", int(server.said[0]))):
        assert left(watch, server.said[0]) == []
