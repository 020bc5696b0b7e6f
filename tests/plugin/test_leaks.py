"""What a run shows of the things that servers leave behind."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_servers import fake_block, fake_command
from parts import part

from pytest_infserver.system.disk.places import state_dir
from pytest_infserver.system.gpus import NoTelemetry, read_gpus

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="leaks are best effort elsewhere")

DEBUG: dict[str, Any] = {"debug_mode": True, "stop_timeout": 1}
LEAKY = fake_block("--daemon", **DEBUG)
ALLOWED = fake_block("--daemon", **DEBUG, allow_leaks=["process:*fake_engine*"])
SURVIVORS = fake_block("--children", "1", "--forget-children", "--stubborn-children", stop_timeout=1)
TESTS = """
def test_1(inference_server): pass
def test_2(inference_server): pass
"""


def with_temporary(folder: Path) -> dict[str, str]:
    """Return the variables of a run with its own folder of temporary files, which still sees others' locks on ports."""
    return {"TMPDIR": str(folder), "INFSERVER_STATE_DIR": str(state_dir())}


@pytest.fixture(scope="module", params=[pytest.param((), marks=pytest.mark.promise), ("-n1",)], ids=["alone", "n1"])
def shared(request, shared_project, tmp_path_factory):
    """A project with a file of tests for each kind of error, each with servers of its own; and what its run showed."""
    if request.param:
        pytest.importorskip("xdist")
    folder = tmp_path_factory.mktemp("temporary")
    project = shared_project(**with_temporary(folder))
    project.shm = f"infserver-test-{os.getpid()}-{len(request.param)}"
    project.servers(
        tidy=fake_block(**DEBUG),
        leaky=LEAKY,
        tidy_too=fake_block(**DEBUG),
        # What it holds is looked at twice a second.
        dying=fake_block("--leak-shm", project.shm, "--delay", "1.5", **DEBUG),
        made=LEAKY,
        late=LEAKY,
    )
    project.files(
        test_a=MANY, test_b=MANY.replace("test_", "test_b_"), test_dying=DYING, test_made=MADE, test_used_late=LATE
    )
    # With room for all nobody makes way, whose leaks would come twice.
    result = project.run(
        "-v", "--infserver-max-servers=8", *request.param, plugins=("xdist.plugin",) if request.param else ()
    )
    assert list(folder.glob("infserver-*")) == []
    return project, result


@pytest.fixture
def everything(shared):
    """Return the shared project."""
    return shared[0]


@pytest.fixture
def result(shared):
    """Return what the shared project's run showed."""
    return shared[1]


def test_the_run_has_failed_and_nothing_of_the_inside_is_shown(result, quiet) -> None:
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    quiet(result)


MANY = """
import pytest
pytestmark = pytest.mark.infserver("tidy", "leaky", "tidy_too")
def test_1(inference_server): pass
def test_2(inference_server): pass
"""


def test_the_error_stands_at_the_test_that_ended_the_use_of_the_leaking_server(everything, result) -> None:
    assert everything.outcomes("test_a") == {"passed": 6}
    assert everything.outcomes("test_b") == {"passed": 6, "errors": 1}
    part(result, "test_b_2").fnmatch_lines(
        [
            "*ERROR at teardown of test_b_2[[]leaky]*",
            "leaky (command) left behind a process:",
            "  process   pid *, in a session of its own, did not end within 1 s of the server's end, *; killed",
            "*fake_engine.py*",
            '  What to do: *: allow_leaks: [[]"process:[*]fake_engine.py[*]"]',
        ]
    )


def test_the_report_has_the_whole_error_and_what_each_process_was(everything, result) -> None:
    record = json.loads((everything.path / "server_logs" / "run.json").read_text())
    [test] = [test for test in record["tests"] if test["id"].endswith("test_b_2[leaky]")]
    [error] = test["details"]
    assert error["title"] == "Error at teardown"
    lines = error["text"].splitlines()
    assert len(lines) >= 4
    assert (lines[0], "What to do: " in lines[-1]) == ("leaky (command) left behind a process:", True)
    part(result, "test_b_2").fnmatch_lines([line.replace("[", "[[]") for line in lines])
    [server] = [server for server in record["servers"] if server["name"] == "leaky"]
    assert {"fake_engine.py" in leak["text"] for leak in server["leaks"]} == {True}


DYING = """
import pytest
from helpers import kill
@pytest.mark.infserver("dying")
def test_dying(inference_server):
    kill(inference_server)
"""


def test_what_a_dead_server_leaves_is_a_note_and_its_death_the_error(everything, result) -> None:
    assert everything.outcomes("test_dying") == {"failed": 1}
    part(result, "test_dying").fnmatch_lines(["dying (command) exited with code 3*"])
    lines = ["dying (command) exited with code 3*", "*= infserver =*", "dying (command) left behind a shared memory*"]
    result.stdout.fnmatch_lines(lines)
    result.stdout.no_fnmatch_line("*ERROR at teardown of test_dying*")
    assert not os.path.exists(f"/dev/shm/{everything.shm}")


MADE = """
def test_makes_one(inference_server_factory): inference_server_factory("made")
def test_makes_none(): pass
"""


