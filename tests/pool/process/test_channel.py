"""Messages between two processes, here between two threads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

from pytest_infserver.errors import ConfigError, InferenceServerError
from pytest_infserver.pool.process.channel import Channel, RunEnds, as_data, as_error

LIMIT = 20.0


class End:
    """One end, and what it has been told."""

    def __init__(self, side: socket.socket, on_call: Callable[..., Any]) -> None:
        self.pushed: list[tuple[Any, ...]] = []
        self.heard = threading.Event()
        self.ended = threading.Event()
        connection: Connection[Any, Any] = Connection(side.detach())
        self.channel = Channel(connection, on_push=self._on_push, on_call=on_call, on_end=self.ended.set)

    def _on_push(self, kind: str, *data: Any) -> None:
        self.pushed.append((kind, *data))
        if kind == "last":
            self.heard.set()


def answer(kind: str, *data: Any) -> Any:
    if kind == "fails":
        raise ConfigError("no such thing")
    if kind == "breaks":
        raise ZeroDivisionError("by zero")
    if kind == "ends":
        raise KeyboardInterrupt("enough")
    if kind == "odd":
        return lambda: None
    return kind, *data


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    one, other = socket.socketpair()
    both = End(one, answer), End(other, answer)
    yield both
    for end in both:
        end.channel.close()
    for end in both:
        assert end.ended.wait(LIMIT)


def test_what_is_pushed_comes_in_order_and_questions_are_answered(ends: tuple[End, End]) -> None:
    one, other = ends
    for number in range(1000):
        one.channel.push("number", number)
    one.channel.push("last")
    assert other.heard.wait(LIMIT)
    assert other.pushed == [*(("number", number) for number in range(1000)), ("last",)]
    assert one.channel.call("what", 1, "x") == ("what", 1, "x")
    assert other.channel.call("back") == ("back",)


def test_errors_come_back_as_what_they_are(ends: tuple[End, End]) -> None:
    one, _ = ends
    with pytest.raises(ConfigError, match="no such thing"):
        one.channel.call("fails")
    with pytest.raises(InferenceServerError, match="ZeroDivisionError: by zero"):
        one.channel.call("breaks")
    with pytest.raises(RunEnds, match="enough"):
        one.channel.call("ends")
    with pytest.raises(InferenceServerError):
        one.channel.call("odd")
    assert one.channel.call("still", "there") == ("still", "there")


def test_a_question_in_what_is_pushed_is_answered() -> None:
    one_side, other_side = socket.socketpair()
    got: list[Any] = []
    done = threading.Event()
    one = End(one_side, answer)

    def asks(kind: str, *data: Any) -> None:
        got.append(other.channel.call("question"))
        done.set()

    connection: Connection[Any, Any] = Connection(other_side.detach())
    other = End.__new__(End)
    other.channel = Channel(connection, on_push=asks, on_call=answer, on_end=lambda: None)
    one.channel.push("anything")
    assert done.wait(LIMIT)
    assert got == [("question",)]
    one.channel.close()
    assert one.ended.wait(LIMIT)


def test_who_waits_for_an_answer_hears_that_the_other_end_is_gone(ends: tuple[End, End]) -> None:
    one, other = ends
    other.channel.close()
    assert one.ended.wait(LIMIT)
    with pytest.raises(InferenceServerError, match="is gone"):
        one.channel.call("anything")


@pytest.mark.parametrize("error", [ConfigError("x"), InferenceServerError("y")])
def test_an_error_of_ours_survives_the_way(error: InferenceServerError) -> None:
    found = as_error(*as_data(error))
    assert (type(found), str(found)) == (type(error), str(error))


def test_what_ends_a_run_keeps_its_name() -> None:
    found = as_error(*as_data(pytest.exit.Exception("enough")))
    assert isinstance(found, RunEnds)
    assert (type(found).__name__, str(found)) == ("Exit", "enough")


def test_a_thread_that_a_test_has_patched_keeps_no_question_from_its_answer(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = ends
    monkeypatch.setattr(threading.Thread, "start", None)
    assert one.channel.call("asked", 1) == ("asked", 1)


def test_an_end_that_cannot_read_hangs_up(ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one waits for no answer of it."""
    one, other = ends
    monkeypatch.setattr("pytest_infserver.pool.process.channel.spawn", None)
    with pytest.raises(InferenceServerError, match="is gone"):
        one.channel.call("asked", 1)
    assert other.ended.wait(LIMIT)
