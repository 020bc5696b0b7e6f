"""What a failed test shows of its server on a cluster."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.usefixtures("on_cluster", "hard_limit")


TITLE = re.compile(r"^-* ?(\w+): state(?: \((\w+), (http://[\d.:]+)\))? ?-*$")


def states(result: pytest.RunResult) -> list[tuple[str, list[str]]]:
    """Return the names of the servers whose state is shown, each with the lines that say it."""
    lines = result.stdout.lines
    found = []
    for number, line in enumerate(lines):
        match = TITLE.match(line)
        if match:
            found.append((match[1], lines[number + 1 : number + 3]))
    return found


def test_a_server_that_died_and_runs_again_is_shown_as_it_was_when_it_died(project, servers_yaml, run) -> None:
    servers_yaml({"heartbeat_interval": 0.05}, a=["--say", "first words", "--say-when-ready", "at your service"])
    project.files(
        test_1="""
        import time
        from helpers import get, kill
        def test_dies(inference_server):
            time.sleep(0.5)
            get(inference_server, "/say?text=before-the-end")
            kill(inference_server)
            # Long enough for its successor to be ready.
            time.sleep(2)
            assert 0
        def test_later(inference_server): pass
        def test_last(inference_server): assert inference_server.check_health()
        """
    )
    result = run("-p", "no:randomly")
    found = dict(states(result))
    state, heartbeat = found["a"]
    assert re.match(r"died: exited with code 3, [\d.]+ s ago, after [\d.]+ s", state), state
    assert re.match(r"heartbeat: (answered 200 in|last good answer)", heartbeat), heartbeat
    text = result.stdout.str()
    assert "before-the-end" in text
    # What the next launch wrote is none of this test's business; its command names the words, too.
    assert "first words" not in re.sub(r"^command: .*$", "", text, flags=re.M)


EVERY_DAY = {test_a_server_that_died_and_runs_again_is_shown_as_it_was_when_it_died: ("n2",)}
"""See `conftest`."""
