"""Profiles of tests whose servers run on a cluster."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest

pytestmark = pytest.mark.usefixtures("on_cluster", "hard_limit")


SPY: dict[str, Any] = {"profile": {"tool": "py-spy", "on_demand": True, "args": ["--idle", "--format", "raw"]}}


WHOLE = {"profile": {**SPY["profile"], "on_demand": False}}


def summary(result: pytest.RunResult) -> dict[str, str]:
    """Return path to maker of the lines of the summary."""
    text = result.stdout.str().partition(" infserver profiles ")[2]
    lines = re.findall(r"^(\S+): (profiles/\S+)", text, re.MULTILINE)
    return {path: maker for maker, path in lines}


def traces(project) -> set[str]:
    """Return the paths of all traces below the project; each has something in it."""
    found = [path for path in (project.path / "profiles").glob("*/**/*") if path.is_file()]
    assert all(path.stat().st_size for path in found)
    return {str(path.relative_to(project.path)) for path in found}


def spies(project) -> list[str]:
    """Return the command lines of all py-spies that still write into the project."""
    lines = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    return [line for line in lines if " record " in line and str(project.path) in line]


def test_the_trace_of_a_test_is_named_after_it_and_shown_wherever_one_looks(project, servers_yaml, run) -> None:
    servers_yaml(SPY, a=[], b=[])
    project.files(
        test_1="""
        import pytest, time
        from helpers import get
        @pytest.mark.infserver_profile
        @pytest.mark.parametrize("x", ["1/2", "ü"])
        def test_spied(inference_server, x):
            time.sleep(0.1)
        @pytest.mark.infserver("a")
        @pytest.mark.infserver_profile("py-spy")
        class TestClass:
            def test_fails(self, inference_server):
                time.sleep(0.1)
                assert 0
        @pytest.mark.infserver_needs("a", "b")
        @pytest.mark.infserver_profile
        def test_two(inference_servers):
            time.sleep(0.1)
        @pytest.mark.infserver("b")
        def test_block(inference_server):
            with inference_server.profiling("a block") as files:
                time.sleep(0.1)
            assert [path.name for path in files] == ["a-block.txt"] and files[0].stat().st_size
        def test_plain(inference_server): pass
        @pytest.mark.infserver_profile
        def test_without_a_server(): pass
        """
    )
    result = run("--junitxml=report.xml")
    result.assert_outcomes(passed=9, failed=1)
    found = traces(project)
    shown = summary(result)
    assert set(shown) == found
    assert len(found) == 8
    for name in ("a", "b"):
        assert shown[f"profiles/{name}/test_1.test_spied-1-2-{name}.txt"] == f"test_1.py::test_spied[1/2-{name}]"
        assert shown[f"profiles/{name}/test_1.test_two.txt"] == "test_1.py::test_two"
    assert shown["profiles/a/test_1.TestClass.test_fails-a.txt"] == "test_1.py::TestClass::test_fails[a]"
    assert shown["profiles/b/a-block.txt"] == "test_1.py::test_block[b]"
    # In the failed test's own report, too.
    result.stdout.re_match_lines([r"-+ infserver profile -+", r"profiles/a/test_1\.TestClass\.test_fails-a\.txt"])
    cases = ElementTree.parse(project.path / "report.xml").iter("testcase")
    properties = {
        str(case.get("name")): sorted(
            str(one.get("value")) for one in case.iter("property") if one.get("name") == "infserver_profile"
        )
        for case in cases
    }
    in_report = {path for paths in properties.values() for path in paths}
    assert in_report == {str(project.path / path) for path in found}
    assert len(properties["test_two"]) == 2
    assert properties["test_plain[a]"] == properties["test_without_a_server"] == []
    assert spies(project) == []


def test_the_whole_life_gives_way_to_a_test_and_is_shown_as_the_servers(project, servers_yaml, run) -> None:
    servers_yaml(WHOLE, a=[], b=[])
    project.files(
        test_1="""
        import pytest, time
        def test_before(inference_server): time.sleep(0.1)
        @pytest.mark.infserver("a")
        @pytest.mark.infserver_profile
        def test_spied(inference_server): time.sleep(0.1)
        """
    )
    result = run("-p", "no:randomly")
    result.assert_outcomes(passed=3)
    shown = summary(result)
    assert set(shown) == traces(project)
    assert shown["profiles/b/server.txt"] == "b"
    assert shown["profiles/a/server.txt"] == shown["profiles/a/server-2.txt"] == "a"
    assert shown["profiles/a/test_1.test_spied-a.txt"] == "test_1.py::test_spied[a]"
    assert len(shown) == 4


def test_a_test_that_stops_or_restarts_its_server_has_its_trace(project, servers_yaml, run) -> None:
    servers_yaml(SPY, a=[])
    project.files(
        test_1="""
        import pytest, time
        pytestmark = [pytest.mark.infserver(exclusive=True), pytest.mark.infserver_profile]
        def test_stop(inference_server):
            time.sleep(0.1)
            inference_server.stop()
        def test_restart(inference_server):
            time.sleep(0.1)
            inference_server.stop()
            inference_server.start()
        def test_after(inference_server):
            time.sleep(0.1)
        """
    )
    result = run()
    result.assert_outcomes(passed=3)
    assert summary(result) == {
        f"profiles/a/test_1.{name}-a.txt": f"test_1.py::{name}[a]"
        for name in ("test_stop", "test_restart", "test_after")
    }
    assert traces(project) == set(summary(result))


def test_blocks_of_two_workers_take_turns(project, servers_yaml) -> None:
    pytest.importorskip("xdist")
    servers_yaml(SPY, a=[])
    project.files(
        test_1="""
        import pytest, time
        @pytest.mark.parametrize("n", range(6))
        def test_block(inference_server, n):
            with inference_server.profiling(f"block {n}") as files:
                time.sleep(0.3)
            assert len(files) == 1
        """
    )
    result = project.run("-n2", plugins=("xdist",))
    result.assert_outcomes(passed=6)
    assert traces(project) == set(summary(result)) == {f"profiles/a/block-{n}.txt" for n in range(6)}


def test_a_worker_that_is_killed_in_a_profile_stands_in_nobodys_way(project, servers_yaml) -> None:
    pytest.importorskip("xdist")
    servers_yaml(SPY, a=[])
    project.files(
        test_1="""
        import os, pytest, signal, time
        @pytest.mark.infserver_profile
        def test_1(inference_server):
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
        @pytest.mark.infserver_profile
        @pytest.mark.parametrize("n", range(3))
        def test_2(inference_server, n):
            time.sleep(0.2)
        """
    )
    result = project.run("-n1", "-p", "no:randomly", plugins=("xdist",))
    result.assert_outcomes(passed=3, failed=1)
    assert {f"profiles/a/test_1.test_2-{n}-a.txt" for n in range(3)} <= traces(project)
    assert spies(project) == []


EVERY_DAY = {
    test_blocks_of_two_workers_take_turns: (),
    test_the_trace_of_a_test_is_named_after_it_and_shown_wherever_one_looks: ("n2",),
}
"""See `conftest`."""
