"""What a failed test says of its server: its state, its last heartbeat, how it died, and what it wrote."""

from __future__ import annotations

import os
import re
import sys
import xml.etree.ElementTree as ET

import pytest
import yaml
from fake_servers import FAKE_ENGINE, fake_block, fake_command
from installed import installed
from parts import part

from pytest_infserver import CommandServer

TITLE = re.compile(r"^-* ?([\w.-]+): state(?: \((\w+), (http://[\d.:]+)\))? ?-*$")
SECRET = "very-secret-\u00e9-1"
QUICK = {"heartbeat_interval": 0.05}


@pytest.fixture(
    scope="module",
    params=[pytest.param((), marks=pytest.mark.nightly), pytest.param(("-n2",), marks=pytest.mark.promise)],
    ids=["alone", "n2"],
)
def shared(request, shared_project, tmp_path_factory):
    """A project with a file of tests for each kind of failure, each with its own servers; and what its run showed."""
    if request.param:
        pytest.importorskip("xdist")
    project = shared_project()
    folder = tmp_path_factory.mktemp("far")
    with CommandServer(launch_command=fake_command(), name="far", output_dir=folder) as engine:
        project.servers(
            phases=fake_block(**QUICK),
            late=fake_block(heartbeat_interval=77),
            sick=fake_block(**QUICK, hang_timeout=99),
            **{name: fake_block(**QUICK) for name in ("dies", "dies_in_setup", "dies_in_teardown")},
            hung=fake_block(**QUICK, hang_timeout=1.5),
            far={"backend": "remote", "url": engine.server_url, **QUICK},
            left=[],
            right=[],
            bad=["--say", "RuntimeError: no such kernel", "--say", "more", "--say", "words", "--exit", "3"],
            rerun_bad=["--exit", "3"],
            **{name: fake_block(env_vars={"MY_TOKEN": SECRET}) for name in ("garbage", "more_garbage")},
            huge=[],
            again=fake_block("--say", "first words", "--say-when-ready", "at your service", **QUICK),
            crashes=[],
        )
        project.conftest(SPY)
        project.files(
            test_phases=PHASES,
            test_late=LATE,
            test_sick=SICK,
            test_died=DIED,
            test_hung=HUNG,
            test_far=FAR,
            test_several=SEVERAL,
            test_bad=BAD,
            test_rerun=RERUN,
            test_garbage=GARBAGE,
            test_huge=HUGE,
            test_again=AGAIN,
        )
        if request.param:
            project.files(test_crash=CRASH)
        plugins = ("xdist",) if request.param else ()
        arguments = ("-v", "--junitxml=junit.xml", "--infserver-max-servers=30", *request.param)
        return project, project.run(
            "--infserver-max-servers=30", *arguments, plugins=(*plugins, *installed("pytest_rerunfailures"))
        )


@pytest.fixture
def everything(shared):
    """Return the shared project."""
    return shared[0]


@pytest.fixture
def result(shared):
    """Return what the shared project's run showed."""
    return shared[1]


@pytest.fixture
def on_two_workers(everything) -> bool:
    """Return whether the shared run is that of two workers."""
    return (everything.path / "test_crash.py").exists()


def states(shown: pytest.LineMatcher) -> list[tuple[str, list[str]]]:
    """Return the names of the servers whose state is shown, each with the lines that say it."""
    lines = shown.lines
    found = []
    for number, line in enumerate(lines):
        match = TITLE.match(line)
        if match:
            found.append((match[1], lines[number + 1 : number + 3]))
    return found


def test_nothing_of_the_inside_is_shown(result, quiet) -> None:
    quiet(result)


SPY = """
import pytest
from pytest_infserver.launcher.runtime.runtime import Runtime
from pytest_infserver.pool.broker.remote import RemoteMember

def spy(kind):
    original = kind.view
    def view(self, *names):
        import traceback
        if any(frame.name == "add_server_sections" for frame in traceback.extract_stack()):
            note("asked", names[0] if names else self.server.name)
        return original(self, *names)
    kind.view = view
spy(RemoteMember)
spy(Runtime)
"""
PHASES = """
import pytest, time
pytestmark = pytest.mark.infserver("phases")
@pytest.fixture
def bad_setup(inference_server):
    time.sleep(0.3)
    assert 0
@pytest.fixture
def bad_teardown(inference_server):
    yield
    assert 0
def test_call_and_teardown(bad_teardown): assert 0
def test_setup(bad_setup): pass
@pytest.mark.parametrize("n", range(4))
def test_pass(inference_server, n): pass
@pytest.mark.xfail
def test_xfail(inference_server): assert 0
def test_skip(inference_server): pytest.skip("no")
"""


