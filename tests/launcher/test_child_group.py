"""The groups of our own children are killed as long as their numbers are theirs, and never later."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator

import psutil
import pytest

from pytest_infserver.system.processes.bounded_run import run_bounded
from pytest_infserver.system.processes.child_group import kill_group, wait_for_end

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "waitid"), reason="nothing tells there of a child that is not reaped"),
    pytest.mark.usefixtures("hard_limit", "nothing_left"),
]
LONG = 60.0

Start = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[subprocess.Popen[bytes]] = []

    def make(script: str) -> subprocess.Popen[bytes]:
        command = ["sh", "-c", script]
        made.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True))
        return made[-1]

    yield make
    for child in made:
        child.kill()
        child.communicate()


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The groups that are killed, each at a moment when its number is that of a child which is not reaped."""
    groups: list[int] = []
    kill = os.killpg

    def note(group: int, number: int) -> None:
        os.waitid(os.P_PID, group, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        groups.append(group)
        kill(group, number)

    monkeypatch.setattr(os, "killpg", note)
    return groups


def test_a_wait_for_the_end_does_not_reap(start: Start) -> None:
    child = start("exit 3")
    assert wait_for_end(child, LONG)
    assert wait_for_end(child, 0)
    assert child.returncode is None
    assert child.wait() == 3
    assert wait_for_end(child, 0)


def test_a_wait_that_is_over_before_the_end(start: Start) -> None:
    child = start("exec sleep 600")
    assert not wait_for_end(child, 0.05)
    assert child.poll() is None


def test_what_an_ended_child_has_left_in_its_group_is_killed(start: Start, signalled: list[int]) -> None:
    child = start("sleep 600 >&- & echo $!")
    assert child.stdout is not None
    left = psutil.Process(int(child.stdout.readline()))
    assert wait_for_end(child, LONG)
    kill_group(child)
    assert signalled == [child.pid]
    psutil.wait_procs([left], LONG)
    assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE
    assert child.wait() == 0


@pytest.mark.parametrize("by_somebody_else", [True, False])
def test_the_number_of_a_child_that_is_reaped_is_nobodys(
    start: Start, signalled: list[int], by_somebody_else: bool
) -> None:
    child = start("exit 0")
    if by_somebody_else:
        os.waitpid(child.pid, 0)
        assert child.returncode is None
    else:
        child.wait()
    kill_group(child)
    assert signalled == []
    assert wait_for_end(child, LONG)


@pytest.mark.parametrize("script", ["echo a", "echo a; exit 3", "echo a; exec sleep 600", "exec yes"])
def test_a_bounded_run_kills_its_group_before_it_reaps(signalled: list[int], script: str) -> None:
    run_bounded(["sh", "-c", script], 0.5, 1024)
    assert len(signalled) == 1
