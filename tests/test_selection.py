from __future__ import annotations

import pytest

from pytest_infserver.config.model import PROFILERS
from pytest_infserver.pool.collection.selection import (
    Candidate,
    MarkerError,
    explain,
    is_exclusive,
    needed_names,
    select,
    wanted_profiler,
)

CANDIDATES = [
    Candidate("llama-tp1", "vllm"),
    Candidate("llama-tp2", "vllm"),
    Candidate("qwen", "sglang"),
    Candidate("mine", "command"),
]
backend, infserver, needs = pytest.mark.backend, pytest.mark.infserver, pytest.mark.infserver_needs
profile = pytest.mark.infserver_profile


@pytest.mark.parametrize(
    ("marks", "names"),
    [
        ([], ["llama-tp1", "llama-tp2", "qwen", "mine"]),
        ([backend("vllm")], ["llama-tp1", "llama-tp2"]),
        ([backend("sglang", "vllm")], ["llama-tp1", "llama-tp2", "qwen"]),
        ([backend(exclude="vllm")], ["qwen", "mine"]),
        ([backend(exclude=["vllm", "command"])], ["qwen"]),
        ([backend("vllm", "sglang", exclude=("sglang",))], ["llama-tp1", "llama-tp2"]),
        ([backend("VLLM")], []),
        ([infserver("llama-*")], ["llama-tp1", "llama-tp2"]),
        ([infserver("q???", "mine")], ["qwen", "mine"]),
        ([infserver("LLAMA-*")], []),
        ([backend("vllm"), infserver("*-tp2")], ["llama-tp2"]),
        ([backend("vllm"), backend(exclude="vllm")], ["llama-tp1", "llama-tp2"]),
        ([infserver("qwen"), infserver("llama-*")], ["qwen"]),
        ([infserver(exclusive=True), infserver("qwen"), backend("vllm")], []),
        ([infserver("mine", model="x"), infserver("qwen", model="y")], ["mine"]),
        ([infserver(exclusive=True)], ["llama-tp1", "llama-tp2", "qwen", "mine"]),
        ([infserver("mine", exclusive=True)], ["mine"]),
        ([infserver("llama-*"), infserver(exclusive=False)], ["llama-tp1", "llama-tp2"]),
    ],
)
def test_the_closest_mark_of_each_kind_must_be_satisfied(marks: list[pytest.MarkDecorator], names: list[str]) -> None:
    chosen = select([mark.mark for mark in marks], CANDIDATES)
    assert [one.name for one in chosen] == names


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (backend(), "backend(): name at least one"),
        (infserver(), "infserver(): name at least one"),
        (backend(exclude=()), "backend(exclude=()): name at least one"),
        (backend(only="vllm"), "backend(only='vllm'): unknown keyword 'only'"),
        (infserver(exclusive=1), "infserver(exclusive=1): exclusive is True or False"),
        (infserver("a", exclusive="yes"), "infserver('a', exclusive='yes'): exclusive is True or False"),
        (infserver(exclusive=None), "infserver(exclusive=None): exclusive is True or False"),
        (infserver(7, exclusive=True), "infserver(7, exclusive=True): names must be texts"),
        (backend("vllm", exclusive=True), "backend('vllm', exclusive=True): unknown keyword 'exclusive'"),
        (backend(7), "backend(7): names must be texts"),
        (backend(["vllm"]), "backend(['vllm']): names must be texts"),
        (backend(exclude=5), "backend(exclude=5): names must be texts"),
        (backend(exclude=None), "backend(exclude=None): names must be texts"),
        (backend("vllm", exclude=[7]), "backend('vllm', exclude=[7]): names must be texts"),
    ],
)
def test_a_mark_without_meaning_is_an_error(mark: pytest.MarkDecorator, message: str) -> None:
    with pytest.raises(MarkerError) as caught:
        select([mark.mark], CANDIDATES)
    assert str(caught.value) == message


