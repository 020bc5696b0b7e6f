"""When servers start: beside the tests that need none, ahead of those that do, never for those that do not run."""

from __future__ import annotations

import socket

import pytest
from fake_servers import fake_block


def test_tests_without_a_server_run_while_the_first_one_boots(twin_project, servers_yaml) -> None:
    # It boots for as long as there is such a test.
    servers_yaml({"startup_timeout": 100}, a=["--until=done"])
    files = {
        f"test_{n}": """
        import pathlib, time
        import pytest
        from helpers import EVENTS, note
        @pytest.mark.parametrize("n", range(5))
        def test_without(n):
            time.sleep(0.05)
            note("without", n)
            if EVENTS.read_text().count("without ") == 10: pathlib.Path("done").touch()
        """
        for n in (1, 2)
    }
    with_one = """
        from helpers import note
        def test_with(inference_server): note("with", inference_server.name)
        """
    twin_project.files(test_0=with_one, test_3=with_one, **files)
    result = twin_project.run()
    result.assert_outcomes(passed=12)
    events = twin_project.events("started", "without", "with")
    assert events.index("started a") == 10, events


def test_without_prelaunch_nothing_starts_before_a_test_asks(twin_project, servers_yaml, monkeypatch) -> None:
    servers_yaml(a=[], b=[])
    twin_project.files(
        test_1="""
        import os, time
        import pytest
        from helpers import EVENTS, note
        def test_without():
            time.sleep(1.5)
            note("without")
        @pytest.mark.infserver("a")
        def test_a(inference_server):
            until = time.monotonic() + int(os.environ.get("WAIT_FOR_B", "1"))
            while time.monotonic() < until and "started b" not in EVENTS.read_text(): time.sleep(0.02)
            note("a is done")
        @pytest.mark.infserver("b")
        def test_b(inference_server): pass
        """
    )
    result = twin_project.run("--no-infserver-prelaunch")
    result.assert_outcomes(passed=3)
    events = twin_project.events("started", "without", "a")
    if not twin_project.on_workers:
        assert events == ["without", "started a", "a is done", "started b"]
    (twin_project.path / "events.txt").unlink()
    monkeypatch.setenv("WAIT_FOR_B", "60")
    result = twin_project.run("--infserver-max-servers=2")
    result.assert_outcomes(passed=3)
    events = twin_project.events("started", "without", "a")
    # With room for two the second one is there before a test asks for it.
    assert events.index("started b") < events.index("a is done")


def test_an_unknown_spelling_of_an_option_starts_nothing(inline_project, servers_yaml) -> None:
    servers_yaml(a=[])
    inline_project.files(test_1="def test_1(inference_server): pass\n")
    assert inline_project.run("--infserver-no-prelaunch").ret == pytest.ExitCode.USAGE_ERROR
    assert inline_project.events() == []


WISHES = """
import pytest
@pytest.mark.infserver("a")
def test_a(inference_server): assert 0
@pytest.mark.infserver("b")
def test_b(inference_server): pass
@pytest.mark.infserver("b")
@pytest.mark.skip
def test_skipped(inference_server): pass
def test_plain(): pass
"""


def test_a_run_that_only_shows_its_tests_starts_nothing(inline_project, servers_yaml) -> None:
    pytest.importorskip("xdist")
    servers_yaml(a=[], b=[])
    inline_project.files(test_1=WISHES)
    # To collect xdist starts no worker.
    for arguments in (("--collect-only",), ("--setup-plan",), ("--collect-only", "-n2")):
        assert inline_project.run(*arguments, plugins=("xdist",)).ret == 0
        assert inline_project.events("started") == [], arguments


@pytest.mark.parametrize("arguments", [("--setup-plan",), ("-k", "plain or skipped")], ids=" ".join)
def test_a_project_without_prelaunch_and_without_a_wish_starts_nothing(project, servers_yaml, arguments) -> None:
    pytest.importorskip("xdist")
    servers_yaml(a=[], b=[])
    project.files(test_1=WISHES)
    project.run(*arguments, "-n2", plugins=("xdist",))
    assert project.events("started") == []


