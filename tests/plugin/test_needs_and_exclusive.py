"""Several servers together, one alone, and one more inside of a test: whatever is asked for, nobody waits for ever.

Whoever does wait for ever is ended by the hard limit of a run, long before a server's own limit.
"""

from __future__ import annotations

import pytest

PATIENT = {"startup_timeout": 600}


@pytest.fixture
def run_two(project):
    """Run the project on two workers."""
    pytest.importorskip("xdist")
    return lambda *arguments: project.run("-n2", *arguments, plugins=("xdist",))


def test_servers_come_together_or_not_at_all(twin_project, servers_yaml) -> None:
    servers_yaml(PATIENT, a=[], b=[], bad=["--exit=5"])
    twin_project.files(
        test_1="""
        import pytest, time
        from helpers import get, note
        @pytest.mark.infserver_needs("a", "b")
        @pytest.mark.parametrize("n", range(3))
        def test_ab(inference_servers, n):
            assert list(inference_servers) == ["a", "b"]
            pids = {get(server, "/argv")["pid"] for server in inference_servers.values()}
            assert pids == {server.pid for server in inference_servers.values()} and len(pids) == 2
            time.sleep(0.1)
        @pytest.mark.infserver_needs("b", "a")
        @pytest.mark.parametrize("n", range(3))
        def test_ba(inference_servers, n):
            time.sleep(0.1)
        @pytest.mark.infserver_needs("a", "bad")
        def test_bad(inference_servers): note("never")
        @pytest.mark.infserver_needs("a", "elsewhere")
        def test_unknown(inference_servers): note("never")
        @pytest.mark.infserver("a")
        @pytest.mark.infserver_needs("b")
        def test_both_fixtures(inference_server, inference_servers):
            assert inference_server.name == "a" and list(inference_servers) == ["b"]
            assert inference_servers["b"].check_health() and inference_server.check_health()
        def test_no_mark(inference_servers): note("never")
        """
    )
    result = twin_project.run("--infserver-max-servers=2", "--infserver-optional-names=elsewhere")
    result.assert_outcomes(passed=7, errors=2, skipped=1)
    result.stdout.fnmatch_lines(["*exited with code 5*"])
    assert twin_project.events("never") == []


@pytest.mark.parametrize("mode", ["loadfile", "each"])
def test_two_workers_that_need_the_same_servers_in_another_order(project, servers_yaml, run_two, mode) -> None:
    servers_yaml(PATIENT, a=[], b=[])
    text = """
        import pytest, time
        @pytest.mark.parametrize("n", range(4))
        @pytest.mark.infserver_needs("{}", "{}")
        @pytest.mark.infserver(exclusive={})
        def test_it(inference_servers, n):
            assert all(server.check_health() for server in inference_servers.values())
        @pytest.mark.infserver("{}")
        def test_single(inference_server): time.sleep(0.1)
        """
    project.files(test_1=text.format("a", "b", True, "a"), test_2=text.format("b", "a", False, "b"))
    result = run_two(f"--dist={mode}", "--infserver-max-servers=2")
    result.assert_outcomes(passed=20 if mode == "each" else 10)
    assert "cannot be had" not in result.stdout.str()
    assert sorted(project.events("started")) == ["started a", "started b"]


def test_one_more_inside_of_a_test_never_blocks(twin_project, servers_yaml) -> None:
    servers_yaml(PATIENT, a=[], b=[])
    twin_project.files(
        test_1="""
        import pytest, time
        from helpers import get
        @pytest.mark.infserver_needs("a")
        @pytest.mark.infserver("b")
        @pytest.mark.parametrize("n", range(2))
        def test_b_in_a(inference_servers, n, request):
            if n == 0: time.sleep(0.5)
            more = request.getfixturevalue("inference_server")
            assert get(more, "/argv")["pid"] == more.pid
        """,
        test_2="""
        import pytest, time
        from helpers import get
        @pytest.mark.infserver_needs("b")
        @pytest.mark.infserver("a")
        @pytest.mark.parametrize("n", range(2))
        def test_a_in_b(inference_servers, n, request):
            if n == 0: time.sleep(0.5)
            more = request.getfixturevalue("inference_server")
            assert get(more, "/argv")["pid"] == more.pid
        """,
    )
    for places in (2, 1):
        result = twin_project.run(f"--infserver-max-servers={places}")
        result.assert_outcomes(passed=4)


def test_alone_on_each_others_servers_one_gets_a_reason(project, servers_yaml, run_two) -> None:
    servers_yaml(PATIENT, a=[], b=[])
    text = """
        import pytest, time
        from helpers import note
        @pytest.mark.infserver_needs("{}")
        @pytest.mark.infserver("{}", exclusive=True)
        def test_it(inference_servers, request):
            note("has")
            while (open("events.txt").read().count("has")) < 2: time.sleep(0.02)
            request.getfixturevalue("inference_server")
        """
    project.files(test_1=text.format("a", "b"), test_2=text.format("b", "a"))
    result = run_two("--dist=loadfile", "--infserver-max-servers=2")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*cannot be had: all who use what it needs wait for servers themselves*"])