def test_explain_names_what_was_asked_and_what_is_configured() -> None:
    marks = [backend("sglang", exclude="x").mark, infserver("llama-*").mark]
    assert explain(marks, CANDIDATES[:2]) == (
        "no configured server fits backend('sglang', exclude='x') and infserver('llama-*');"
        " configured: llama-tp1 (vllm), llama-tp2 (vllm)"
    )
    assert explain([], []) == "no configured server fits any server; configured: none"


@pytest.mark.parametrize(
    ("marks", "alone"),
    [
        ([], False),
        ([infserver("a")], False),
        ([infserver(exclusive=True)], True),
        ([infserver("a", exclusive=True)], True),
        # The nearest one counts, as in pytest: the test's own comes before its class's and its module's.
        ([infserver("a"), infserver(exclusive=True)], True),
        ([infserver(exclusive=False), infserver(exclusive=True)], False),
        ([infserver(exclusive=True), infserver(exclusive=False)], True),
        ([backend("a", exclusive=True)], False),
    ],
)
def test_who_wants_its_servers_alone(marks: list[pytest.MarkDecorator], alone: bool) -> None:
    assert is_exclusive([mark.mark for mark in marks]) is alone


@pytest.mark.parametrize(
    ("marks", "names"),
    [
        ([], []),
        ([infserver("qwen")], []),
        ([needs("qwen")], ["qwen"]),
        ([needs("mine", "qwen")], ["mine", "qwen"]),
        ([needs("mine", "mine"), needs("qwen", "mine")], ["mine", "qwen"]),
    ],
)
def test_servers_that_are_needed_together(marks: list[pytest.MarkDecorator], names: list[str]) -> None:
    assert needed_names([mark.mark for mark in marks], CANDIDATES) == (names, "")


def test_needed_servers_that_are_not_configured() -> None:
    names, why = needed_names([needs("mine").mark, needs("qwen", "quen").mark], CANDIDATES[2:])
    assert names == []
    assert why == (
        "no configured server fits infserver_needs('qwen', 'quen'); configured: qwen (sglang), mine (command);"
        " did you mean 'qwen'?"
    )
    # Names, not patterns: each is one server.
    assert needed_names([needs("q*").mark], CANDIDATES)[0] == []


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (needs(), "infserver_needs(): give the names of servers"),
        (needs(7), "infserver_needs(7): give the names of servers"),
        (needs(["a", "b"]), "infserver_needs(['a', 'b']): give the names of servers"),
        (needs("a", exclusive=True), "infserver_needs('a', exclusive=True): give the names of servers"),
    ],
)
def test_needs_without_meaning_are_an_error(mark: pytest.MarkDecorator, message: str) -> None:
    with pytest.raises(MarkerError) as caught:
        needed_names([mark.mark], CANDIDATES)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("marks", "tool"),
    [
        ([], None),
        ([infserver("nsys")], None),
        ([profile()], ""),
        *[([profile(tool)], tool) for tool in PROFILERS],
        # The nearest one counts: the test's own comes before its class's and its module's.
        ([profile("nsys"), profile("py-spy")], "nsys"),
        ([profile(), profile("py-spy")], ""),
    ],
)
def test_the_profiler_of_a_test(marks: list[pytest.MarkDecorator], tool: str | None) -> None:
    assert wanted_profiler([mark.mark for mark in marks]) == tool


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (profile("perf"), "infserver_profile('perf'): unknown profiler; there are nsys, pytorch, amd, py-spy"),
        (profile("nsys", "amd"), "infserver_profile('nsys', 'amd'): give the name of one profiler"),
        (profile(7), "infserver_profile(7): give the name of one profiler"),
        (profile(tool="nsys"), "infserver_profile(tool='nsys'): give the name of one profiler"),
    ],
)
def test_a_profiler_without_meaning_is_an_error(mark: pytest.MarkDecorator, message: str) -> None:
    with pytest.raises(MarkerError) as caught:
        wanted_profiler([mark.mark])
    assert str(caught.value).startswith(message)
