"""Which servers are started for a profiler, and which tests are refused because theirs cannot be had."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from pytest_infserver.config.loading import build_server
from pytest_infserver.launcher.backends.vllm import VLLMServer
from pytest_infserver.launcher.profiling.chosen import check_profiler
from pytest_infserver.pool.collection import profilers
from pytest_infserver.pool.collection.profilers import default_tool, wanted_profilers


class Item(str):
    """A test: its node id, its own marks, and what it was warned of."""

    def __init__(self, nodeid: str) -> None:
        self.nodeid = nodeid
        self.own_markers: list[pytest.Mark] = []
        self.warned: list[Warning] = []
        self.warn = self.warned.append


class Choice:
    """Knows what tests want."""

    def __init__(self, **profiles: Any) -> None:
        settings = {name: {} if profile is None else {"profile": profile} for name, profile in profiles.items()}
        self.configs = {
            name: build_server(
                {"name": name, "backend": "vllm", "model": "m", "binary_path": sys.executable, **one}, "t"
            )
            for name, one in settings.items()
        }
        self.all_configs = self.configs
        self.wishes: dict[Any, tuple[str | None, tuple[str, ...]]] = {}
        self.refused: dict[Any, str] = {}

    def profiler(self, item: Any) -> str | None:
        return self.wishes[item][0]

    def servers(self, item: Any) -> tuple[str, ...]:
        return self.wishes[item][1]

    def refusal(self, item: Any) -> str | None:
        return self.refused.get(item)

    def refuse(self, item: Any, reason: str) -> None:
        self.refused[item] = reason

    def plan(self, **wishes: tuple[str | None, tuple[str, ...]]) -> dict[str, str]:
        self.wishes = wishes
        return wanted_profilers([Item(nodeid) for nodeid in wishes], self)  # type: ignore[arg-type, misc]


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Note which server was asked about which profiler."""
    asked = []

    def note(server: VLLMServer, tool: str) -> None:
        asked.append((server.name, tool))
        check_profiler(server, tool)

    monkeypatch.setattr(profilers, "check_profiler", note)
    return asked


@pytest.mark.usefixtures("nothing_left")
def test_a_server_is_started_for_what_its_tests_ask_for(checked: list[tuple[str, str]]) -> None:
    choice = Choice(a=None, b={"tool": "pytorch", "on_demand": True}, c=None)
    tools = choice.plan(
        t1=("pytorch", ("a",)), t2=("pytorch", ("a",)), t3=("", ("b",)), t4=("", ("c",)), t5=(None, ("c",))
    )
    # py-spy attaches to what runs.
    assert tools == {"a": "pytorch", "b": "pytorch"}
    assert choice.refused == {}
    # Once, however many tests ask.
    assert checked == [("a", "pytorch"), ("b", "pytorch"), ("c", "py-spy")]


def test_only_the_tests_are_refused_that_cannot_have_what_they_ask_for(tmp_path: Any) -> None:
    choice = Choice(a=None, b={"tool": "nsys", "binary_path": str(tmp_path / "nsys")})
    tools = choice.plan(
        first=("pytorch", ("a",)),
        other=("nsys", ("a",)),
        missing=("nsys", ("b",)),
        whole=("amd", ("a",)),
        both=("pytorch", ("a", "b")),
        again=("pytorch", ("a",)),
    )
    assert tools == {"a": "pytorch"}
    assert set(choice.refused) == {"other", "missing", "whole", "both"}
    assert "a server is started for one profiler" in choice.refused["other"]
    assert "is not an executable file" in choice.refused["missing"]
    assert "whole life only" in choice.refused["whole"]
    assert choice.refused["both"].startswith("b (vllm)")


def test_a_mark_without_effect_is_a_warning() -> None:
    choice = Choice(a=None)
    marked, in_a_marked_class, refused = Item("marked"), Item("in_a_marked_class"), Item("refused")
    marked.own_markers = refused.own_markers = [pytest.mark.infserver_profile.mark]
    choice.wishes = dict.fromkeys((marked, in_a_marked_class, refused), (None, ()))
    choice.refused[refused] = "an error says it already"
    assert wanted_profilers([marked, in_a_marked_class, refused], choice) == {}  # type: ignore[list-item, arg-type]
    assert [str(text) for text in marked.warned] == [
        "infserver_profile has no effect: marked takes no inference server"
    ]
    assert in_a_marked_class.warned == refused.warned == []


def test_the_tool_of_a_test_that_names_none() -> None:
    configs = Choice(a=None, b={"tool": "amd"}).configs
    assert default_tool(configs, "a") == "py-spy"
    assert default_tool(configs, "b") == "amd"