def test_each_phase_that_fails_says_how_its_server_is_and_a_test_that_passes_asks_nobody(everything, result) -> None:
    assert everything.outcomes("test_phases") == {"passed": 4, "failed": 1, "errors": 2, "xfailed": 1, "skipped": 1}
    assert len(everything.events("asked", of=["phases"])) == 3
    found = [state for state in states(result.stdout) if state[0] == "phases"]
    assert len(found) == 3
    assert states(part(result, "test_call_and_teardown", "test_setup")) == found
    for _, (state, heartbeat) in found:
        assert re.fullmatch(r"ready, up [\d.]+ s, pid \d+", state), state
        assert heartbeat.startswith("heartbeat: ")
    waited = [heartbeat for _, (_, heartbeat) in found if "none yet" not in heartbeat]
    assert waited
    for heartbeat in waited:
        assert re.fullmatch(r"heartbeat: answered 200 in \d+ ms, [\d.e-]+ s ago", heartbeat), heartbeat


LATE = """
import pytest
@pytest.mark.infserver("late")
def test_late(inference_server): assert 0
"""


def test_none_yet_says_when_the_first_heartbeat_comes(everything, result) -> None:
    assert everything.outcomes("test_late") == {"failed": 1}
    ((name, (_, heartbeat)),) = states(part(result, "test_late"))
    assert name == "late"
    assert heartbeat == "heartbeat: none yet, the first comes after heartbeat_interval 77 s"


SICK = """
import pytest, time
from helpers import get
@pytest.mark.infserver("sick")
def test_sick(inference_server):
    time.sleep(0.5)
    get(inference_server, "/sick")
    time.sleep(0.5)
    assert 0
"""


def test_a_heartbeat_that_fails_says_why_and_since_when(everything, result) -> None:
    assert everything.outcomes("test_sick") == {"failed": 1}
    ((_, (state, heartbeat)),) = states(part(result, "test_sick"))
    assert state.startswith("ready, up ")
    pattern = r"heartbeat: failing for \S+ s \(hang_timeout 99 s\): answered 503 in \d+ ms, \S+ s ago; last good answer"
    assert re.match(pattern, heartbeat), heartbeat


DIED = """
import pytest, time
from helpers import get, kill
@pytest.fixture
def in_setup(inference_server):
    kill(inference_server)
    assert 0
@pytest.fixture
def in_teardown(inference_server):
    yield
    kill(inference_server, "/kill?signal=11")
    assert 0
@pytest.mark.infserver("dies", exclusive=True)
@pytest.mark.parametrize("n", range(2))
def test_alone(inference_server, n):
    kill(inference_server)
    assert inference_server.wait_death(20)
    assert 0
@pytest.mark.infserver("dies_in_setup")
def test_died_in_setup(in_setup): pass
@pytest.mark.infserver("dies_in_teardown")
def test_died_in_teardown(in_teardown): pass
@pytest.mark.infserver("dies")
def test_last(inference_server): assert 0
"""


def test_a_server_that_died_in_any_phase_says_how_and_a_restarted_one_which_launch_it_is(everything, result) -> None:
    assert everything.outcomes("test_died") == {"failed": 3, "passed": 1, "errors": 2}
    shown = part(result, "test_alone", "test_died_in_setup", "test_died_in_teardown", "test_last")
    text = shown.str()
    lines = [state for _, (state, _) in states(shown)]
    assert len(lines) == 5
    assert "dies_in_setup (command) exited with code 3, while it was in use" in text
    assert "dies_in_teardown (command) was killed by SIGSEGV, while it was in use" in text
    assert any(re.match(r"died: exited with code 3, \S+ s ago, after \S+ s", line) for line in lines), lines
    # It may be starting again already.
    assert all(re.match(r"died: |ready, |starting", line) for line in lines), lines
    assert any(re.search(r", launch [2-5] of this run$", line) for line in lines), lines


HUNG = """
import pytest
from helpers import get
@pytest.mark.infserver("hung")
def test_hung(inference_server):
    get(inference_server, "/sick")
    assert inference_server.wait_death(30)
    assert 0
"""


def test_a_server_that_the_test_hung_says_so(everything, result) -> None:
    assert everything.outcomes("test_hung") == {"failed": 1}
    shown = part(result, "test_hung")
    assert "hung (command) hung and was killed: its health check has failed for" in shown.str()
    ((_, (state, _)),) = states(shown)
    assert re.match(r"died: hung and was killed: |starting", state), state


FAR = """
import pytest, time
@pytest.mark.infserver("far")
def test_far(inference_server): time.sleep(0.5); assert 0
"""


def test_an_attached_server_says_its_state_and_has_no_log(everything, result) -> None:
    assert everything.outcomes("test_far") == {"failed": 1}
    shown = part(result, "test_far")
    ((name, (state, heartbeat)),) = states(shown)
    assert name == "far"
    assert re.fullmatch(r"ready, up \S+ s, attached: not started by this run", state), state
    assert heartbeat.startswith("heartbeat: answered 200 in ")
    assert ": log during" not in shown.str()


