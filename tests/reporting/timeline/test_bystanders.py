from __future__ import annotations

from typing import Any

import pytest

from pytest_infserver.reporting.timeline.bystanders import MOST, without_bystanders


def record(without_server: int) -> dict[str, Any]:
    tests = [{"id": f"plain {number}", "outcome": "passed", "servers": []} for number in range(without_server)]
    tests.append({"id": "failed", "outcome": "failed", "servers": []})
    tests.append({"id": "used", "outcome": "passed", "servers": [{"name": "a"}]})
    return {"tests": tests, "incidents": ["something"]}


@pytest.mark.parametrize("number", [0, MOST])
def test_some_are_shown(number: int) -> None:
    assert without_bystanders(record(number)) == record(number)


def test_of_very_many_only_those_that_say_something_are_shown() -> None:
    whole = record(MOST + 1)
    shown = without_bystanders(whole)
    assert [test["id"] for test in shown["tests"]] == ["failed", "used"]
    assert shown["incidents"] == [
        "something",
        "1001 tests that passed without a server are not shown here; run.json has them",
    ]
    assert whole == record(MOST + 1)
