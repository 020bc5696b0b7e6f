"""Servers on a node that is another machine, as far as pytest can tell: process ids mean nothing there."""

from __future__ import annotations

import json

import pytest

from cluster.conftest import ALONE, ON_TWO, every_day

pytestmark = pytest.mark.usefixtures("on_cluster", "hard_limit")

ELSEWHERE = """
from pytest_infserver.cluster.runtime import life

life.machine_id = lambda: "this machine"
"""


@pytest.fixture(autouse=True)
def elsewhere(project) -> None:
    project.files(elsewhere=ELSEWHERE)


@pytest.fixture
def run_elsewhere(run):
    return lambda *arguments: run("-p", "elsewhere", *arguments)


@every_day(ON_TWO)
def test_a_server_is_used_killed_stopped_and_watched_without_its_pid(project, servers_yaml, run_elsewhere) -> None:
    servers_yaml(a=[])
    project.files(
        test_1="""
        import pytest
        from helpers import get
        @pytest.fixture
        def server(inference_server):
            return inference_server
        def test_shared(server):
            assert (server.pid, server.process_tree()) == (None, [])
            assert server.node.endswith(f"({server.host})")
            assert server.check_health()
            assert get(server, "/argv")["pid"]
        @pytest.mark.infserver(exclusive=True)
        def test_kill(server):
            before = get(server, "/argv")["pid"]
            server.kill()
            assert server.wait_death(20)
            assert "while it was in use" in server.why_died()
            server.start()
            assert get(server, "/argv")["pid"] != before
        @pytest.mark.infserver(exclusive=True)
        def test_stop(server):
            server.stop()
            assert not server.check_health()
            server.start()
            assert server.check_health()
        """
    )
    run_elsewhere().assert_outcomes(passed=3)


def test_a_death_is_put_down_to_the_test_that_it_happened_in(project, servers_yaml) -> None:
    servers_yaml(a=["--say-when-ready", "ready-words"])
    project.files(
        test_1="""
        import pytest
        from helpers import get, kill
        @pytest.mark.parametrize("n", range(3))
        def test_before(inference_server, n): get(inference_server, f"/say?text=before-{n}")
        """,
        test_2="""
        from helpers import get, kill
        def test_dies(inference_server):
            get(inference_server, "/say?text=last-words")
            kill(inference_server)
            # The news comes from the node.
            assert inference_server.wait_death(30)
        """,
        test_3="""
        import pytest
        from helpers import get
        @pytest.mark.parametrize("n", range(3))
        def test_after(inference_server, n): get(inference_server, "/argv")
        """,
    )
    result = project.run("-p", "elsewhere")
    result.assert_outcomes(passed=6, failed=1)
    text = result.stdout.str()
    assert "a (command) exited with code 3, while it was in use" in text
    assert "last-words" in text


@every_day(ALONE)
def test_memory_is_that_of_the_node(project, servers_yaml, run_elsewhere) -> None:
    servers_yaml(a=[])
    project.files(test_1="import time\ndef test_1(inference_server): time.sleep(2.5)")
    run_elsewhere().assert_outcomes(passed=1)
    (server,) = json.loads((project.path / "server_logs" / "run.json").read_text())["servers"]
    assert server["memory"]
    assert server["peak_rss_bytes"] > 5_000_000
