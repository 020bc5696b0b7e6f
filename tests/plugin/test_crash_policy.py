"""A server that dies: whom that fails, and what follows."""

from __future__ import annotations

import re

import pytest
from installed import installed
from parts import part


@pytest.fixture(
    scope="module",
    params=[pytest.param((), marks=pytest.mark.nightly), ("-n2",)],
    ids=["alone", "n2"],
)
def shared(request, shared_project):
    """A project with a file of tests for each story, each with servers of its own; and what its run showed."""
    if request.param:
        pytest.importorskip("xdist")
    project = shared_project()
    project.servers(dies=[], lives=[], rerun_a=[], rerun_b=[])
    project.files(test_restart=RESTART, test_rerun=RERUN)
    plugins = (*(("xdist",) if request.param else ()), *installed("pytest_rerunfailures"))
    return project, project.run("--infserver-max-servers=2", *request.param, plugins=plugins)


@pytest.fixture
def everything(shared):
    """Return the shared project."""
    return shared[0]


@pytest.fixture
def result(shared):
    """Return what the shared project's run showed."""
    return shared[1]


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "n2"])
def test_fail_fails_the_later_tests_at_once(project, workers) -> None:
    if workers:
        pytest.importorskip("xdist")
    project.servers(a=["--delay=1"])
    project.files(
        test_1="""
        import pytest, time
        from helpers import kill, note
        @pytest.mark.parametrize("n", range(6))
        def test_it(inference_server, n):
            note("ran")
            if n == 0: kill(inference_server)
            elif n == 1: time.sleep(1)
        """
    )
    result = project.run("--infserver-on-crash=fail", *workers, plugins=("xdist",) if workers else ())
    outcomes = result.parseoutcomes()
    ran = len(project.events("ran"))
    assert ran in (1, 2)
    assert outcomes == {"failed": ran, "errors": 6 - ran}
    # Two tests at most had it when it died.
    assert result.stdout.str().count("has died and is not restarted (--infserver-on-crash=fail)") >= 6 - max(ran, 2)
    assert project.events("started", "stopped") == ["started a", "stopped a gone"]


RESTART = """
import pytest, time
from helpers import get, kill, note
@pytest.mark.infserver("dies")
@pytest.mark.parametrize("n", range(12))
def test_dies(inference_server, n):
    note("ran", n)
    answer = get(inference_server, "/argv")
    assert answer["pid"] == inference_server.pid
    note("url", inference_server.server_url, inference_server.port)
    kill(inference_server)
@pytest.mark.infserver("lives")
@pytest.mark.parametrize("n", range(4))
def test_lives(inference_server, n):
    if n == 0:
        kill(inference_server)
        note("killed")
    end = time.monotonic() + 20
    while "killed" not in open("events.txt").read() and time.monotonic() < end: time.sleep(0.02)
    get(inference_server, "/health")
"""


def test_restart_gives_the_same_port_and_three_of_them_at_most(everything, result) -> None:
    outcomes = everything.outcomes("test_restart")
    ran = len(everything.events("ran"))
    assert len(set(everything.events("url"))) == 1
    assert everything.events().count("started dies") == 4
    # Once more after its death, and whenever it has made way for another one.
    assert len(everything.events("started", of=["lives"])) == 1 + len(everything.events("stopped", of=["lives"]))
    # Each of its four lives may have two users.
    assert 4 <= ran <= 8
    # Whoever of the other one had it when it died fails in its call, or already in its setup.
    assert outcomes["errors"] in (12 - ran, 13 - ran)
    assert outcomes["passed"] in (2, 3)
    assert sum(outcomes.values()) == 16
    part(result, "test_dies").fnmatch_lines(["*has died 4 times and is not restarted any more*"])


RERUN = """
import pytest
from helpers import get, kill
pytestmark = [pytest.mark.infserver("rerun_a", "rerun_b"), pytest.mark.flaky(reruns=1)]
runs = []
def test_dies_first(inference_server):
    runs.append(inference_server.name)
    if runs.count(inference_server.name) == 1: kill(inference_server)
    get(inference_server, "/health")
@pytest.mark.parametrize("n", range(3))
def test_fine(inference_server, n): get(inference_server, "/health")
"""


def test_rerunfailures_gets_a_living_server(everything, result) -> None:
    pytest.importorskip("pytest_rerunfailures")
    assert "INTERNALERROR" not in result.stdout.str()
    outcomes = everything.outcomes("test_rerun")
    assert "failed" not in outcomes
    # One beside the test that kills may have passed when its server dies: that is told after its teardown, when nobody
    # repeats it any more.
    late = re.findall(r"^_+ ERROR at (\w+) of (test_\w+)\[.*rerun_[ab]\] _+$", result.stdout.str(), re.MULTILINE)
    assert set(late) <= {("teardown", "test_fine")}
    assert outcomes.get("errors", 0) == len(late) <= 2
    assert outcomes["rerun"] >= 2
    # A test beside the one that kills may pass, have its server die before its teardown, and pass once more.
    assert 8 <= outcomes["passed"] <= 8 + outcomes["rerun"] - 2
    servers = ("rerun_a", "rerun_b")
    assert sorted(everything.events("started", of=servers)) == ["started rerun_a"] * 2 + ["started rerun_b"] * 2
    assert sorted(everything.events("stopped", of=servers)) == ["stopped rerun_a gone", "stopped rerun_b gone"]


def test_all_who_use_it_fail_with_its_reason_and_later_ones_pass(project) -> None:
    pytest.importorskip("xdist")
    project.servers(a=["--delay=0.5"])
    project.files(
        test_1="""
        import pytest, time
        from helpers import kill, note
        def meet():
            note("here")
            while open("events.txt").read().count("here") < 2: time.sleep(0.02)
        def test_kills(inference_server):
            meet()
            kill(inference_server, "/exit?code=3&say=fatal:%20out%20of%20cheese")
        """,
        test_2="""
        import time
        from test_1 import meet
        def test_beside(inference_server):
            meet()
            time.sleep(1)
        """,
        test_3="""
        import pytest
        from helpers import get
        @pytest.mark.parametrize("n", range(6))
        def test_later(inference_server, n): assert get(inference_server, "/argv")["pid"] == inference_server.pid
        """,
    )
    result = project.run("-n2", "-rA", plugins=("xdist",))
    result.assert_outcomes(passed=6, failed=2)
    for name in ("test_1.py::test_kills", "test_2.py::test_beside"):
        result.stdout.fnmatch_lines([f"FAILED {name}[[]a]*"])
    assert len(re.findall(r"^(?:E +[\w.]+: )?a \(command\) exited with code 3", result.stdout.str(), re.MULTILINE)) >= 2
    assert result.stdout.str().count("out of cheese") >= 2
    assert project.events("started", "stopped") == ["started a", "started a", "stopped a gone"]
