"""The course of a server's lives on a cluster: with stand-ins for the lives, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_infserver import CommandServer, ProfileError, ServerStartupError, ServerState
from pytest_infserver.cluster.connection.errors import ClusterLost, NoAnswer
from pytest_infserver.cluster.runtime import cluster_runtime
from pytest_infserver.cluster.runtime.cluster_runtime import ClusterRuntime
from pytest_infserver.cluster.runtime.loss import NodeLost
from pytest_infserver.launcher.runtime.followed import apply_view
from pytest_infserver.launcher.runtime.view import View
from pytest_infserver.launcher.supervision.exit import Exit

pytestmark = pytest.mark.usefixtures("hard_limit")


class Life:
    """One that does what its class is told to."""

    made: list[Life]
    errors: list[BaseException | None]

    def __init__(self, connection: object, server: CommandServer, placement: Any, name: str) -> None:
        self.server, self.did = server, list[str]()
        self.has_told_failure = False
        self.profile = SimpleNamespace(ended=None, stop=lambda: [Path("/trace")], start=lambda name, tool: None)
        self.pulse, self.silent = None, 0.0
        Life.made.append(self)

    def begin(self) -> None:
        self.did.append("begin")
        error = Life.errors.pop(0) if Life.errors else None
        if error is not None:
            raise error

    def await_ready(self) -> None:
        view = View(8000, 4711, None, True, 1, self.server.log_path, 0, None, node="n1", address="127.0.0.5")
        self.process = apply_view(self.server.runtime, view)

    def end(self) -> None:
        self.did.append("end")

    def abandon(self) -> None:
        self.did.append("abandon")

    def ask(self, method: str, limit: float) -> None:
        self.did.append(method)
        self.process.ended(Exit(-9, 0))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandServer:
    Life.made, Life.errors = [], []
    monkeypatch.setattr(cluster_runtime, "Life", Life)
    made = CommandServer(launch_command=["x", "{port}"], output_dir=tmp_path, name="a")
    lost: list[str] = []
    placements: Any = SimpleNamespace(
        place=lambda server: SimpleNamespace(connection=None, lost=False),
        new_name=lambda: "run:1",
        note_lost=lambda server: lost.append(server.name),
        lost=lost,
    )
    made.runtime = ClusterRuntime(made.runtime, placements)
    return made


def did() -> list[list[str]]:
    return [life.did for life in Life.made]


def kinds(server: CommandServer) -> list[str]:
    return [event.kind for event in server.journal.events]


def test_a_life(server: CommandServer) -> None:
    assert server.start().state is ServerState.READY
    server.start()
    server.stop()
    server.stop()
    assert did() == [["begin", "end"]]
    assert (server.state, server.runtime.process) == (ServerState.STOPPED, None)
    assert kinds(server) == ["starting", "ready"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(2)])
def test_an_interrupt_after_it_is_ready_leaves_nothing(server: CommandServer, error: BaseException) -> None:
    def interrupt(_: object) -> None:
        if server.running:
            raise error

    server.on_wait = interrupt
    with pytest.raises(type(error)):
        server.start()
    assert did() == [["begin", "abandon"]]
    assert server.state is ServerState.FAILED
    server.on_wait = lambda server: None
    server.start()
    server.stop()
    assert did() == [["begin", "abandon"], ["begin", "end"]]


def test_a_node_that_is_lost_before_it_is_ready_is_not_the_end(server: CommandServer) -> None:
    warnings: list[str] = []
    server.on_warning = warnings.append
    Life.errors = [NodeLost("a: n1 is gone"), NodeLost("a: n2 is gone")]
    server.start()
    assert did() == [["begin", "abandon"], ["begin", "abandon"], ["begin"]]
    assert len(warnings) == 2
    assert "it is started again" in warnings[0]


def test_three_lost_nodes_are(server: CommandServer) -> None:
    Life.errors = [NodeLost("a: gone") for _ in range(3)]
    with pytest.raises(NodeLost):
        server.start()
    assert did() == [["begin", "abandon"]] * 3
    assert kinds(server) == ["starting", "failed"]


@pytest.mark.parametrize("error", [ClusterLost("it is gone"), NoAnswer("no answer")])
def test_what_the_cluster_says_is_an_error_of_the_start(server: CommandServer, error: Exception) -> None:
    Life.errors = [error]
    with pytest.raises(ServerStartupError, match=f"cannot start: {error}"):
        server.start()
    assert server.runtime._placements.lost == (["a"] if isinstance(error, NoAnswer) else [])  # type: ignore[attr-defined]


def test_each_failed_start_is_noted_once(server: CommandServer, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Life.begin

    def fail(life: Life) -> None:
        # Its node has said why.
        life.has_told_failure = True
        begin(life)

    monkeypatch.setattr(Life, "begin", fail)
    Life.errors = [ServerStartupError("a exited with code 3")]
    with pytest.raises(ServerStartupError):
        server.start()
    assert kinds(server) == ["starting"]

    def interrupt(life: Life) -> None:
        raise KeyboardInterrupt

    # The next one fails before there is a life that could say anything.
    monkeypatch.setattr(ClusterRuntime, "_launch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        server.start()
    assert kinds(server) == ["starting", "starting", "failed"]


def test_a_server_that_was_killed_stays_dead_until_it_is_started_again(
    server: CommandServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.start()
    server.kill()
    assert server.state is ServerState.DIED
    seen: list[ServerState] = []
    launch: Callable[[ClusterRuntime], None] = ClusterRuntime._launch
    end = Life.end

    def look(life: Life) -> None:
        end(life)
        seen.append(server.state)

    def look_again(runtime: ClusterRuntime) -> None:
        seen.append(server.state)
        launch(runtime)

    monkeypatch.setattr(Life, "end", look)
    monkeypatch.setattr(ClusterRuntime, "_launch", look_again)
    server.start()
    assert seen == [ServerState.DIED, ServerState.STARTING]
    assert server.running


@pytest.mark.parametrize("ended", [[], [Path("/trace")], ProfileError("it is lost")])
def test_a_profile_that_the_end_has_ended_is_who_has_begun_its(
    server: CommandServer, ended: list[Path] | ProfileError
) -> None:
    server.start()
    server.start_profile("p")
    Life.made[0].profile.ended = ended
    server.stop()
    if isinstance(ended, ProfileError):
        with pytest.raises(ProfileError, match="it is lost"):
            server.stop_profile()
    else:
        assert server.stop_profile() == ended
    with pytest.raises(ProfileError, match="no profile is running"):
        server.stop_profile()