SEVERAL = """
import pytest
@pytest.mark.infserver_needs("left", "right")
def test_several(inference_servers, inference_server_factory):
    inference_server_factory("left", fresh=True)
    assert 0
"""


def test_servers_of_the_factory_and_several_at_once(everything, result) -> None:
    assert everything.outcomes("test_several") == {"failed": 1}
    found = states(part(result, "test_several"))
    assert sorted(re.sub(r"gw\d\.", "", name) for name, _ in found) == [
        "left",
        "left.fresh-1",
        "right",
    ]
    assert all(state.startswith("ready, up ") for _, (state, _) in found)


BAD = """
import pytest
@pytest.mark.infserver("bad")
@pytest.mark.parametrize("n", range(6))
def test_bad(inference_server, n): pass
"""


def test_a_failed_start_is_told_once_in_full_and_then_in_a_line(everything, result) -> None:
    assert everything.outcomes("test_bad") == {"errors": 6}
    shown = part(result, "test_bad")
    text = shown.str()
    head = "bad (command) exited with code 3, before it was ready"
    full = [line for line in shown.lines if line.removeprefix("E").strip() == head]
    assert len(full) == 1
    pattern = rf"{re.escape(head)}: RuntimeError: no such kernel \(all of it is shown with (\S+)\)"
    short = re.findall(rf"^E?\s*{pattern}$", text, re.MULTILINE)
    assert len(short) == 5
    assert len(set(short)) == 1
    assert text.count("  command: ") == 1
    assert text.count(": log during start") == 1
    # The test that it names is the one that shows it.
    cases = ET.parse(everything.path / "junit.xml").getroot().iter("testcase")
    told = {case.get("name"): case.find("error").text for case in cases if case.get("classname") == "test_bad"}
    assert len(told) == 6
    (first,) = [name for name, reason in told.items() if "  command: " in reason]
    assert short[0] == f"test_bad.py::{first}"


RERUN = """
import pytest
pytestmark = [pytest.mark.infserver("rerun_bad"), pytest.mark.flaky(reruns=1)]
def test_rerun_1(inference_server): pass
def test_rerun_2(inference_server): pass
"""


def test_a_rerun_of_the_first_test_keeps_all_of_a_failed_start(everything, result, on_two_workers) -> None:
    pytest.importorskip("pytest_rerunfailures")
    assert everything.outcomes("test_rerun") == {"errors": 2, "rerun": 2}
    # On two workers either of them may be the first.
    head, first = "rerun_bad (command) exited with code 3, before it was ready", "test_rerun_?"
    if not on_two_workers:
        first = "test_rerun_1"
        part(result, "test_rerun_1", "test_rerun_2").fnmatch_lines(
            [
                "*ERROR at setup of test_rerun_1?rerun_bad?*",
                head,
                "  command: *",
                "*ERROR at setup of test_rerun_2?rerun_bad?*",
            ]
        )
    pointer = f"{head} (all of it is shown with test_rerun.py::{first}?rerun_bad?)"
    part(result, "test_rerun_1", "test_rerun_2").fnmatch_lines_random([head, "  command: *", pointer])


GARBAGE = r"""
import pytest
from helpers import kill
GARBAGE = "\x1b[31mRuntimeError: very-\x1b[0msecret-\u00e9-1 \x00\x01\x07\x1b]0;title\x07 \ud800 end"
BYTES = GARBAGE.encode("utf-8", "surrogatepass") + b"\xff\xfe\xc3\n"
@pytest.mark.infserver("*garbage")
def test_garbage(inference_server):
    with open(inference_server.log_path, "ab") as log:
        log.write(BYTES + b"x" * 20_000 + b"\r" * 100 + b"last words very-secret-" + b"\n" + BYTES)
    kill(inference_server)
    assert 0
"""


def test_junit_stays_valid_and_no_secret_is_shown_whatever_the_server_writes(everything, result) -> None:
    assert everything.outcomes("test_garbage") == {"failed": 2}
    text = result.stdout.str()
    assert "\x1b" not in text
    assert "\0" not in text
    assert SECRET not in text
    shown = part(result, "test_garbage").str()
    assert "title" not in shown
    assert "RuntimeError: ********" in shown
    root = ET.parse(everything.path / "junit.xml").getroot()
    cases = [case for case in root.iter("testcase") if case.get("classname") == "test_garbage"]
    assert len([failure for case in cases for failure in case.iter("failure")]) == 2
    assert SECRET not in (everything.path / "junit.xml").read_text()
    assert len(shown) < 80_000


HUGE = """
import pytest
from helpers import get
@pytest.mark.infserver("huge")
def test_huge(inference_server):
    # Sparse: it has the size, but takes no room.
    with open(inference_server.log_path, "r+b") as log: log.truncate(2**30)
    get(inference_server, "/say?text=last-words")
    assert 0
"""


