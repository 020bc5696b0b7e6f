"""What a workload may say, and what makes it another one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import ConfigError
from pytest_infserver.load.workload import make_workload


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"requests": 0}, "requests is a whole number from 1 on, not 0"),
        ({"requests": True}, "requests is a whole number"),
        ({"concurrency": -1}, "concurrency is a whole number"),
        ({"output_tokens": 1.5}, "output_tokens is a whole number"),
        ({"duration": 0}, "duration is a number above 0"),
        ({"rate": float("nan")}, "rate is a number above 0"),
        ({"rate": float("inf")}, "rate is a number above 0"),
        ({"rate": 1.0, "concurrency": 2}, "either rate"),
        ({"prefix_share": 1.1}, "prefix_share is a share"),
        ({"arrivals": "gamma"}, "poisson or constant"),
        ({"api": "responses"}, "completions or chat"),
        ({"limits": {"speed": 1}}, "limits know"),
        ({"dataset": "/nowhere.jsonl"}, "there is no file /nowhere.jsonl"),
        ({"requets": 1}, "unknown setting 'requets'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_sent(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_workload(**settings)


def test_what_is_left_out() -> None:
    load = make_workload()
    assert (load.concurrency, load.requests, load.is_open) == (1, 100, False)
    assert make_workload(rate=2.0).is_open
    assert make_workload(duration=3).requests is None


def test_the_key_is_that_of_what_decides_the_speed(tmp_path: Path) -> None:
    load = make_workload(prompt_tokens=7)
    assert dataclasses.replace(load, timeout=5, limits={"e2e": 1}).key == load.key
    assert dataclasses.replace(load, seed=1).key != load.key
    text = tmp_path / "text"
    text.write_text("a b")
    before = make_workload(text=text).key
    assert make_workload(text=text).key == before
    text.write_text("a c")
    assert make_workload(text=text).key != before
