"""When servers start: beside the tests that need none, ahead of those that do, never for those that do not run."""

from __future__ import annotations

import time

import pytest

WORKERS = [(), ("-n2",)]


@pytest.mark.parametrize("workers", WORKERS)
def test_tests_without_a_server_run_while_the_first_one_boots(project, servers_yaml, workers) -> None:
    if workers:
        pytest.importorskip("xdist")
    servers_yaml(a=["--delay=3"])
    files = {
        f"test_{n}": """
        import time
        import pytest
        from helpers import note
        def test_with(inference_server): note("with", inference_server.name)
        @pytest.mark.parametrize("n", range(5))
        def test_without(n):
            time.sleep(0.05)
            note("without", n)
        """
        for n in (1, 2)
    }
    project.files(**files)
    result = project.run(*workers, plugins=("xdist",) if workers else ())
    result.assert_outcomes(passed=12)
    events = project.events("started", "without", "with")
    assert events.index("started a") == 10, events


@pytest.mark.parametrize("workers", WORKERS)
def test_without_prelaunch_nothing_starts_before_a_test_asks(project, servers_yaml, workers) -> None:
    if workers:
        pytest.importorskip("xdist")
    servers_yaml(a=[], b=[])
    project.files(
        test_1="""
        import time
        import pytest
        from helpers import note
        def test_without():
            time.sleep(1.5)
            note("without")
        @pytest.mark.infserver("a")
        def test_a(inference_server):
            time.sleep(1)
            note("a is done")
        @pytest.mark.infserver("b")
        def test_b(inference_server): pass
        """
    )
    plugins = ("xdist",) if workers else ()
    project.run("--infserver-no-prelaunch", plugins=plugins)  # An unknown spelling starts nothing.
    assert project.events() == []
    result = project.run("--no-infserver-prelaunch", *workers, plugins=plugins)
    result.assert_outcomes(passed=3)
    events = project.events("started", "without", "a")
    if not workers:
        assert events == ["without", "started a", "a is done", "started b"]
    (project.path / "events.txt").unlink()
    result = project.run("--infserver-max-servers=2", *workers, plugins=plugins)
    result.assert_outcomes(passed=3)
    events = project.events("started", "without", "a")
    # With room for two the second one is there before a test asks for it.
    assert events.index("started b") < events.index("a is done")


def test_a_project_without_prelaunch_and_without_a_wish_starts_nothing(project, servers_yaml) -> None:
    pytest.importorskip("xdist")
    servers_yaml(a=[], b=[])
    project.files(
        test_1="""
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
    )
    for arguments in (
        ("--collect-only",),
        ("--setup-plan",),
        ("--collect-only", "-n2"),
        ("--setup-plan", "-n2"),
        ("-k", "plain", "-n2"),
        ("-k", "skipped", "-n2"),
    ):
        project.run(*arguments, plugins=("xdist",))
        assert project.events("started") == [], arguments
    project.run("-k", "test_b", "-n2", plugins=("xdist",)).assert_outcomes(passed=1)
    assert project.events("started") == ["started b"]
    # The cache tells -lf what failed last time; xdist's workers have it from the controller.
    cached = ("-p", "cacheprovider", "-o", "cache_dir=cache")
    project.run("-n2", *cached, plugins=("xdist",)).assert_outcomes(passed=2, failed=1, skipped=1)
    (project.path / "events.txt").unlink()
    project.run("-n2", "--lf", *cached, plugins=("xdist",)).assert_outcomes(failed=1)
    assert project.events("started", "stopped") == ["started a", "stopped a gone"]


@pytest.mark.parametrize("workers", WORKERS)
def test_a_failed_start_is_tried_once_and_fails_every_test_at_once(project, servers_yaml, quiet, workers) -> None:
    if workers:
        pytest.importorskip("xdist")
    servers_yaml(bad=["--say=no such weights", "--delay=1", "--exit=7"], good=[])
    project.files(
        test_1="""
        import pytest
        @pytest.mark.parametrize("n", range(5))
        def test_it(inference_server, n): pass
        @pytest.mark.infserver_needs("good", "bad")
        def test_both(inference_servers): pass
        """
    )
    begin = time.monotonic()
    result = project.run(*workers, plugins=("xdist",) if workers else ())
    assert time.monotonic() - begin < 15
    result.assert_outcomes(passed=5, errors=6)
    assert quiet(result).count("exited with code 7") >= 6
    log = (project.path / "server_logs" / "bad" / "server.log").read_text()
    assert log.count("no such weights") == 1


@pytest.mark.parametrize("workers", WORKERS)
def test_session_fixtures_are_finished_while_their_server_runs(project, servers_yaml, workers) -> None:
    if workers:
        pytest.importorskip("xdist")
    servers_yaml(a=[], b=[])
    project.files(
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
    result = project.run("--infserver-max-servers=2", *workers, plugins=("xdist",) if workers else ())
    result.assert_outcomes(passed=6)
    events = project.events("finished", "stopping")
    for name in "ab":
        assert f"finished {name}" in events
        assert max(at for at, line in enumerate(events) if line.endswith(name)) == events.index(f"stopping {name}")


@pytest.mark.parametrize("workers", WORKERS)
def test_a_boot_is_no_business_of_pytest_timeout(project, servers_yaml, workers) -> None:
    pytest.importorskip("pytest_timeout")
    if workers:
        pytest.importorskip("xdist")
    servers_yaml(a=["--delay=2"])
    project.files(test_1="def test_1(inference_server): pass\ndef test_2(inference_server): pass\n")
    plugins = ("xdist",) if workers else ()
    project.run("--timeout=1.5", *workers, plugins=(*plugins, "pytest_timeout")).assert_outcomes(passed=2)


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


def test_nothing_starts_for_a_run_that_ends_with_its_collection(project, servers_yaml) -> None:
    servers_yaml(a=[])
    project.files(test_1="def test_1(inference_server): pass\n", test_2="import no_such_module\n")
    project.run().assert_outcomes(errors=1)
    assert project.events("started") == []
    project.run("--continue-on-collection-errors").assert_outcomes(passed=1, errors=1)
    assert project.events("started") == ["started a"]
