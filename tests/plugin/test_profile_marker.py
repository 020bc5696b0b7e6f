"""Profiles that tests ask for: whose they are, where they are named, and what is refused before anything starts."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest

SPY: dict[str, Any] = {"profile": {"tool": "py-spy", "on_demand": True, "args": ["--idle", "--format", "raw"]}}
WHOLE = {"profile": {**SPY["profile"], "on_demand": False}}

HOSTILE_SPY = """\
#!{python}
# Says what py-spy says, and does what it is told by MODE.
import os, signal, sys, time
mode = os.environ["SPY_MODE"]
if "--help" in sys.argv:
    sys.exit(print("  -f, --format <format>\\n  -i, --idle"))
output = sys.argv[sys.argv.index("-o") + 1]
def end(*_):
    if mode == "slow":
        time.sleep(6)
    if mode != "nothing":
        open(output, "w").write("stack 1\\n")
    print("py-spy> Wrote raw flamegraph data to", output, "Samples: 3 Errors: 0", flush=True)
    if mode == "loud":
        print("the words of the tool", flush=True)
        os.unlink(output)
    os._exit(0)
signal.signal(signal.SIGINT, end)
if mode == "refuses":
    sys.exit("the words of the tool")
print("py-spy> Sampling process", flush=True)
while True:
    time.sleep(1)
