"""Which test gets which server, from items that are only objects."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_infserver.pool import items, run
from pytest_infserver.selection import Candidate, MarkerError
from pytest_infserver.settings import Settings


@pytest.fixture
def three() -> run.Run:
    pool: Any = SimpleNamespace(configs={}, server=None)
    made = run.Run(Settings(), pool)
    made.candidates = [Candidate("a", "command"), Candidate("b", "command"), Candidate("v", "vllm")]
    pool.configs = dict.fromkeys("abv")
    return made


def item(nodeid: str, *marks: pytest.MarkDecorator, param: object = None, ours: bool = True) -> Any:
    definitions = [definition(items.FIXTURE_HOME)] if ours else []
    node = SimpleNamespace(
        nodeid=nodeid,
        callspec=None if param is None else SimpleNamespace(params={items.FIXTURE: param}),
        _fixtureinfo=SimpleNamespace(name2fixturedefs={items.FIXTURE: definitions}),
        iter_markers=lambda: iter([mark.mark for mark in marks]),
        added=[],
    )
    node.add_marker = node.added.append
    return node


def definition(module: str, *argnames: str, params: list[int] | None = None) -> Any:
    return SimpleNamespace(
        argname=items.FIXTURE, argnames=argnames, params=params, func=SimpleNamespace(__module__=module)
    )


def test_whose_fixture_it_is() -> None:
    ours, theirs = definition(items.FIXTURE_HOME), definition("conftest")
    wraps = definition("conftest", "request", items.FIXTURE)
    assert items.reaches_ours([ours])
    assert items.reaches_ours([ours, wraps])
    assert items.reaches_ours([ours, wraps, wraps])
    assert not items.reaches_ours([ours, theirs])
    assert not items.reaches_ours([ours, theirs, wraps])
    assert not items.reaches_ours([ours, definition("conftest", items.FIXTURE, params=[1])])
    assert not items.reaches_ours([])
    assert not items.reaches_ours(None)


def test_items_of_a_server_come_together_where_its_first_one_stood() -> None:
    order: Any = ["a1", "-", "b1", "a2", "b2", "+", "a3"]
    servers = {"a": "a", "b": "b"}
    assert items.grouped(order, lambda one: servers.get(one[0])) == ["a1", "a2", "a3", "-", "b1", "b2", "+"]  # type: ignore[index]


def test_parameters(three) -> None:
    mark = pytest.mark
    assert three.parameters([]) == ["a", "b", "v"]
    assert three.parameters([mark.backend("command").mark, mark.infserver("b", "v").mark]) == ["b"]
    (nobody,) = three.parameters([mark.infserver("zz").mark])
    assert nobody.id == "no-server"
    assert nobody.marks[0].kwargs["reason"] == (
        "no configured server fits infserver('zz'); configured: a (command), b (command), v (vllm)"
    )
    three.settings = Settings(strict=True)
    assert not three.parameters([mark.infserver("zz").mark])[0].marks
    with pytest.raises(MarkerError):
        three.parameters([mark.backend().mark])


def test_which_server_an_item_wants(three) -> None:
    assert three.wanted(item("1", param="a")) == "a"
    assert three.wanted(item("2", param="zz")) is None
    assert three.wanted(item("3", param=items.Unmatched("no"))) is None
    assert three.wanted(item("4", param="a", ours=False)) is None
    assert three.wanted(item("5")) is None
    assert three.wanted(item("6", pytest.mark.backend("vllm"))) == "v"
    assert three.wanted(item("7", pytest.mark.backend())) is None
    three.candidates = three.candidates[:1]
    assert three.wanted(item("8")) == "a"


def test_choose_leaves_out_skips_and_refuses(three) -> None:
    on_b = pytest.mark.infserver("b")
    fits, elsewhere = item("fits", on_b, param="b"), item("elsewhere", on_b, param="a")
    nowhere, bad = (
        item("nowhere", pytest.mark.infserver("zz"), param="a"),
        item("bad", pytest.mark.backend(), param="a"),
    )
    foreign = item("foreign", pytest.mark.backend(), ours=False)
    kept, left_out = three.choose([fits, elsewhere, nowhere, bad, foreign])
    assert kept == [fits, nowhere, bad, foreign]
    assert left_out == [elsewhere]
    assert [mark.name for mark in nowhere.added] == ["skip"]
    assert bad.added == foreign.added == []
    with pytest.raises(pytest.fail.Exception, match="name at least one"):
        three.before_setup(bad)
    three.settings = Settings(strict=True)
    strict = item("strict", pytest.mark.infserver("zz"), param="a")
    assert three.choose([strict]) == ([strict], [])
    assert three.wanted(strict) is None
    with pytest.raises(pytest.fail.Exception, match="no configured server fits infserver"):
        three.before_setup(strict)


def test_what_the_fixture_says_when_it_cannot_tell_the_server(three) -> None:
    assert three.named("a") == "a"
    for name, words in (("zz", "no server is called 'zz'"), (None, "several servers"), (items.Unmatched("why"), "why")):
        with pytest.raises(pytest.fail.Exception, match=words):
            three.named(name)
    three.candidates.clear()
    three.pool.configs.clear()
    with pytest.raises(pytest.fail.Exception, match="none is configured"):
        three.named(None)
