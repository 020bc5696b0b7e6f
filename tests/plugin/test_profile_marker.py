"""Profiles that tests ask for: whose they are, where they are named, and what is refused before anything starts."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest
from fake_servers import fake_block
from installed import installed
from parts import part

SPY: dict[str, Any] = {"profile": {"tool": "py-spy", "on_demand": True, "args": ["--idle", "--format", "raw"]}}
WHOLE = {"profile": {**SPY["profile"], "on_demand": False}}

HOSTILE_SPY = """\
#!{python}
# Says what py-spy says, and goes wrong in the way that its name tells.
import os, signal, sys, time
mode = os.path.basename(sys.argv[0]).removeprefix("spy-")
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


def hostile_spy(folder: Path, mode: str, **profile: object) -> dict[str, Any]:
    """Return the settings of a py-spy that goes wrong in the given way."""
    script = folder / f"spy-{mode}"
    script.write_text(HOSTILE_SPY.format(python=sys.executable))
    script.chmod(0o755)
    return {"profile": {**SPY["profile"], "binary_path": str(script), **profile}}


@pytest.fixture(
    scope="module",
    params=[pytest.param((), marks=pytest.mark.nightly), ("-n2",)],
    ids=["alone", "n2"],
)
def shared(request, shared_project):
    """A project with a file of tests for each matter, each with servers of its own; and what its run showed."""
    if request.param:
        pytest.importorskip("xdist")
    project = shared_project()
    path = project.path
    project.servers(
        **{name: fake_block(**SPY) for name in ("a", "b", "restarts", "blocks", "rerun", "dies", "elsewhere")},
        **{name: fake_block(**WHOLE) for name in ("whole", "whole_b")},
        **{mode: fake_block(**hostile_spy(path, mode)) for mode in ("nothing", "loud", "refuses")},
        fails_first=fake_block(**hostile_spy(path, "nothing")),
        no_life=fake_block(**hostile_spy(path, "nothing", on_demand=False)),
        plain=[],
    )
    project.files(
        test_named=NAMED,
        test_whole=WHOLE_LIFE,
        test_hostile=HOSTILE,
        test_first=FAILS_FIRST,
        test_life=NO_LIFE,
        test_refused=REFUSED,
        test_restart=RESTARTS,
        test_blocks=BLOCKS,
        test_rerun=RERUN,
        test_dies=DIES,
        test_elsewhere=ELSEWHERE,
    )
    plugins = ("xdist",) if request.param else ()
    arguments = ("--junitxml=report.xml", "--infserver-max-servers=16", *request.param)
    return project, project.run(*arguments, plugins=(*plugins, *installed("pytest_rerunfailures")))


@pytest.fixture
def everything(shared):
    """Return the shared project."""
    return shared[0]


@pytest.fixture
def result(shared):
    """Return what the shared project's run showed."""
    return shared[1]


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


def those_of(paths: Iterable[str], *servers: str) -> set[str]:
    """Return those of the paths that are traces of these servers."""
    return {path for path in paths if path.split("/")[1] in servers}


def spies(project) -> list[str]:
    """Return the command lines of all py-spies that still write into the project."""
    lines = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    return [line for line in lines if " record " in line and str(project.path) in line]


def test_no_profiler_is_left_and_nothing_of_the_inside_is_shown(everything, result, quiet) -> None:
    assert spies(everything) == []
    quiet(result)


NAMED = """
import pytest, time
from helpers import get
@pytest.mark.infserver("a", "b")
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
@pytest.mark.infserver("a", "b")
def test_plain(inference_server): pass
@pytest.mark.infserver_profile
def test_without_a_server(): pass
"""


def test_the_trace_of_a_test_is_named_after_it_and_shown_wherever_one_looks(everything, result) -> None:
    assert everything.outcomes("test_named") == {"passed": 9, "failed": 1}
    found = those_of(traces(everything), "a", "b")
    shown = summary(result)
    assert those_of(shown, "a", "b") == found
    assert len(found) == 8
    for name in ("a", "b"):
        assert (
            shown[f"profiles/{name}/test_named.test_spied-1-2-{name}.txt"] == f"test_named.py::test_spied[1/2-{name}]"
        )
        assert shown[f"profiles/{name}/test_named.test_two.txt"] == "test_named.py::test_two"
    assert shown["profiles/a/test_named.TestClass.test_fails-a.txt"] == "test_named.py::TestClass::test_fails[a]"
    assert shown["profiles/b/a-block.txt"] == "test_named.py::test_block[b]"
    # In the failed test's own report, too.
    lines = [r"-+ infserver profile -+", r"profiles/a/test_named\.TestClass\.test_fails-a\.txt"]
    part(result, "test_fails").re_match_lines(lines)
    cases = ElementTree.parse(everything.path / "report.xml").iter("testcase")
    properties = {
        str(case.get("name")): sorted(
            str(one.get("value")) for one in case.iter("property") if one.get("name") == "infserver_profile"
        )
        for case in cases
        if str(case.get("classname")).startswith("test_named")
    }
    in_report = {path for paths in properties.values() for path in paths}
    assert in_report == {str(everything.path / path) for path in found}
    assert len(properties["test_two"]) == 2
    assert properties["test_plain[a]"] == properties["test_without_a_server"] == []


