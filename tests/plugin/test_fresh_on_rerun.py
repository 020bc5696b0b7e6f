"""Tests that are repeated, with their servers started anew."""

from __future__ import annotations

import pytest
from fake_servers import fake_block

pytest.importorskip("pytest_rerunfailures")

TESTS = """
    from helpers import get, note

    def test_flaky(inference_server):
        note("flaky", inference_server.pid)
        counted = len(pids())
        assert get(inference_server, "/argv")["pid"] == inference_server.pid
        assert counted >= 3

    def test_next(inference_server):
        assert inference_server.check_health()

    def pids():
        import pathlib
        lines = pathlib.Path("events.txt").read_text().splitlines()
        return [line for line in lines if line.startswith("flaky ")]
"""


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "same"])
def test_each_repetition_has_a_new_server_if_that_is_wanted(twin_project, quiet, fresh):
    twin_project.servers(small=[])
    twin_project.files(test_it=TESTS)
    words = ["--infserver-fresh-on-rerun"] if fresh else []
    result = twin_project.run("--reruns", "2", *words, plugins=("pytest_rerunfailures",))
    quiet(result)
    assert twin_project.outcomes("test_it") == {"rerun": 2, "passed": 2}
    pids = [line.split()[1] for line in twin_project.events("flaky")]
    assert len(pids) == 3
    assert len(set(pids)) == (3 if fresh else 1)


def test_what_the_old_server_leaves_does_not_fail_the_repetition(inline_project, quiet):
    inline_project.servers(small={"debug_mode": True, **fake_block("--daemon", stop_timeout=1)})
    inline_project.files(test_it=TESTS)
    result = inline_project.run(
        "--reruns", "2", "--infserver-fresh-on-rerun", "-k", "flaky", plugins=("pytest_rerunfailures",)
    )
    text = quiet(result)
    assert "1 passed" in text
    assert "2 rerun" in text