def test_factory(twin_project, servers_yaml) -> None:
    servers_yaml(a=[])
    twin_project.files(
        test_1="""
        import pytest
        from helpers import get, note, alive
        pids = []
        @pytest.mark.parametrize("n", range(4))
        def test_it(inference_server_factory, inference_server, n):
            assert all(not alive(pid) for pid in pids)
            mine = inference_server_factory("a", fresh=True)
            pids.append(get(mine, "/argv")["pid"])
            assert mine.port != inference_server.port and pids[-1] == mine.pid != inference_server.pid
            if n == 2: mine.stop()
        """
    )
    twin_project.run("--infserver-max-servers=4").assert_outcomes(passed=4)
    assert twin_project.events("started", of=["a"]) == ["started a"]
    assert len(twin_project.events("started")) == 5


def test_alone_a_test_may_stop_kill_and_start_its_server(twin_project, servers_yaml) -> None:
    servers_yaml(a=[])
    text = """
        import time
        import pytest
        from helpers import get, kill, note
        from pytest_infserver import InferenceServerError
        @pytest.mark.parametrize("n", range(4))
        def test_shared(inference_server, n):
            note("use", "begin", "shared", n, time.monotonic())
            assert get(inference_server, "/argv")["pid"] == inference_server.pid
            with pytest.raises(InferenceServerError, match="shared with other tests"): inference_server.stop()
            time.sleep(0.1)
            get(inference_server, "/health")
            note("use", "end", "shared", n, time.monotonic())
        @pytest.mark.infserver(exclusive=True)
        class TestAlone:
            @pytest.fixture(autouse=True)
            def noted(self, inference_server):
                note("use", "begin", "alone", 0, time.monotonic())
                assert get(inference_server, "/argv")["pid"] == inference_server.pid
                yield
                note("use", "end", "alone", 0, time.monotonic())
            def test_stops(self, inference_server):
                inference_server.stop()
                assert not inference_server.running
            def test_kills(self, inference_server):
                kill(inference_server)
                assert inference_server.wait_death(10)
            def test_restarts(self, inference_server):
                before = inference_server.pid
                inference_server.stop()
                inference_server.start()
                assert inference_server.check_health() and inference_server.running
                assert get(inference_server, "/argv")["pid"] == inference_server.pid != before
            def test_kills_and_restarts(self, inference_server):
                before = inference_server.pid
                kill(inference_server)
                assert inference_server.wait_death(10)
                inference_server.start()
                assert get(inference_server, "/argv")["pid"] == inference_server.pid != before
        """
    twin_project.files(test_1=text, test_2=text)
    result = twin_project.run()
    result.assert_outcomes(passed=16)
    uses = sorted((line.split() for line in twin_project.events("use")), key=lambda words: float(words[4]))
    inside, alone = 0, False
    for _, what, kind, _, _ in uses:
        if what == "begin":
            assert not alone, uses
            assert kind == "shared" or not inside, uses
            inside, alone = inside + 1, kind == "alone"
        else:
            inside, alone = inside - 1, False
    assert "died" not in result.stdout.str()


def test_a_worker_that_crashes_while_it_starts_a_server_of_its_own(project, servers_yaml, run_two) -> None:
    servers_yaml(a=["--delay=2"])
    project.files(
        test_1="""
        import os, signal, threading
        import pytest
        from helpers import get
        @pytest.mark.infserver(exclusive=True)
        def test_crash(inference_server):
            inference_server.stop()
            threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGKILL)).start()
            inference_server.start()
        @pytest.mark.parametrize("n", range(3))
        def test_fine(inference_server, n): assert get(inference_server, "/argv")["pid"] == inference_server.pid
        """
    )
    result = run_two("--infserver-summary=never")
    result.assert_outcomes(passed=3, failed=1)
    assert "infserver ====" not in result.stdout.str()


def test_a_server_that_its_test_kills_is_dead_at_once(twin_project, servers_yaml) -> None:
    servers_yaml(a=[])
    twin_project.files(
        test_1="""
        import pytest
        from helpers import get
        from pytest_infserver import ServerState
        @pytest.mark.infserver(exclusive=True)
        @pytest.mark.parametrize("n", range(2))
        def test_kills(inference_server, n):
            before = get(inference_server, "/argv")["pid"]
            inference_server.kill()
            assert inference_server.state is ServerState.DIED
            assert inference_server.wait_death(0)
            assert not inference_server.check_health()
            assert "a (command) " in inference_server.why_died()
            inference_server.start()
            assert inference_server.why_died() is None
            assert get(inference_server, "/argv")["pid"] != before
        """
    )
    twin_project.run().assert_outcomes(passed=2)


def test_more_than_there_is_room_for_ends_the_collection(twin_project, servers_yaml) -> None:
    servers_yaml(a=[], b=[], c=[])
    twin_project.files(
        test_1="""
        import pytest
        @pytest.mark.infserver_needs("a", "b", "c")
        def test_it(inference_servers): pass
        def test_other(inference_server): pass
        """
    )
    result = twin_project.run("--infserver-max-servers=2")
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == pytest.ExitCode.USAGE_ERROR, text
    assert "INTERNALERROR" not in text
    assert "test_it: needs 3 servers at the same time (a, b, c), and --infserver-max-servers allows 2" in text
    assert twin_project.events() == []
    assert not (twin_project.path / "server_logs").exists()
