"""What becomes of tests when a server on a cluster dies."""

from __future__ import annotations

import re
import time

import pytest

pytestmark = pytest.mark.usefixtures("on_cluster", "hard_limit")


def test_fail_fails_the_later_tests_at_once(project, servers_yaml, run) -> None:
    servers_yaml(a=["--delay=1"])
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
    result = run("--infserver-on-crash=fail")
    outcomes = result.parseoutcomes()
    ran = len(project.events("ran"))
    assert ran in (1, 2)
    assert outcomes == {"failed": ran, "errors": 6 - ran}
    # Two tests at most had it when it died.
    assert result.stdout.str().count("has died and is not restarted (--infserver-on-crash=fail)") >= 6 - max(ran, 2)
    assert project.events("started", "stopped") == ["started a", "stopped a gone"]


def test_restart_gives_the_same_port_and_three_of_them_at_most(project, servers_yaml, run) -> None:
    servers_yaml(a=[], b=[])
    project.files(
        test_1="""
        import pytest, time
        from helpers import get, kill, note
        @pytest.mark.infserver("a")
        @pytest.mark.parametrize("n", range(12))
        def test_dies(inference_server, n):
            note("ran", n)
            answer = get(inference_server, "/argv")
            assert answer["pid"] == inference_server.pid
            note("url", inference_server.server_url, inference_server.port)
            kill(inference_server)
        @pytest.mark.infserver("b")
        @pytest.mark.parametrize("n", range(4))
        def test_lives(inference_server, n):
            if n == 0:
                kill(inference_server)
                note("killed")
            end = time.monotonic() + 20
            while "killed" not in open("events.txt").read() and time.monotonic() < end: time.sleep(0.02)
            get(inference_server, "/health")
        """
    )
    result = run("--infserver-max-servers=2", "-p", "no:randomly")
    outcomes = result.parseoutcomes()
    ran = len(project.events("ran"))
    assert len(set(project.events("url"))) == 1
    assert project.events().count("started a") == 4
    assert project.events().count("started b") == 2
    # Each of its four lives may have two users.
    assert 4 <= ran <= 8
    # Whoever of b had it when it died fails in its call, or already in its setup.
    assert outcomes["errors"] in (12 - ran, 13 - ran)
    assert outcomes["passed"] in (2, 3)
    assert sum(outcomes.values()) == 16
    result.stdout.fnmatch_lines(["*has died 4 times and is not restarted any more*"])


def test_all_who_use_it_fail_with_its_reason_and_later_ones_pass(project, servers_yaml) -> None:
    pytest.importorskip("xdist")
    servers_yaml(a=["--delay=0.5"])
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


def test_rerunfailures_gets_a_living_server(project, servers_yaml, run) -> None:
    pytest.importorskip("pytest_rerunfailures")
    servers_yaml(a=[], b=[])
    project.files(
        test_1="""
        import pytest
        from helpers import get, kill
        runs = []
        def test_dies_first(inference_server):
            runs.append(inference_server.name)
            if runs.count(inference_server.name) == 1: kill(inference_server)
            get(inference_server, "/health")
        @pytest.mark.parametrize("n", range(3))
        def test_fine(inference_server, n): get(inference_server, "/health")
        """
    )
    begin = time.monotonic()
    result = run("--reruns=1", "-p", "pytest_rerunfailures")
    assert time.monotonic() - begin < 40
    assert "INTERNALERROR" not in result.stdout.str()
    outcomes = result.parseoutcomes()
    assert not {"failed", "errors"} & outcomes.keys()
    assert outcomes["rerun"] >= 2
    # A test beside the one that kills may pass, have its server die before its teardown, and pass once more.
    assert 8 <= outcomes["passed"] <= 8 + outcomes["rerun"] - 2
    assert sorted(project.events("started")) == ["started a"] * 2 + ["started b"] * 2
    assert sorted(project.events("stopped")) == ["stopped a gone", "stopped b gone"]


EVERY_DAY = {test_all_who_use_it_fail_with_its_reason_and_later_ones_pass: ()}
"""See `conftest`."""
