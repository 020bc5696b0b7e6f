"""Groups and annotations for CI services."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_infserver.reporting.terminal.ci_services import annotation_lines, grouped_logs

LOG = "llama: log during this test (vllm, http://127.0.0.1:8000, x.log)"
GITHUB = {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": "/work"}


def report(*titles: str, message: str = "AssertionError: 50% off\nassert 0") -> SimpleNamespace:
    return SimpleNamespace(
        sections=[(title, "a line\n") for title in titles],
        location=("tests/test_a.py", 6, "test_a"),
        nodeid="tests/test_a.py::test_a[llama]",
        longrepr=SimpleNamespace(reprcrash=SimpleNamespace(message=message)),
    )


@pytest.mark.parametrize(
    ("environ", "shown"),
    [
        ({}, "a line\n"),
        (GITHUB, f"::group::{LOG}\na line\n::endgroup::"),
        ({"BUILDKITE": "true"}, f"--- {LOG}\na line\n+++ pytest"),
    ],
)
def test_logs_are_groups_while_they_are_printed(environ: dict[str, str], shown: str) -> None:
    one = report("Captured stdout call", LOG)
    before = list(one.sections)
    with grouped_logs([one], environ):
        assert dict(one.sections) == {"Captured stdout call": "a line\n", LOG: shown}
    assert one.sections == before


def test_github_gets_an_annotation_for_each_test_that_a_server_had_to_do_with() -> None:
    reports = [report(LOG), report("Captured stdout call"), report("inference server died during this test", LOG)]
    lines = annotation_lines(reports, ["left:\n  a"], ["warned"], Path("/work/sub"), GITHUB)
    where = "file=sub/tests/test_a.py,line=7,title=tests/test_a.py%3A%3Atest_a[llama] (llama)"
    assert lines == [
        f"::error {where}::AssertionError: 50%25 off%0Aassert 0",
        f"::error {where}::a line%0A",
        "::error title=infserver::left:%0A  a",
        "::warning title=infserver::warned",
    ]
    assert annotation_lines(reports, ["left"], [], Path("/work"), {}) == []
