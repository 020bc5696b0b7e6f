"""Prompts of a length, with a share in common, or from a file."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path

import pytest

from pytest_infserver import ConfigError
from pytest_infserver.load.prompts import measured_words, prompts, read_dataset
from pytest_infserver.load.workload import make_workload


def first(load, words, count=3):
    return list(itertools.islice(prompts(load, words), count))


@pytest.mark.parametrize("per_word", [0.5, 1.0, 1.37, 4.0])
def test_the_length_is_that_of_the_server_s_tokens(per_word: float) -> None:
    async def count(text: str) -> int:
        return round(per_word * len(text.split())) + 1

    load = make_workload(prompt_tokens=300)
    words, how = asyncio.run(measured_words(load, count))
    assert how == "the server's tokenizer"
    for prompt in first(load, words):
        assert asyncio.run(count(prompt)) == pytest.approx(300, abs=4)


def test_without_a_tokenizer_it_is_told() -> None:
    async def count(text: str) -> None:
        return None

    words, how = asyncio.run(measured_words(make_workload(prompt_tokens=9), count))
    assert words == 9
    assert "no tokenizer endpoint" in how


def test_seeds_and_shared_prefixes() -> None:
    load = make_workload(prefix_share=0.5)
    found = first(load, 100)
    assert found == first(load, 100)
    assert found != first(make_workload(prefix_share=0.5, seed=1), 100)
    assert len(set(found)) == 3
    assert len({tuple(one.split()[:50]) for one in found}) == 1
    assert len({tuple(one.split()[50:]) for one in found}) == 3
    assert len(set(first(make_workload(prefix_share=1.0), 100))) == 1
    assert len({tuple(one.split()[:3]) for one in first(make_workload(), 100)}) == 3


def test_a_text_of_the_user_s(tmp_path: Path) -> None:
    file = tmp_path / "words"
    file.write_text("only these\nwords")
    assert set(first(make_workload(text=file), 50, 1)[0].split()) == {"only", "these", "words"}
    file.write_text("")
    other = tmp_path / "empty"
    other.write_text(" \n")
    with pytest.raises(ConfigError, match="has no words"):
        first(make_workload(text=other), 1)


@pytest.mark.parametrize("as_list", [True, False])
def test_conversations_of_each_form(tmp_path: Path, as_list: bool) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "no"}]},
        {"messages": [{"role": "user", "content": "two"}]},
        {"prompt": "three"},
        {"conversations": []},
        {"other": 1},
        7,
    ]
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(rows) if as_list else "\n".join(map(json.dumps, rows)))
    assert read_dataset(file) == ["one", [{"role": "user", "content": "two"}], "three"]
    # More requests than prompts: again from the beginning.
    assert len(first(make_workload(dataset=file), 0, 7)) == 7


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a"', "line 1"),
        ('{"prompt": "x"}\n{', "line 2"),
        ("[1,", "data"),
        ("", "has no prompt"),
        ("[]", "has no prompt"),
    ],
)
def test_a_file_that_is_none_of_these(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "data"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_dataset(file)
