"""What of a record is taken for known."""

from __future__ import annotations

import copy

import pytest
from reporting.timeline.records import ODD, sample_record, with_odd_values

from pytest_infserver.reporting.timeline.shape import known


def test_a_record_as_it_should_be_is_left_as_it_is() -> None:
    record = sample_record()
    made = known(copy.deepcopy(record))
    del record["schema_version"]
    for server in record["servers"]:
        del server["folder"]
    assert made == record


def test_an_empty_record_has_all_keys() -> None:
    made = known({})
    assert made["servers"] == made["tests"] == made["errors"] == []
    assert made["outcomes"] == {}
    assert made["started"] is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "7", True, [], 10**400, 1e300])
def test_what_is_no_number_is_not_known(value: object) -> None:
    assert known({"started": value, "outcomes": {"passed": value}}) == known({})


def test_parts_of_another_kind_are_left_out() -> None:
    record = {
        "servers": [7, {"name": "a", "memory": [[1.5, 2, None], [None, 2, 3], [1], "x"], "heartbeat": "never"}],
        "tests": [None, {"id": 7, "outcome": "passed", "servers": {"name": "a"}}],
        "incidents": ["one", 2, "three"],
    }
    made = known(record)
    [server], [test] = made["servers"], made["tests"]
    assert server["memory"] == [[1.5, 2, None]]
    assert server["heartbeat"]["samples"] == []
    assert (test["id"], test["outcome"], test["servers"]) == (None, "passed", [])
    assert made["incidents"] == ["one", "three"]


def test_leaks_that_were_not_looked_for_are_not_none() -> None:
    made = known({"servers": [{"leaks": None}, {"leaks": []}, {"leaks": [{"fails": True}]}]})
    assert [server["leaks"] for server in made["servers"]] == [
        None,
        [],
        [{"kind": None, "text": None, "fails": True}],
    ]


@pytest.mark.parametrize("seed", range(30))
def test_what_is_known_is_known_again(seed: int) -> None:
    made = known(with_odd_values(sample_record(20, points=8), seed))
    assert known(made) == made


@pytest.mark.parametrize("value", ODD)
def test_even_the_whole_may_be_something_else(value: object) -> None:
    assert known(value)["tests"] == []  # type: ignore[arg-type]
