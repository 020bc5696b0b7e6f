"""What pytest makes of the news of a server's life, in whatever order they come: without Ray."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_infserver import CommandServer
from pytest_infserver.cluster.connection.errors import NoAnswer
from pytest_infserver.cluster.connection.nodes import Node
from pytest_infserver.cluster.messages import Have, News
from pytest_infserver.cluster.placement.demand import Demand
from pytest_infserver.cluster.runtime.life import Life
from pytest_infserver.cluster.runtime.log_copy import LogCopy
from pytest_infserver.cluster.runtime.several_nodes.rank import Rank
from pytest_infserver.launcher.runtime.view import View
from pytest_infserver.launcher.share import Share
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.launcher.supervision.exit import Exit

pytestmark = pytest.mark.usefixtures("hard_limit")
WORDS = b"RuntimeError: out of luck\n"


class SilentCluster:
    """Answers nothing, and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def ask(self, verb: str, limit: float, **arguments: Any) -> Any:
        raise NoAnswer("no answer")

    def tell(self, verb: str, **arguments: Any) -> None:
        self.told.append(arguments["method"])


@pytest.fixture
def cluster() -> SilentCluster:
    return SilentCluster()


@pytest.fixture
def server(tmp_path: Path) -> CommandServer:
    return CommandServer(launch_command=["x", "{port}"], output_dir=tmp_path, name="a")


@pytest.fixture
def life(server: CommandServer, cluster: SilentCluster) -> Iterator[Any]:
    node = Node("1", "one", "127.0.0.5", True, {}, {})
    placement = SimpleNamespace(nodes=[node], demand=Demand(0, 1.0), ticket="t", lost=False)
    made = Life(cluster, server, placement, "run:1")  # type: ignore[arg-type]
    output, made._folder_lock = server.runtime.log.open()
    made._log = LogCopy(output, 0, made._warn_of_log)
    server.runtime.change(state=ServerState.STARTING)
    yield made
    # What stands for others here cannot be waited for.
    made._others = None
    made._close()


def news(state: ServerState, have: Have | None = None, **more: Any) -> News:
    died = state is ServerState.DIED
    view = View(
        port=8000,
        pid=None if died else 4711,
        supervisor_pid=None,
        running=state is ServerState.READY,
        launches=1,
        log_path=Path("/there/server.log"),
        launch_log_start=0,
        start_seconds=1.0,
        state=state,
        seconds=0.0,
        dead_seconds=0.0 if died else None,
    )
    have = have or Have()
    values: dict[str, Any] = {
        "now": time.time(),
        "view": view,
        "phase": "",
        "have": have,
        "log": WORDS[have.log :],
        "log_size": len(WORDS),
        "events": [],
        "said": [],
        "samples": [],
        "memory": None,
        "started": True,
        "failure": None,
        "ended": (Exit(7, 0) if died else None, None),
        "command": None,
        "device_keys": (),
    }
    return News(**{**values, **more})


def test_a_death_before_anybody_has_heard_that_it_was_ready_ends_the_wait(life: Any, server: CommandServer) -> None:
    life._hear(news(ServerState.STARTING, started=False))
    assert not life._is_decided()
    life._hear(news(ServerState.DIED, life._told.have))
    life.await_ready()
    assert server.state is ServerState.DIED
    reason = server.why_died()
    assert reason is not None
    assert "exited with code 7" in reason
    assert server.log_path.read_bytes() == WORDS


def test_news_that_come_after_the_end_are_nobodys(life: Any, server: CommandServer) -> None:
    life._hear(news(ServerState.STARTING, started=False))
    life.abandon()
    server.runtime.change(state=ServerState.FAILED)
    life._hear(news(ServerState.READY, life._told.have, memory=(1, None), device_keys=("GPU-1",)))
    assert server.state is ServerState.FAILED
    assert server.runtime.memory is None
    assert server.device_keys == ()


def _refuse(*_: object) -> None:
    raise NoAnswer("no answer")


def test_what_only_the_node_knows_as_a_secret_is_hidden_before_it_is_ready_and_in_its_next_life(
    life: Any, server: CommandServer, cluster: SilentCluster
) -> None:
    starting = news(ServerState.STARTING, started=False)
    secret = frozenset({"hunter2-hunter2"})
    life._hear(dataclasses.replace(starting, view=dataclasses.replace(starting.view, secrets=secret)))
    assert secret <= server.secrets
    node = Node("2", "two", "127.0.0.6", True, {}, {})
    placement: Any = SimpleNamespace(nodes=[node], demand=Demand(0, 1.0), ticket="t", lost=False, create=_refuse)
    following = Life(cluster, server, placement, "run:2")  # type: ignore[arg-type]
    with pytest.raises(NoAnswer):
        following.begin()
    assert server.node == str(node)
    assert secret <= server.secrets
    following._close()


