"""--infserver-shard and --infserver-save-durations: each job starts its servers, and no test is lost."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

TESTS = """
    import pytest
    pytestmark = pytest.mark.infserver("{0}")
    @pytest.mark.parametrize("number", range(6))
    def test_it(inference_server, number): pass
"""
PLAIN = """
    import pytest
    @pytest.mark.parametrize("number", range(6))
    def test_plain(number): pass
    @pytest.mark.parametrize("number", range(6))
    def test_more(number): pass
"""
STEPS = """
    import pytest
    class TestSteps:
        def test_1(self, inference_server): self.__class__.done = inference_server.name
        def test_2(self, inference_server): assert self.done == inference_server.name
    class TestPlainSteps:
        def test_1(self): self.__class__.done = True
        def test_2(self): assert self.done
"""
NOTE = """
def pytest_runtest_logreport(report):
    if report.when == "call" and not hasattr(report, "node"):
        note("ran", report.nodeid)
"""
SHUFFLE = """
import os, random, pytest
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: random.Random(os.environ["SEED"] + item.path.name).random())
"""


def prepare(project: Any) -> Any:
    project.servers(a=[], b=[], c=[])
    project.files(**{f"test_{name}": TESTS.format(name) for name in "abc"}, test_plain=PLAIN)
    project.conftest(NOTE)
    return project


def launches(project: Any) -> list[str]:
    return [line.split()[1] for line in project.events("started")]


def test_three_jobs_run_each_test_once_and_start_each_server_once(twin_project: Any) -> None:
    project = prepare(twin_project)
    for number in (1, 2, 3):
        result = project.run(f"--infserver-shard={number}/3")
        assert result.ret == 0
        result.stdout.fnmatch_lines(f"infserver: *; shard {number}/3")
    ran = project.events("ran")
    assert len(ran) == 30
    assert set(Counter(ran).values()) == {1}
    assert Counter(launches(project)) == {"a": 1, "b": 1, "c": 1}


def test_jobs_whose_orders_differ_run_each_test_once(inline_project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    project = prepare(inline_project)
    project.files(test_steps=STEPS)
    project.conftest(NOTE + SHUFFLE)
    for number, order in ((1, "servers"), (2, "source")):
        monkeypatch.setenv("SEED", str(number))
        assert project.run(f"--infserver-shard={number}/2", f"--infserver-order={order}").ret == 0
    assert set(Counter(project.events("ran")).values()) == {1}
    assert len(project.events("ran")) == 30 + 8


def test_a_job_that_is_left_without_a_test_is_no_failure(twin_project: Any) -> None:
    project = prepare(twin_project)
    assert project.run("--infserver-shard=4/9", "-k", "test_it and a").ret == 0
    assert launches(project) == []
    # Nothing at all is still what it always was.
    assert project.run("--infserver-shard=1/9", "-k", "nothing").ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_no_server_is_needed(inline_project: Any) -> None:
    project = inline_project
    project.files(test_plain=PLAIN)
    project.conftest(NOTE)
    for number in (1, 2):
        result = project.run(f"--infserver-shard={number}/2")
        result.assert_outcomes(passed=6, deselected=6)
        result.stdout.fnmatch_lines(f"infserver: no server; shard {number}/2")
    assert set(Counter(project.events("ran")).values()) == {1}


def test_what_was_measured_balances_the_jobs(twin_project: Any) -> None:
    project = prepare(twin_project)
    project.files(test_a=TESTS.format("a").replace("pass", "__import__('time').sleep(0.3)"))
    assert project.run("--infserver-save-durations").ret == 0
    saved = json.loads((project.path / "infserver_durations.json").read_text())
    assert len(saved["tests"]) == 30
    assert saved["tests"]["test_a.py::test_it[5-a]"] >= 0.3
    assert sorted(saved["starts"]) == ["a", "b", "c"]
    assert all(seconds > 0 for seconds in saved["starts"].values())
    # Alike, and too long for another one to pay.
    saved["starts"] = dict.fromkeys("abc", 1)
    (project.path / "infserver_durations.json").write_text(json.dumps(saved))
    before = len(launches(project))
    assert project.run("--infserver-shard=1/2").ret == 0
    assert launches(project)[before:] == ["a"]


def test_the_file_of_the_durations_is_where_the_user_wants_it(
    inline_project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = prepare(inline_project)
    assert project.run("--infserver-save-durations=one.json", "-k", "test_it and b").ret == 0
    assert len(json.loads((project.path / "one.json").read_text())["tests"]) == 6
    monkeypatch.setenv("INFSERVER_DURATIONS", "two.json")
    monkeypatch.setenv("INFSERVER_SAVE_DURATIONS", "on")
    assert project.run("-k", "plain").ret == 0
    assert len(json.loads((project.path / "two.json").read_text())["tests"]) == 12
    assert project.run("-k", "plain", "--infserver-save-durations=off", "--infserver-durations=three.json").ret == 0
    assert not (project.path / "three.json").exists()


def test_only_tests_that_passed_are_measured(inline_project: Any) -> None:
    project = prepare(inline_project)
    project.files(
        test_more="""
        import pytest
        def test_fails(): assert 0
        def test_skips(): pytest.skip()
        @pytest.mark.xfail
        def test_xfails(): assert 0
        @pytest.fixture
        def broken(): assert 0
        def test_error(broken): pass
        def test_passes(): pass
        """
    )
    project.run("test_more.py", "--infserver-save-durations")
    assert list(json.loads((project.path / "infserver_durations.json").read_text())["tests"]) == [
        "test_more.py::test_passes"
    ]


def test_durations_that_cannot_be_saved_fail_the_run(twin_project: Any) -> None:
    project = prepare(twin_project)
    result = project.run("--infserver-save-durations=/proc/x/y.json", "-k", "plain")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines("the durations were not saved: *")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--infserver-shard=0/3"], "--infserver-shard: expected I/N with I from 1 to N, as in 1/3, not '0/3'"),
        (["--infserver-shard=4/3"], "--infserver-shard: expected I/N *, not '4/3'"),
        (["--infserver-shard", "first"], "--infserver-shard: expected I/N *, not 'first'"),
        (["--infserver-shard=1/2", "--infserver-durations=broken.json"], "*broken.json: not JSON *"),
        (["--infserver-save-durations=broken.json"], "*broken.json: not JSON *"),
        (
            ["--infserver-save-durations", "test_a.py"],
            "--infserver-save-durations: expected a file that ends in .json, not 'test_a.py'; write it after '='",
        ),
    ],
)
def test_bad_input(twin_project: Any, words: list[str], problem: str) -> None:
    project = prepare(twin_project)
    (project.path / "broken.json").write_text('{"tests": ')
    result = project.run(*words)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(f"ERROR: {problem}")
    assert launches(project) == []