def test_only_what_the_chosen_tests_want_starts(project, servers_yaml) -> None:
    pytest.importorskip("xdist")
    servers_yaml(a=[], b=[])
    project.files(test_1=WISHES)
    project.run("-k", "test_b", "-n2", plugins=("xdist",)).assert_outcomes(passed=1)
    assert project.events("started") == ["started b"]


def test_only_what_failed_last_time_wants_starts(project, servers_yaml) -> None:
    pytest.importorskip("xdist")
    servers_yaml(a=[], b=[])
    project.files(test_1=WISHES)
    # The cache tells -lf what failed last time; xdist's workers have it from the controller.
    cached = ("-p", "cacheprovider", "-o", "cache_dir=cache")
    project.run("-n2", *cached, plugins=("xdist",)).assert_outcomes(passed=2, failed=1, skipped=1)
    (project.path / "events.txt").unlink()
    project.run("-n2", "--lf", *cached, plugins=("xdist",)).assert_outcomes(failed=1)
    assert project.events("started", "stopped") == ["started a", "stopped a gone"]


def test_a_failed_start_is_tried_once_and_fails_every_test_at_once(twin_project, servers_yaml, quiet) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        # A port of ours that somebody else took meanwhile would be another try.
        port = one.getsockname()[1]
    servers_yaml(bad=fake_block("--say=no such weights", "--delay=1", "--exit=7", port=port), good=[])
    twin_project.files(
        test_1="""
        import pytest
        @pytest.mark.parametrize("n", range(5))
        def test_it(inference_server, n): pass
        @pytest.mark.infserver_needs("good", "bad")
        def test_both(inference_servers): pass
        """
    )
    result = twin_project.run()
    result.assert_outcomes(passed=5, errors=6)
    assert quiet(result).count("exited with code 7") >= 6
    log = (twin_project.path / "server_logs" / "bad" / "server.log").read_text()
    assert log.count("no such weights") == 1


def test_session_fixtures_are_finished_while_their_server_runs(twin_project, servers_yaml) -> None:
    servers_yaml(a=[], b=[])
    twin_project.files(
        test_1="""
        import pytest
        from helpers import get, note
        @pytest.fixture(scope="session")
        def dependent(inference_server):
            yield inference_server
            get(inference_server, "/health")
            note("finished", inference_server.name)
        @pytest.mark.parametrize("n", range(3))
        def test_it(dependent, n): get(dependent, "/health")
        """
    )
    result = twin_project.run("--infserver-max-servers=2")
    result.assert_outcomes(passed=6)
    events = twin_project.events("finished", "stopping")
    for name in "ab":
        assert f"finished {name}" in events
        assert max(at for at, line in enumerate(events) if line.endswith(name)) == events.index(f"stopping {name}")


@pytest.mark.parametrize("workers", [False, True], ids=["alone", "n2"])
def test_a_boot_is_no_business_of_pytest_timeout(project, servers_yaml, workers) -> None:
    # Not in this process: pytest-timeout and the hard limit of our tests take the same signal.
    pytest.importorskip("pytest_timeout")
    pytest.importorskip("xdist")
    project.on_workers = workers
    servers_yaml(a=["--delay=4"])
    project.files(test_1="def test_1(inference_server): pass\ndef test_2(inference_server): pass\n")
    project.run("--timeout=3", plugins=("pytest_timeout",)).assert_outcomes(passed=2)


def test_a_project_that_overrides_the_fixture_is_left_alone(project, servers_yaml) -> None:
    pytest.importorskip("xdist")
    servers_yaml(a=[])
    project.files(
        test_1="""
        import pytest
        @pytest.fixture(params=["mine", "yours"])
        def inference_server(request): return request.param
        def test_it(inference_server): assert inference_server in ("mine", "yours")
        """
    )
    project.run("-n2", plugins=("xdist",)).assert_outcomes(passed=2)
    assert project.events("started") == []


def test_nothing_starts_for_a_run_that_ends_with_its_collection(inline_project, servers_yaml) -> None:
    servers_yaml(a=[])
    inline_project.files(test_1="def test_1(inference_server): pass\n", test_2="import no_such_module\n")
    inline_project.run().assert_outcomes(errors=1)
    assert inline_project.events("started") == []
    inline_project.run("--continue-on-collection-errors").assert_outcomes(passed=1, errors=1)
    assert inline_project.events("started") == ["started a"]