@pytest.mark.parametrize("stopping", [True, False])
def test_a_part_that_ends_before_it_is_told_to_stop_ends_nothing_else(
    life: Any, server: CommandServer, cluster: SilentCluster, stopping: bool
) -> None:
    life._others = SimpleNamespace(kill=lambda: None, why_ended=lambda: "its part on two has ended")
    life._hear(news(ServerState.READY))
    life._is_stopping = stopping
    life._other_ended()
    assert cluster.told == ([] if stopping else ["kill"])
    assert ("died" in [event.kind for event in server.journal.events]) != stopping


class Disk:
    """Takes so many bytes, and then no more until somebody makes room."""

    def __init__(self, output: int, room: int) -> None:
        self.room = room
        self._output = output
        self._write = os.write

    def __call__(self, handle: int, data: bytes) -> int:
        if handle != self._output:
            return self._write(handle, data)
        if data and not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = self._write(handle, data[: self.room])
        self.room -= done
        return done


def chunk(text: bytes, before: bytes, state: ServerState = ServerState.READY, **more: Any) -> News:
    """Return news of what has been written after ``before``."""
    return news(state, Have(log=len(before)), log=text, log_size=len(before + text), **more)


def test_after_a_full_disk_places_in_the_log_are_right_again(
    life: Any, server: CommandServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    server.on_warning = warnings.append
    server.runtime.change(launches=1)
    disk = Disk(life._log._output, len(b"first test\nsec"))
    monkeypatch.setattr(os, "write", disk)
    texts = [b"first test\n", b"second test\n", b"third test\n", b"fourth test\n", b"last words\n"]
    begins = []
    written = b""
    for number, text in enumerate(texts):
        size = len(written)
        monkeypatch.setattr(life, "ask", lambda method, *_, size=size: size if method == "log_size" else [])
        begins.append(life.log_size())
        disk.room += 1000 if number == 3 else 0
        life._hear(chunk(text, written, ServerState.DIED if number == 4 else ServerState.READY))
        written += text
    assert server.log_path.read_bytes() == b"first test\nsec" + b"fourth test\nlast words\n"
    monkeypatch.undo()
    parts = [server.runtime.read_log_bytes(begin, 1000, end)[0] for begin, end in itertools.pairwise(begins)]
    assert parts == [b"first test\n", b"sec", b"", b"fourth test\n"]
    assert server.runtime.read_log_bytes(begins[-1], 1000)[0] == b"last words\n"
    [warning] = warnings
    assert "its log is not complete" in warning
    view = news(ServerState.DIED).view
    life._news = news(ServerState.DIED, view=dataclasses.replace(view, launch_log_start=len(written[:-11])))
    assert life.view.launch_log_start == begins[-1]
    life._news = news(ServerState.DIED, view=dataclasses.replace(view, log_end=len(written)))
    assert life.view.log_end == server.log_path.stat().st_size


def test_the_log_of_another_node_goes_on_after_a_full_disk(
    server: CommandServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    server.on_warning = warnings.append
    server.log_path.parent.mkdir(parents=True)
    actor: Any = SimpleNamespace(node=Node("2", "two", "127.0.0.6", True, {}, {}), end=lambda: None)
    rank = Rank(actor, server, Share(1, 2), lambda: None)
    rank._open_log()
    output = rank._copy._output
    assert output is not None
    before = b"kept\nlost\nlost, too\n"
    disk = Disk(output, len(b"kept\n"))
    monkeypatch.setattr(os, "write", disk)
    rank._hear(chunk(b"kept\nlost\n", b""))
    rank._hear(chunk(b"lost, too\n", b"kept\nlost\n"))
    disk.room = 1000
    rank._hear(chunk(b"RuntimeError: why\n", before, ServerState.DIED))
    monkeypatch.undo()
    assert rank._log.path.read_bytes() == b"kept\nRuntimeError: why\n"
    assert rank._have.log == len(before + b"RuntimeError: why\n")
    assert rank.end is not None
    assert "RuntimeError: why" in rank.end.text
    [warning] = warnings
    assert re.search(r"the log of its part on two \(127.0.0.6\) .* is not complete: .*No space left", warning)
    rank.close()


def test_a_log_of_another_node_that_cannot_be_made_is_said(server: CommandServer) -> None:
    warnings: list[str] = []
    server.on_warning = warnings.append
    actor: Any = SimpleNamespace(node=Node("2", "two", "127.0.0.6", True, {}, {}), end=lambda: None)
    rank = Rank(actor, server, Share(1, 2), lambda: None)
    rank._open_log()
    rank._hear(chunk(b"RuntimeError: why\n", b"", ServerState.DIED))
    assert rank.end is not None
    [warning] = warnings
    assert "No such file or directory" in warning
    rank.close()