def test_server_of_the_factory(everything, result) -> None:
    assert everything.outcomes("test_made") == {"passed": 2, "errors": 1}
    lines = ["*ERROR at teardown of test_makes_one*", "made (command) left behind a process:"]
    part(result, "test_makes_one").fnmatch_lines(lines)


LATE = """
import pytest
@pytest.mark.infserver("late")
def test_uses_it(request): request.getfixturevalue("inference_server")
def test_innocent(): pass
"""


def test_the_error_stands_at_the_last_test_that_used_the_server_though_it_stops_later(everything, result) -> None:
    assert everything.outcomes("test_used_late") == {"passed": 2, "errors": 1}
    lines = ["*ERROR at teardown of test_uses_it*", "late (command) left behind a process:"]
    part(result, "test_uses_it").fnmatch_lines(lines)


@pytest.mark.promise
def test_what_is_allowed_is_a_note_in_the_summary(inline_project) -> None:
    inline_project.servers(leaky=ALLOWED)
    inline_project.files(test_1=TESTS)
    result = inline_project.run()
    result.assert_outcomes(passed=2)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*= infserver =*", "leaky (command) left behind a process:", "  process *; killed"])
    result.stdout.no_fnmatch_line("*What to do*")


@pytest.mark.promise
def test_without_debug_mode_survivors_are_a_note(inline_project) -> None:
    words = ["--daemon", "--children", "1", "--forget-children", "--stubborn-children"]
    inline_project.servers({"stop_timeout": 1}, leaky=words)
    inline_project.files(test_1=TESTS)
    result = inline_project.run()
    result.assert_outcomes(passed=2)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*= infserver =*", "leaky (command): 1 of its processes did not end by themselves*"])


OWN_STOP = """
from pytest_infserver import CommandServer

def made(tmp_path):
    return CommandServer(launch_command={command!r}, output_dir=tmp_path, debug_mode=True, stop_timeout=1)

def test_stop(tmp_path):
    server = made(tmp_path).start()
    server.stop()  # here

def test_block(tmp_path):
    with made(tmp_path):  # here
        pass
"""


@pytest.mark.promise
@pytest.mark.parametrize("style", ["long", "short"])
def test_a_tests_own_stop_shows_the_test_and_nothing_of_the_inside(inline_project, style) -> None:
    source = OWN_STOP.format(command=fake_command("--daemon"))
    inline_project.files(test_1=source)
    result = inline_project.run(f"--tb={style}")
    result.assert_outcomes(failed=2)
    for name in ("test_stop", "test_block"):
        shown = part(result, name)
        shown.fnmatch_lines(["*  # here", "E*LeakError: * left behind a process:"])
        shown.no_fnmatch_line("*pytest_infserver/*.py*")
    if style == "long":
        lines = [number for number, line in enumerate(source.splitlines(), 1) if line.endswith("# here")]
        result.stdout.fnmatch_lines([f"test_1.py:{number}: LeakError" for number in lines])


def test_header_says_what_cannot_be_checked(inline_project) -> None:
    inline_project.servers(DEBUG, a=[])
    try:
        read_gpus()
        expected = "infserver: servers.yaml: a (command); debug mode"
    except NoTelemetry as reason:
        expected = f"infserver: servers.yaml: a (command); debug mode (GPU memory is not checked: {reason})"
    assert expected in inline_project.run("--collect-only").stdout.lines


def test_stop_command_that_fails_is_a_note(inline_project) -> None:
    inline_project.servers({"stop_command": ["sh", "-c", "echo no such container; exit 3"]}, a=[])
    inline_project.files(test_1=TESTS)
    result = inline_project.run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["a (command): its stop_command ended with exit code 3; log: *server.log"])


@pytest.fixture(scope="module")
def notes(shared_project, tmp_path_factory) -> pytest.RunResult:
    """What the run of a worker showed in which nothing is an error."""
    pytest.importorskip("xdist")
    folder = tmp_path_factory.mktemp("temporary")
    project = shared_project(**with_temporary(folder))
    project.servers(survived=SURVIVORS, allowed=ALLOWED)
    project.files(test_1=TESTS)
    result = project.run("-n1", plugins=("xdist.plugin",))
    assert list(folder.glob("infserver-*")) == []
    return result


class TestXdist:
    """What belongs to no test reaches the summary from the workers too."""

    def test_survivors_are_a_note(self, notes) -> None:
        notes.assert_outcomes(passed=4)
        assert notes.ret == 0
        words = "survived (command): 1 of its processes did not end by themselves*"
        notes.stdout.fnmatch_lines(["*= infserver =*", words])

    def test_what_is_allowed_is_a_note(self, notes) -> None:
        assert notes.ret == 0
        notes.stdout.fnmatch_lines(["*= infserver =*", "allowed (command) left behind a process:"])

    def test_leak_after_the_last_test_of_a_run_that_is_cut_short(self, project, tmp_path, monkeypatch) -> None:
        pytest.importorskip("xdist")
        for name, value in with_temporary(tmp_path).items():
            monkeypatch.setenv(name, value)
        project.servers(leaky=LEAKY)
        project.files(test_1="def test_0(inference_server): assert 0\n" + TESTS)
        result = project.run("-n1", "-x", plugins=("xdist.plugin",))
        result.stdout.fnmatch_lines(["leaky (command) left behind a process:"])
        assert list(tmp_path.glob("infserver-*")) == []
