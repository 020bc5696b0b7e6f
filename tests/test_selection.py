from __future__ import annotations

import pytest

from pytest_infserver.selection import Candidate, MarkerError, explain, select

CANDIDATES = [
    Candidate("llama-tp1", "vllm"),
    Candidate("llama-tp2", "vllm"),
    Candidate("qwen", "sglang"),
    Candidate("mine", "command"),
]
backend, infserver = pytest.mark.backend, pytest.mark.infserver


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
        ([backend("vllm"), backend(exclude="vllm")], []),
        ([infserver("llama-*"), infserver("*1")], ["llama-tp1"]),
    ],
)
def test_every_mark_must_be_satisfied(marks: list[pytest.MarkDecorator], names: list[str]) -> None:
    chosen = select([mark.mark for mark in marks], CANDIDATES)
    assert [one.name for one in chosen] == names


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (backend(), "backend(): name at least one"),
        (infserver(), "infserver(): name at least one"),
        (backend(exclude=()), "backend(exclude=()): name at least one"),
        (backend(only="vllm"), "backend(only='vllm'): unknown keyword 'only'"),
        (infserver("a", exclude="b"), "infserver('a', exclude='b'): unknown keyword 'exclude'"),
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
