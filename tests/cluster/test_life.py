"""What pytest makes of the news of a server's life, in whatever order they come: without Ray."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_infserver import CommandServer
from pytest_infserver.cluster.connection import NoAnswer, Node
from pytest_infserver.cluster.demand import Demand
from pytest_infserver.cluster.life import Life
from pytest_infserver.cluster.messages import Have, News
from pytest_infserver.launcher.ends import Exit
from pytest_infserver.launcher.follower import View
from pytest_infserver.launcher.state import ServerState

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
def life(server: CommandServer, cluster: SilentCluster) -> Any:
    node = Node("1", "one", "127.0.0.5", True, {}, {})
    placement = SimpleNamespace(nodes=[node], demand=Demand(0, 1.0), ticket="t", lost=False)
    made = Life(cluster, server, placement, "run:1")  # type: ignore[arg-type]
    made._output, made._folder_lock = server._log.open()
    server._state = ServerState.STARTING
    return made


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
    life._hear(news(ServerState.DIED, life._have))
    life.await_ready()
    assert server.state is ServerState.DIED
    reason = server.why_died()
    assert reason is not None
    assert "exited with code 7" in reason
    assert server.log_path.read_bytes() == WORDS


def test_news_that_come_after_the_end_are_nobodys(life: Any, server: CommandServer) -> None:
    life._hear(news(ServerState.STARTING, started=False))
    life.abandon()
    server._state = ServerState.FAILED
    life._hear(news(ServerState.READY, life._have, memory=(1, None), device_keys=("GPU-1",)))
    assert server.state is ServerState.FAILED
    assert server.memory is None
    assert server.device_keys == ()


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