WHOLE_LIFE = """
import pytest, time
@pytest.mark.infserver("whole*")
def test_before(inference_server): time.sleep(0.1)
@pytest.mark.infserver("whole")
@pytest.mark.infserver_profile
def test_spied_in_a_life(inference_server): time.sleep(0.1)
"""


def test_the_whole_life_gives_way_to_a_test_and_is_shown_as_the_servers(everything, result) -> None:
    assert everything.outcomes("test_whole") == {"passed": 3}
    shown = summary(result)
    found = those_of(shown, "whole", "whole_b")
    assert found == those_of(traces(everything), "whole", "whole_b")
    assert shown["profiles/whole_b/server.txt"] == "whole_b"
    assert shown["profiles/whole/server.txt"] == shown["profiles/whole/server-2.txt"] == "whole"
    name = "test_spied_in_a_life"
    assert shown[f"profiles/whole/test_whole.{name}-whole.txt"] == f"test_whole.py::{name}[whole]"
    assert len(found) == 4


HOSTILE = """
import pytest
pytestmark = pytest.mark.infserver("nothing", "loud", "refuses")
@pytest.mark.infserver_profile
def test_hostile(inference_server): pass
def test_after(inference_server): assert inference_server.check_health()
"""


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("nothing", "*profiling with py-spy: it has written nothing to *test_hostile.test_hostile-nothing.txt*"),
        ("loud", "*the words of the tool*"),
        ("refuses", "*the words of the tool*"),
    ],
)
def test_a_trace_that_did_not_come_about_fails_its_test_and_no_other(everything, result, mode, words) -> None:
    assert everything.outcomes("test_hostile") == {"passed": 3, "failed": 3}
    result.stdout.fnmatch_lines([f"FAILED test_hostile.py::test_hostile[[]{mode}]*"])
    part(result, f"test_hostile[{mode}]").fnmatch_lines([words])
    assert those_of(traces(everything), mode) == set()
    assert those_of(summary(result), mode) == set()


FAILS_FIRST = """
import pytest
@pytest.mark.infserver("fails_first")
@pytest.mark.infserver_profile
def test_fails_first(inference_server): assert "the test's own" == 0
"""


def test_a_test_that_fails_says_so_before_its_profile_does(everything, result) -> None:
    assert everything.outcomes("test_first") == {"failed": 1}
    part(result, "test_fails_first").fnmatch_lines(["E*the test's own*"])
    words = "fails_first (command): profiling with py-spy: it has written *"
    result.stdout.fnmatch_lines(["E*the test's own*", "*= infserver =*", words])


NO_LIFE = """
import pytest
pytestmark = pytest.mark.infserver("no_life")
def test_life_1(inference_server): pass
def test_life_2(inference_server): pass
"""


def test_a_whole_life_without_a_trace_is_an_error_of_the_last_test(everything, result) -> None:
    assert everything.outcomes("test_life") == {"passed": 2, "errors": 1}
    lines = ["*ERROR at teardown of test_life_*", "*profiling with py-spy: it has written nothing to *"]
    part(result, "test_life_1", "test_life_2").fnmatch_lines(lines)


REFUSED = """
import pytest
pytestmark = pytest.mark.infserver("plain")
@pytest.mark.infserver_profile("pytorch")
def test_unsupported(inference_server): pass
@pytest.mark.infserver_profile("amd")
def test_a_part_of_a_life(inference_server): pass
@pytest.mark.infserver_profile("perf")
def test_unknown(inference_server): pass
@pytest.mark.infserver_profile(tool="py-spy")
def test_keyword(inference_server): pass
"""


def test_what_cannot_be_profiled_is_refused_and_no_server_is_started_for_it(everything, result) -> None:
    assert everything.outcomes("test_refused") == {"errors": 4}
    for name, words in {
        "test_unsupported": "profiling with pytorch: backend 'command' has no endpoints for it",
        "test_a_part_of_a_life": "profiling with amd: it can profile a server's whole life only",
        "test_unknown": "infserver_profile('perf'): unknown profiler; there are nsys, pytorch, amd, py-spy",
        "test_keyword": "infserver_profile(tool='py-spy'): give the name of one profiler",
    }.items():
        assert words in part(result, name).str()
    assert everything.events("started", of=["plain"]) == []