"""


@pytest.fixture
def hostile_spy(project, monkeypatch):
    """Return the settings of a py-spy that goes wrong in the given way."""
    script = project.path / "spy"
    script.write_text(HOSTILE_SPY.format(python=sys.executable))
    script.chmod(0o755)

    def settings(mode: str, **profile: object) -> dict[str, Any]:
        monkeypatch.setenv("SPY_MODE", mode)
        return {"profile": {**SPY["profile"], "binary_path": str(script), **profile}}

    return settings


def summary(result: pytest.RunResult) -> dict[str, str]:
    """Return path to maker of the lines of the summary."""
    text = result.stdout.str().partition(" infserver profiles ")[2]
    lines = re.findall(r"^(\S+): (profiles/\S+)", text, re.MULTILINE)
    return {path: maker for maker, path in lines}


def traces(project) -> set[str]:
    """Return the paths of all traces below the project; each has something in it."""
    found = [path for path in (project.path / "profiles").rglob("*") if path.is_file()]
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


def test_the_option_profiles_every_server_also_one_of_a_factory(project, servers_yaml, run) -> None:
    servers_yaml(SPY, a=[])
    project.files(
        test_1="""
        import time
        def test_a(inference_server): time.sleep(0.1)
        def test_more(inference_server_factory):
            more = inference_server_factory("a", port=None, name="more")
            assert more.settings.profile.tool == "py-spy" and not more.settings.profile.on_demand
            time.sleep(0.1)
        """
    )
    result = run("--infserver-profile=py-spy")
    result.assert_outcomes(passed=2)
    assert summary(result) == {"profiles/a/server.txt": "a", "profiles/more/server.txt": "more"}
    assert traces(project) == set(summary(result))


def test_nobody_else_uses_a_server_while_it_is_profiled(project, servers_yaml) -> None:
    pytest.importorskip("xdist")
    servers_yaml(SPY, a=[])
    project.files(
        test_1="""
        import pytest, time
        from helpers import note
        @pytest.mark.infserver_profile
        @pytest.mark.parametrize("n", range(3))
        def test_spied(inference_server, n):
            note("enter", "spied"); time.sleep(0.2); note("leave", "spied")
        @pytest.mark.parametrize("n", range(6))
        def test_other(inference_server, n):
            note("enter", "other"); time.sleep(0.05); note("leave", "other")
        """
    )
    result = project.run("-n2", "--dist=each", plugins=("xdist",))
    result.assert_outcomes(passed=18)
    users: list[str] = []
    for event in project.events("enter", "leave"):
        kind, who = event.split()
        (users.append if kind == "enter" else users.remove)(who)
        assert "spied" not in users or users == ["spied"]
    assert users == []
    assert len(traces(project)) == 6


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("nothing", "*profiling with py-spy: it has written nothing to *test_1.test_spied-a.txt*"),
        ("loud", "*the words of the tool*"),
        ("refuses", "*the words of the tool*"),
    ],
)
def test_a_trace_that_did_not_come_about_fails_its_test_and_no_other(
    project, servers_yaml, run, hostile_spy, quiet, mode, words
) -> None:
    servers_yaml(hostile_spy(mode), a=[])
    project.files(
        test_1="""
        import pytest
        @pytest.mark.infserver_profile
        def test_spied(inference_server): pass
        def test_after(inference_server): assert inference_server.check_health()
        """
    )
    result = run()
    result.assert_outcomes(passed=1, failed=1)
    quiet(result)
    result.stdout.fnmatch_lines([words])
    assert traces(project) == set()
    assert summary(result) == {}


def test_a_test_that_fails_says_so_before_its_profile_does(project, servers_yaml, run, hostile_spy) -> None:
    servers_yaml(hostile_spy("nothing"), a=[])
    project.files(
        test_1="""
        import pytest
        @pytest.mark.infserver_profile
        def test_spied(inference_server): assert "the test's own" == 0
        """
    )
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E*the test's own*", "*= infserver =*", "a (command): profiling with py-spy: it has written *"]
    )


def test_a_whole_life_without_a_trace_is_an_error_of_the_last_test(project, servers_yaml, run, hostile_spy) -> None:
    servers_yaml(hostile_spy("nothing", on_demand=False), a=[])
    project.files(test_1="def test_1(inference_server): pass\ndef test_2(inference_server): pass")
    result = run()
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_*", "*profiling with py-spy: it has written nothing to *"])


def test_writing_a_trace_that_takes_long_is_shown_meanwhile(project, servers_yaml, hostile_spy) -> None:
    servers_yaml(hostile_spy("slow"), a=[])
    project.files(
        test_1="""
        import pytest
        @pytest.mark.infserver_profile
        def test_spied(inference_server): pass
        """
    )
    result = project.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*infserver: a (command): py-spy writes its trace, * s*"])


def test_what_cannot_be_profiled_is_refused_and_no_server_is_started_for_it(project, servers_yaml, run, quiet) -> None:
    servers_yaml(a=[])
    project.files(
        test_1="""
        import pytest
        @pytest.mark.infserver_profile("pytorch")
        def test_unsupported(inference_server): pass
        @pytest.mark.infserver_profile("amd")
        def test_a_part_of_a_life(inference_server): pass
        @pytest.mark.infserver_profile("perf")
        def test_unknown(inference_server): pass
        @pytest.mark.infserver_profile(tool="py-spy")
        def test_keyword(inference_server): pass
        """
    )
    result = run()
    result.assert_outcomes(errors=4)
    text = quiet(result)
    for words in (
        "profiling with pytorch: backend 'command' has no endpoints for it",
        "profiling with amd: it can profile a server's whole life only",
        "infserver_profile('perf'): unknown profiler; there are nsys, pytorch, amd, py-spy",
        "infserver_profile(tool='py-spy'): give the name of one profiler",
    ):
        assert words in text
    assert project.events("started") == []


@pytest.mark.parametrize(
    "arguments", [["--infserver-profile=nsys"], ["--infserver-profile", "perf"]], ids=["missing", "unknown"]
)
def test_an_option_that_cannot_be_followed_ends_the_run_before_anything_starts(
    project, servers_yaml, monkeypatch, run, quiet, arguments
) -> None:
    servers_yaml(a=[])
    monkeypatch.setenv("PATH", str(project.path))
    project.files(test_1="def test_1(inference_server): pass")
    result = run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = quiet(result)
    assert "--infserver-profile" in text
    assert ("nsys is not on PATH" in text) != ("expected one of nsys, " in text)
    assert project.events() == []
    # Who only looks needs no profiler.
    if "nsys" in arguments[0]:
        project.run(*arguments, "--collect-only").assert_outcomes()
        text = quiet(project.run(*arguments, "--infserver-dry-run"))
        assert re.search(
            r"^a: \S*python\S* .*fake_engine.py.*\n  note: profiling with nsys: nsys is not on PATH", text, re.M
        )


def test_a_profiler_that_is_missing_is_no_matter_to_who_needs_none(project, servers_yaml, run, monkeypatch) -> None:
    path = servers_yaml(a=[], b=[])
    path.write_text(path.read_text().replace("  b:\n", "  b:\n    profile: {tool: nsys}\n"))
    monkeypatch.setenv("PATH", str(project.path))
    project.files(
        test_1="""
        import pytest
        def test_plain(): pass
        @pytest.mark.infserver("a")
        def test_a(inference_server): pass
        @pytest.mark.infserver("b")
        def test_b(inference_server): pass
        """
    )
    assert run("-k", "plain or test_a").parseoutcomes()["passed"] == 2
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.re_match_lines([r"ERROR: servers\.yaml:\d+:15: server 'b': profiling with nsys: nsys is not on PATH"])
    assert project.events("test") == ["test test_plain", "test test_a[a]"]


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


def test_a_rerun_makes_a_trace_of_its_own(project, servers_yaml, run) -> None:
    pytest.importorskip("pytest_rerunfailures")
    servers_yaml(SPY, a=[])
    project.files(
        test_1="""
        import pathlib, pytest, time
        @pytest.mark.infserver_profile
        def test_spied(inference_server):
            time.sleep(0.1)
            mark = pathlib.Path(__file__).with_name("ran")
            first = not mark.exists()
            mark.touch()
            assert not first
        """
    )
    result = project.run("--reruns=1", plugins=("pytest_rerunfailures",))
    result.assert_outcomes(passed=1)
    assert traces(project) == {"profiles/a/test_1.test_spied-a.txt", "profiles/a/test_1.test_spied-a-2.txt"}
    assert set(summary(result)) == traces(project)


def test_a_server_that_dies_in_its_profile_fails_the_test_and_the_next_one_has_a_profile_again(
    project, servers_yaml, run
) -> None:
    servers_yaml(SPY, a=[])
    project.files(
        test_1="""
        import os, pytest, signal, time
        @pytest.mark.infserver_profile
        def test_1(inference_server):
            time.sleep(0.2)
            os.kill(inference_server.pid, signal.SIGKILL)
            inference_server.wait_death(10)
        @pytest.mark.infserver_profile
        def test_2(inference_server):
            time.sleep(0.2)
        """
    )
    result = run("-p", "no:randomly")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*a (command) was killed by SIGKILL*"])
    assert "profiles/a/test_1.test_2-a.txt" in traces(project)
    assert spies(project) == []


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


def test_the_first_failure_of_x_in_a_profile_leaves_nothing(project, servers_yaml, run) -> None:
    servers_yaml(SPY, a=[])
    project.files(
        test_1="""
        import pytest, time
        @pytest.mark.infserver_profile
        @pytest.mark.parametrize("n", range(4))
        def test_1(inference_server, n):
            time.sleep(0.1)
            pytest.exit("enough") if n == 1 else None
        """
    )
    run("-x", "-p", "no:randomly")
    assert spies(project) == []


def test_two_runs_at_once_do_not_share_a_trace(project, servers_yaml) -> None:
    servers_yaml(SPY, a=[])
    project.files(
        test_1="""
        import pytest, time
        @pytest.mark.infserver_profile
        def test_1(inference_server):
            time.sleep(1)
        """
    )
    command = [sys.executable, "-m", "pytest", "-p", "pytest_infserver.plugin", "-p", "no:cacheprovider"]
    runs = [
        subprocess.Popen(
            [*command, "--infserver-config=servers.yaml"], cwd=project.path, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [one.communicate(timeout=60)[0] for one in runs]
    assert [one.returncode for one in runs] == [0, 0], outputs
    assert traces(project) == {"profiles/a/test_1.test_1-a.txt", "profiles/a/test_1.test_1-a-2.txt"}


def test_a_marker_that_profiles_nothing_is_no_silent_nothing(project, servers_yaml, run, quiet) -> None:
    servers_yaml(SPY, a=[])
    project.files(
        test_1="""
        import pytest
        @pytest.mark.infserver_profile
        def test_factory(inference_server_factory):
            inference_server_factory("a", port=None)
        @pytest.mark.infserver_profile
        def test_late(request):
            assert request.getfixturevalue("inference_server").check_health()
        """
    )
    result = run()
    result.assert_outcomes(failed=2)
    assert "infserver_profile profiles what a test takes as 'inference_server'" in quiet(result)
    assert traces(project) == set()


def test_a_marker_without_a_server_is_a_warning(project, servers_yaml) -> None:
    servers_yaml(a=[])
    project.files(
        test_1="""
        import pytest
        @pytest.mark.infserver_profile(1, 2, three=4)
        def test_1(): pass
        """
    )
    result = project.run()
    result.assert_outcomes(passed=1)
    assert project.events("started") == []
    result.stdout.fnmatch_lines(["*PytestWarning: infserver_profile has no effect: test_1.py::test_1 takes no *"])
