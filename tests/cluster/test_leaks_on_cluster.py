"""What servers on a cluster leave behind is told at the test that used them last."""

from __future__ import annotations

import os

import pytest

pytestmark = pytest.mark.usefixtures("on_cluster", "hard_limit")


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


EVERY_DAY = {test_the_error_stands_at_the_test_that_ended_the_use_of_the_leaking_server: ()}
"""See `conftest`."""