RESTARTS = """
import pytest, time
pytestmark = [pytest.mark.infserver("restarts", exclusive=True), pytest.mark.infserver_profile]
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


def test_a_test_that_stops_or_restarts_its_server_has_its_trace(everything, result) -> None:
    assert everything.outcomes("test_restart") == {"passed": 3}
    shown = {path: maker for path, maker in summary(result).items() if those_of([path], "restarts")}
    assert shown == {
        f"profiles/restarts/test_restart.{name}-restarts.txt": f"test_restart.py::{name}[restarts]"
        for name in ("test_stop", "test_restart", "test_after")
    }
    assert those_of(traces(everything), "restarts") == set(shown)


BLOCKS = """
import pytest, time
@pytest.mark.infserver("blocks")
@pytest.mark.parametrize("n", range(6))
def test_block(inference_server, n):
    with inference_server.profiling(f"block {n}") as files:
        time.sleep(0.3)
    assert len(files) == 1
"""


def test_blocks_of_two_workers_take_turns(everything, result) -> None:
    assert everything.outcomes("test_blocks") == {"passed": 6}
    wanted = {f"profiles/blocks/block-{n}.txt" for n in range(6)}
    assert those_of(traces(everything), "blocks") == those_of(summary(result), "blocks") == wanted


RERUN = """
import pathlib, pytest, time
@pytest.mark.flaky(reruns=1)
@pytest.mark.infserver("rerun")
@pytest.mark.infserver_profile
def test_twice(inference_server):
    time.sleep(0.1)
    mark = pathlib.Path(__file__).with_name("ran")
    first = not mark.exists()
    mark.touch()
    assert not first
"""


def test_a_rerun_makes_a_trace_of_its_own(everything, result) -> None:
    pytest.importorskip("pytest_rerunfailures")
    assert everything.outcomes("test_rerun") == {"passed": 1, "rerun": 1}
    found = those_of(traces(everything), "rerun")
    assert found == {f"profiles/rerun/test_rerun.test_twice-rerun{end}.txt" for end in ("", "-2")}
    assert those_of(summary(result), "rerun") == found


DIES = """
import os, pytest, signal, time
pytestmark = [pytest.mark.infserver("dies"), pytest.mark.infserver_profile]
def test_dies_1(inference_server):
    time.sleep(0.2)
    os.kill(inference_server.pid, signal.SIGKILL)
    inference_server.wait_death(10)
def test_dies_2(inference_server):
    time.sleep(0.2)
"""


def test_a_server_that_dies_in_its_profile_fails_the_test_and_the_next_one_has_a_profile_again(
    everything, result
) -> None:
    assert everything.outcomes("test_dies") == {"passed": 1, "failed": 1}
    part(result, "test_dies_1").fnmatch_lines(["*dies (command) was killed by SIGKILL*"])
    assert "profiles/dies/test_dies.test_dies_2-dies.txt" in traces(everything)


ELSEWHERE = """
import pytest
pytestmark = [pytest.mark.infserver("elsewhere"), pytest.mark.infserver_profile]
def test_factory(inference_server_factory):
    inference_server_factory("elsewhere", port=None)
def test_late(request):
    assert request.getfixturevalue("inference_server").check_health()
