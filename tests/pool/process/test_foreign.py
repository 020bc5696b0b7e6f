"""Backends of the user's, as the process of the pool knows them."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pytest_infserver import CommandServer, InferenceServer, UserCodeError, VLLMServer
from pytest_infserver.launcher.startup.phases import Phase
from pytest_infserver.launcher.user_code import asked
from pytest_infserver.pool.process.foreign import (
    ForeignBackend,
    ForeignServer,
    NotPlainError,
    answer_for,
    as_foreign,
    is_expressible,
    make_class,
    plain,
)


class Mine(CommandServer):
    fatal_patterns = (re.compile(rb"fatal"),)
    install_hint = "Install it."

    def get_backend_name(self) -> str:
        return "mine"

    def get_launch_command(self) -> list[str]:
        return ["mine", "--port", str(self.port)]

    @property
    def first_phase(self) -> str:  # type: ignore[override]
        return f"warming {self.model}"

    @property
    def known_leftovers(self) -> Sequence[str]:  # type: ignore[override]
        raise KeyError("users bug")


class Starts(CommandServer):
    def start(self) -> Any:
        return super().start()


def made() -> tuple[ForeignBackend, type[InferenceServer], list[str]]:
    foreign = as_foreign(Mine)
    assert foreign is not None
    spec, asked_for = Mine("m", port=9, launch_command=["x"]), []

    def ask(server: ForeignServer, name: str, arguments: Sequence[Any]) -> Any:
        asked_for.append(name)
        return answer_for(spec, name, arguments, server.allotment)

    return foreign, make_class(foreign, ask), asked_for


def test_ours_are_imported_where_they_are_needed() -> None:
    assert as_foreign(VLLMServer) is None
    assert is_expressible(VLLMServer)
    assert is_expressible(Mine)
    assert not is_expressible(Starts)


def test_a_class_that_asks_stands_for_one() -> None:
    foreign, kind, asked_for = made()
    assert (foreign.class_name, foreign.backend_name, foreign.methods) == ("Mine", "mine", ("get_launch_command",))
    assert sorted(foreign.values) == ["fatal_patterns", "install_hint"]
    assert foreign.properties == ("first_phase", "known_leftovers")
    server = kind("m", port=8123)
    assert isinstance(server, CommandServer)
    assert (server.backend_name, server.install_hint, server.first_phase) == ("mine", "Install it.", "warming m")
    assert server.command().argv == ("mine", "--port", "8123")
    assert server.command().argv == ("mine", "--port", "8123")
    # Properties together, once, and the command once for one port.
    assert asked_for == ["*", "get_launch_command"]


def test_what_a_property_raises_is_raised_where_it_is_asked_for_and_nowhere_else() -> None:
    _, kind, _ = made()
    server = kind("m")
    assert server.first_phase == "warming m"
    with pytest.raises(UserCodeError, match="known_leftovers raised KeyError: 'users bug'"):
        asked(server).known_leftovers  # noqa: B018


class Text(str):
    """A text of a module that another process cannot import."""


class Secret(str):
    """A text that hides itself."""

    def __str__(self) -> str:
        return "***"


class Letter(str, enum.Enum):
    A = "a"


class Pair(NamedTuple):
    one: int
    two: int


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (Text("x"), "x"),
        ([Text("x"), Path("/a")], ["x", "/a"]),
        ({"a": (True, None, 1.5, b"x")}, {"a": (True, None, 1.5, b"x")}),
        (frozenset({"a"}), frozenset({"a"})),
        (Phase(re.compile(b"x"), "y"), Phase(re.compile(b"x"), "y")),
        (range(3), range(3)),
        (Secret("key"), "key"),
        (Letter.A, "a"),
    ],
)
def test_values_are_made_plain(value: Any, found: Any) -> None:
    got = plain(value)
    assert got == found
    assert type(got) is type(found)


@pytest.mark.parametrize("value", [object(), lambda: None, Mine, [object()], {"a": object()}])
def test_what_another_process_could_not_read_is_refused(value: Any) -> None:
    with pytest.raises(NotPlainError):
        plain(value)