def test_a_log_of_a_gigabyte_costs_no_time(everything, result) -> None:
    assert everything.outcomes("test_huge") == {"failed": 1}
    shown = part(result, "test_huge")
    shown.fnmatch_lines(["?... 10737* bytes left out, see *", "last-words"])
    assert len(shown.str()) < 20_000


AGAIN = """
import pytest, time
from helpers import get, kill
pytestmark = pytest.mark.infserver("again")
def test_dies_first(inference_server):
    time.sleep(0.5)
    get(inference_server, "/say?text=before-the-end")
    kill(inference_server)
    # Long enough for its successor to be ready.
    time.sleep(2)
    assert 0
def test_later(inference_server): pass
def test_lives(inference_server): assert inference_server.check_health()
"""


def test_a_server_that_died_and_runs_again_is_shown_as_it_was_when_it_died(result) -> None:
    shown = part(result, "test_dies_first")
    state, heartbeat = dict(states(shown))["again"]
    assert re.match(r"died: exited with code 3, [\d.]+ s ago, after [\d.]+ s", state), state
    assert re.match(r"heartbeat: (answered 200 in|last good answer)", heartbeat), heartbeat
    text = shown.str()
    assert "before-the-end" in text
    # What the next launch wrote is none of this test's business.
    assert "\nfirst words" not in text


CRASH = """
import os, pytest
pytestmark = pytest.mark.infserver("crashes")
def test_crash(inference_server): os._exit(1)
@pytest.mark.parametrize("n", range(4))
def test_fails(inference_server, n): assert 0
"""


def test_a_worker_that_crashes_costs_its_test_and_no_section(everything, result, on_two_workers) -> None:
    if not on_two_workers:
        pytest.skip("there are no workers")
    assert everything.outcomes("test_crash") == {"failed": 5}
    assert "INTERNALERROR" not in result.stdout.str()
    found = states(part(result, "test_crash", "test_fails"))
    assert len(found) == 4
    assert all(state.startswith("ready, ") for _, (state, _) in found)


def test_the_kernel_kills_the_server_of_a_test(project, memory_cgroup) -> None:
    pytest.importorskip("xdist")
    move = f'echo $$ > {memory_cgroup}/cgroup.procs; exec "$0" "$@"'
    command = ["sh", "-c", move, sys.executable, "-S", str(FAKE_ENGINE), "--port", "{port}"]
    project.servers(a={"backend": "command", "launch_command": command})
    project.files(
        test_1="""
        from helpers import kill
        def test_1(inference_server):
            kill(inference_server, "/eat?bytes=200000000")
            assert 0
        """
    )
    result = project.run("-v", "-rf", "-n2", plugins=("xdist",))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*inference server died during this test*",
            "a (command) was killed by the kernel for memory (SIGKILL), while it was in use",
            "  cause:   the kernel killed *",
            "           the limit of its cgroup is 64 MiB, peak 6* MiB (*)",
            "           memory of the host, not of a GPU *",
        ]
    )
    summary = next(line for line in result.stdout.lines if line.startswith("FAILED"))
    assert "killed by the kernel for memory" in summary


@pytest.mark.skipif(os.environ.get("SKIP_INTEGRATION_TESTS") == "1", reason="SKIP_INTEGRATION_TESTS=1 is set")
def test_a_real_engine(project) -> None:
    pytest.importorskip("xllamacpp")
    pytest.importorskip("xdist")
    engine = {"backend": "llamacpp", "model": "builtin:tiny", "heartbeat_interval": 0.2}
    text = yaml.safe_dump({"defaults": engine, "servers": {"llama": None, "other": None}})
    (project.path / "servers.yaml").write_text(text)
    project.files(
        test_1="""
        import os, pytest, signal, time
        from helpers import get
        @pytest.mark.infserver("other")
        def test_1_fails(inference_server):
            time.sleep(1)
            get(inference_server, "/v1/models")
            assert 0
        @pytest.mark.infserver("llama")
        def test_2_dies(inference_server):
            os.kill(inference_server.pid, signal.SIGKILL)
            assert inference_server.wait_death(20)
            assert 0
        """
    )
    result = project.run("-v", "-n2", plugins=("xdist",))
    result.assert_outcomes(failed=2)
    found = states(result.stdout)
    assert len(found) == 2
    lines = [line for _, pair in found for line in pair]
    assert any(re.match(r"ready, up \S+ s, pid \d+", line) for line in lines), lines
    assert any(re.match(r"heartbeat: answered 200 in \d+ ms", line) for line in lines), lines
    assert "llama (llamacpp) was killed by SIGKILL, while it was in use" in result.stdout.str()
    assert "for memory" not in result.stdout.str()
