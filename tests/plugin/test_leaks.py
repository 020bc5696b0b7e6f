"""What a run shows of the things that servers leave behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_infserver.launcher.gpus import NoTelemetry, read_gpus

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="leaks are best effort elsewhere")

DEBUG = {"debug_mode": True, "stop_timeout": 1}
DAEMON = ["--daemon"]
TESTS = """
def test_1(inference_server): pass
def test_2(inference_server): pass
"""


def test_the_error_stands_at_the_test_that_ended_the_use_of_the_leaking_server(project, servers_yaml, quiet) -> None:
    servers_yaml(DEBUG, tidy=[], leaky=DAEMON, tidy_too=[])
    project.files(test_1=TESTS, test_2=TESTS.replace("test_", "test_b_"))
    result = project.run("-v")
    result.assert_outcomes(passed=12, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_b_2[[]leaky]*",
            "leaky (command) left behind a process:",
            "  process   pid *, in a session of its own, did not end within 1 s of the server's end, *; killed",
            "*fake_engine.py*",
            '  What to do: *: allow_leaks: [[]"process:[*]fake_engine.py[*]"]',
        ]
    )
    quiet(result)


def test_what_is_allowed_is_a_note_in_the_summary(project, servers_yaml) -> None:
    servers_yaml({**DEBUG, "allow_leaks": ["process:*fake_engine*"]}, leaky=DAEMON)
    project.files(test_1=TESTS)
    result = project.run()
    result.assert_outcomes(passed=2)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*= infserver =*", "leaky (command) left behind a process:", "  process *; killed"])
    result.stdout.no_fnmatch_line("*What to do*")


def test_what_a_dead_server_leaves_is_a_note_and_its_death_the_error(project, servers_yaml) -> None:
    name = f"infserver-test-{os.getpid()}"
    servers_yaml(DEBUG, dying=["--leak-shm", name])
    project.files(
        test_1="""
        from helpers import kill
        def test_1(inference_server): kill(inference_server)
        """
    )
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["dying (command) exited with code 3*", "dying (command) left behind a shared memory*"])
    result.stdout.no_fnmatch_line("*ERROR at teardown*")
    assert not os.path.exists(f"/dev/shm/{name}")


def test_server_of_the_factory(project, servers_yaml) -> None:
    servers_yaml(DEBUG, leaky=DAEMON)
    project.files(
        test_1="""
        def test_1(inference_server_factory): inference_server_factory("leaky")
        def test_2(): pass
        """
    )
    result = project.run("-v")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_1*", "leaky (command) left behind a process:"])


def test_without_debug_mode_survivors_are_a_note(project, servers_yaml) -> None:
    servers_yaml({"stop_timeout": 1}, leaky=["--daemon", "--children", "1", "--forget-children", "--stubborn-children"])
    project.files(test_1=TESTS)
    result = project.run()
    result.assert_outcomes(passed=2)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*= infserver =*", "leaky (command): 1 of its processes did not end by themselves*"])


def test_header_says_what_cannot_be_checked(project, servers_yaml) -> None:
    servers_yaml(DEBUG, a=[])
    try:
        read_gpus()
        expected = "infserver: servers.yaml: a (command); debug mode"
    except NoTelemetry as reason:
        expected = f"infserver: servers.yaml: a (command); debug mode (GPU memory is not checked: {reason})"
    assert expected in project.run("--collect-only").stdout.lines


def test_stop_command_that_fails_is_a_note(project, servers_yaml) -> None:
    servers_yaml({"stop_command": ["sh", "-c", "echo no such container; exit 3"]}, a=[])
    project.files(test_1=TESTS)
    result = project.run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["a (command): its stop_command ended with exit code 3; log: *server.log"])


def test_the_error_stands_at_the_last_test_that_used_the_server_though_it_stops_later(
    project, servers_yaml, quiet
) -> None:
    servers_yaml(DEBUG, leaky=DAEMON)
    project.files(
        test_1="""
        def test_uses_it(request): request.getfixturevalue("inference_server")
        def test_innocent(): pass
        """
    )
    result = project.run("-v")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_uses_it*", "leaky (command) left behind a process:"])
    quiet(result)


SURVIVORS = ["--children", "1", "--forget-children", "--stubborn-children"]


class TestXdist:
    """What belongs to no test reaches the summary from the workers too."""

    @pytest.fixture(autouse=True)
    def temporary(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        pytest.importorskip("xdist")
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        yield
        assert list(tmp_path.glob("infserver-*")) == []

    def run(self, project, *arguments: str) -> pytest.RunResult:
        return project.run(*arguments, plugins=("xdist.plugin",))

    def test_survivors_are_a_note(self, project, servers_yaml) -> None:
        servers_yaml({"stop_timeout": 1}, a=SURVIVORS)
        project.files(test_1=TESTS)
        result = self.run(project, "-n1")
        result.assert_outcomes(passed=2)
        assert result.ret == 0
        result.stdout.fnmatch_lines(["*= infserver =*", "a (command): 1 of its processes did not end by themselves*"])

    def test_what_is_allowed_is_a_note(self, project, servers_yaml) -> None:
        servers_yaml({**DEBUG, "allow_leaks": ["process:*fake_engine*"]}, leaky=DAEMON)
        project.files(test_1=TESTS)
        result = self.run(project, "-n1")
        assert result.ret == 0
        result.stdout.fnmatch_lines(["*= infserver =*", "leaky (command) left behind a process:"])

    def test_leak_after_the_last_test_of_a_run_that_is_cut_short(self, project, servers_yaml) -> None:
        servers_yaml(DEBUG, leaky=DAEMON)
        project.files(test_1="def test_0(inference_server): assert 0\n" + TESTS)
        result = self.run(project, "-n1", "-x")
        result.stdout.fnmatch_lines(["leaky (command) left behind a process:"])

    def test_leak_of_a_server_that_runs_to_the_end_is_an_error_of_its_last_test(self, project, servers_yaml) -> None:
        servers_yaml(DEBUG, leaky=DAEMON)
        project.files(
            test_1="""
            def test_uses_it(request): request.getfixturevalue("inference_server")
            def test_innocent(): pass
            """
        )
        result = self.run(project, "-n1")
        result.assert_outcomes(passed=2, errors=1)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(["*ERROR at teardown of test_uses_it*", "leaky (command) left behind a process:"])