"""


def test_a_marker_that_profiles_nothing_is_no_silent_nothing(everything, result) -> None:
    assert everything.outcomes("test_elsewhere") == {"failed": 2}
    for name in ("test_factory", "test_late"):
        assert "infserver_profile profiles what a test takes as 'inference_server'" in part(result, name).str()
    assert those_of(traces(everything), "elsewhere") == set()


def check_the_option(project, *arguments: str, **more: Any) -> None:
    project.servers(SPY, a=[])
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
    result = project.run("--infserver-profile=py-spy", *arguments, **more)
    result.assert_outcomes(passed=2)
    assert summary(result) == {"profiles/a/server.txt": "a", "profiles/more/server.txt": "more"}
    assert traces(project) == set(summary(result))


@pytest.mark.promise
def test_the_option_profiles_every_server_also_one_of_a_factory(inline_project) -> None:
    check_the_option(inline_project)


def test_the_option_profiles_every_server_also_one_of_a_workers_factory(project) -> None:
    pytest.importorskip("xdist")
    check_the_option(project, "-n2", plugins=("xdist",))


def test_nobody_else_uses_a_server_while_it_is_profiled(project) -> None:
    pytest.importorskip("xdist")
    project.servers(SPY, a=[])
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


def test_writing_a_trace_that_takes_long_is_shown_meanwhile(inline_project) -> None:
    inline_project.servers(hostile_spy(inline_project.path, "slow"), a=[])
    inline_project.files(
        test_1="""
        import pytest
        @pytest.mark.infserver_profile
        def test_spied(inference_server): pass
        """
    )
    result = inline_project.run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*infserver: a (command): py-spy writes its trace, * s*"])


def check_a_refused_option(project, result: pytest.RunResult, text: str) -> None:
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--infserver-profile" in text
    assert ("nsys is not on PATH" in text) != ("expected one of nsys, " in text)
    assert project.events() == []


@pytest.mark.parametrize(
    "arguments", [["--infserver-profile=nsys"], ["--infserver-profile", "perf"]], ids=["missing", "unknown"]
)
def test_an_option_that_cannot_be_followed_ends_the_run_before_anything_starts(
    inline_project, monkeypatch, quiet, arguments
) -> None:
    inline_project.servers(a=[])
    monkeypatch.setenv("PATH", str(inline_project.path))
    inline_project.files(test_1="def test_1(inference_server): pass")
    result = inline_project.run(*arguments)
    check_a_refused_option(inline_project, result, quiet(result))


def test_an_option_that_workers_cannot_follow_ends_the_run_before_anything_starts(project, monkeypatch, quiet) -> None:
    pytest.importorskip("xdist")
    project.servers(a=[])
    monkeypatch.setenv("PATH", str(project.path))
    project.files(test_1="def test_1(inference_server): pass")
    result = project.run("--infserver-profile=nsys", "-n2", plugins=("xdist",))
    check_a_refused_option(project, result, quiet(result))


def test_who_only_looks_needs_no_profiler(inline_project, monkeypatch, quiet) -> None:
    inline_project.servers(a=[])
    monkeypatch.setenv("PATH", str(inline_project.path))
    inline_project.files(test_1="def test_1(inference_server): pass")
    inline_project.run("--infserver-profile=nsys", "--collect-only").assert_outcomes()
    text = quiet(inline_project.run("--infserver-profile=nsys", "--infserver-dry-run"))
    note = r"  note: profiling with nsys: nsys is not on PATH"
    assert re.search(rf"^a: \S*python\S* .*fake_engine.py.*\n{note}", text, re.M)


def check_a_missing_profiler(project, *workers: str, **more: Any) -> None:
    project.servers(a=[], b=fake_block(profile={"tool": "nsys"}))
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
    assert project.run("-k", "plain or test_a", *workers, **more).parseoutcomes()["passed"] == 2
    result = project.run(*workers, **more)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.re_match_lines(
        [r"ERROR: servers\.yaml:\d+:\d+: server 'b': profiling with nsys: nsys is not on PATH"]
    )
    line, column = map(int, re.findall(r"servers\.yaml:(\d+):(\d+)", result.stderr.str())[0])
    assert (project.path / "servers.yaml").read_text().splitlines()[line - 1][column - 1 :] == "tool: nsys"
    assert sorted(project.events("test")) == ["test test_a[a]", "test test_plain"]


def test_a_profiler_that_is_missing_is_no_matter_to_who_needs_none(inline_project, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(inline_project.path))
    check_a_missing_profiler(inline_project)
    assert inline_project.events("test") == ["test test_plain", "test test_a[a]"]


def test_a_profiler_that_is_missing_is_no_matter_to_workers_who_need_none(project, monkeypatch) -> None:
    pytest.importorskip("xdist")
    monkeypatch.setenv("PATH", str(project.path))
    check_a_missing_profiler(project, "-n2", plugins=("xdist",))


def test_a_worker_that_is_killed_in_a_profile_stands_in_nobodys_way(project) -> None:
    pytest.importorskip("xdist")
    project.servers(SPY, a=[])
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
    result = project.run("-n1", plugins=("xdist",))
    result.assert_outcomes(passed=3, failed=1)
    assert {f"profiles/a/test_1.test_2-{n}-a.txt" for n in range(3)} <= traces(project)
    assert spies(project) == []


def test_the_first_failure_of_x_in_a_profile_leaves_nothing(project, run) -> None:
    project.servers(SPY, a=[])
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
    run("-x")
    assert spies(project) == []


def test_two_runs_at_once_do_not_share_a_trace(project) -> None:
    project.servers(SPY, a=[])
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
    outputs = [one.communicate(timeout=110)[0] for one in runs]
    assert [one.returncode for one in runs] == [0, 0], outputs
    assert traces(project) == {"profiles/a/test_1.test_1-a.txt", "profiles/a/test_1.test_1-a-2.txt"}


def test_a_marker_without_a_server_is_a_warning(inline_project) -> None:
    inline_project.servers(a=[])
    inline_project.files(
        test_1="""
        import pytest
        @pytest.mark.infserver_profile(1, 2, three=4)
        def test_1(): pass
        """
    )
    result = inline_project.run()
    result.assert_outcomes(passed=1)
    assert inline_project.events("started") == []
    result.stdout.fnmatch_lines(["*PytestWarning: infserver_profile has no effect: test_1.py::test_1 takes no *"])
