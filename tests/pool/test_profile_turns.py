from __future__ import annotations

import queue
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import ProfileError
from pytest_infserver.pool.broker import profile_turns
from pytest_infserver.pool.broker.profile_turns import ProfileTurns

pytestmark = pytest.mark.usefixtures("hard_limit")


class Server:
    """Notes what is profiled; refuses a second profile at the same time, as a server does."""

    def __init__(self) -> None:
        self.now: str | None = None
        self.made: list[str] = []
        self.refuses = False

    def start_profile(self, name: str, tool: str | None) -> None:
        if self.refuses or self.now is not None:
            raise ProfileError(f"refused: {name}")
        self.now = name

    def stop_profile(self) -> list[Path]:
        if self.now is None:
            raise ProfileError("no profile is running")
        self.made.append(self.now)
        name, self.now = self.now, None
        return [Path(name)]


@pytest.fixture
def server() -> Any:
    return Server()


def test_workers_take_turns(server: Any) -> None:
    turns = ProfileTurns(pytest.fail)
    turns.begin("one", server, "a", None)
    second = threading.Thread(target=turns.begin, args=("two", server, "b", None))
    second.start()
    time.sleep(0.2)
    assert server.now == "a"
    assert turns.end("one", server) == [Path("a")]
    second.join(10)
    assert server.now == "b"
    assert turns.end("two", server) == [Path("b")]


def test_nobody_ends_the_profile_of_another(server: Any) -> None:
    turns = ProfileTurns(pytest.fail)
    turns.begin("one", server, "a", None)
    with pytest.raises(ProfileError, match="no profile of this worker is running"):
        turns.end("two", server)
    assert turns.end("one", server) == [Path("a")]


def test_who_has_one_is_told_so_by_the_server_and_keeps_it(server: Any) -> None:
    turns = ProfileTurns(pytest.fail)
    turns.begin("one", server, "a", None)
    with pytest.raises(ProfileError, match="refused: b"):
        turns.begin("one", server, "b", None)
    assert turns.end("one", server) == [Path("a")]


def test_one_that_did_not_begin_is_in_nobodys_way(server: Any) -> None:
    turns = ProfileTurns(pytest.fail)
    server.refuses = True
    with pytest.raises(ProfileError, match="refused: a"):
        turns.begin("one", server, "a", None)
    server.refuses = False
    turns.begin("two", server, "b", None)
    assert server.now == "b"


def test_a_turn_that_takes_too_long(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_turns, "_TURN_LIMIT", 0.1)
    turns = ProfileTurns(pytest.fail)
    turns.begin("one", server, "a", None)
    with pytest.raises(ProfileError, match="a profile is being made by worker one"):
        turns.begin("two", server, "b", None)


def test_where_nobody_profiles_there_is_nothing_to_end(server: Any) -> None:
    turns = ProfileTurns(pytest.fail)
    turns.begin("one", server, "a", None)
    turns.end("one", server)
    # Somebody else's, as one that began with the launch.
    server.now = "of its whole life"
    with pytest.raises(ProfileError, match="no profile of this worker is running"):
        turns.end("one", server)
    assert server.now == "of its whole life"


class Slow(Server):
    """One whose profile takes its time to begin, or to end."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Semaphore(0)
        self.go_on = threading.Event()

    def start_profile(self, name: str, tool: str | None) -> None:
        if name == "slow to begin":
            self.wait()
        super().start_profile(name, tool)

    def stop_profile(self) -> list[Path]:
        if self.now == "slow to end":
            self.wait()
        return super().stop_profile()

    def wait(self) -> None:
        self.reached.release()
        assert self.go_on.wait(10)


def test_a_worker_that_is_gone_is_said_so_twice_while_its_profile_ends() -> None:
    server: Any = Slow()
    turns = ProfileTurns(pytest.fail)
    turns.begin("one", server, "slow to end", None)
    turns.leave("one")
    assert server.reached.acquire(timeout=10)
    turns.leave("one")
    with pytest.raises(ProfileError, match="no profile of this worker is running"):
        turns.end("one", server)
    # Nobody else comes to end it.
    assert not server.reached.acquire(timeout=0.1)
    server.go_on.set()
    turns.begin("two", server, "b", None)
    assert turns.end("two", server) == [Path("b")]
    assert server.made == ["slow to end", "b"]


def test_a_profile_of_a_worker_that_went_while_it_began_is_ended() -> None:
    server: Any = Slow()
    turns = ProfileTurns(pytest.fail)
    beginning = threading.Thread(target=turns.begin, args=("one", server, "slow to begin", None), daemon=True)
    beginning.start()
    assert server.reached.acquire(timeout=10)
    turns.leave("one")
    turns.leave("one")
    server.go_on.set()
    beginning.join(10)
    assert server.made == ["slow to begin"]
    turns.begin("two", server, "b", None)
    assert server.now == "b"


def test_what_goes_wrong_where_nobody_waits_is_told(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: queue.Queue[BaseException] = queue.Queue()
    turns = ProfileTurns(told.put)
    monkeypatch.setattr(server, "stop_profile", lambda: 1 / 0)
    turns.begin("one", server, "a", None)
    turns.leave("one")
    server.now = None
    turns.begin("two", server, "b", None)
    assert isinstance(told.get(timeout=10), ZeroDivisionError)


def test_what_a_worker_leaves_is_ended(server: Any) -> None:
    turns = ProfileTurns(pytest.fail)
    turns.begin("one", server, "a", None)
    turns.leave("nobody")
    assert server.now == "a"
    turns.leave("one")
    turns.begin("two", server, "b", None)
    assert server.made == ["a"]
    # Its end was said twice.
    turns.leave("one")
    assert server.now == "b"
