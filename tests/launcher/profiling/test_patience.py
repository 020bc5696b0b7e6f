"""Waiting for what may take minutes."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time

import pytest

from pytest_infserver.launcher.profiling import patience
from pytest_infserver.launcher.profiling.patience import patiently, wait_patiently
from pytest_infserver.launcher.profiling.profiler import Waiting

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_result() -> None:
    assert patiently(lambda: 7, Waiting(60)) == 7


def test_error_is_raised_here() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        patiently(fail, Waiting(60))


def test_pointless_work_is_given_up() -> None:
    begun, end = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        end.wait(60)

    why = patiently(work, Waiting(60, pointless=lambda: "it has died" if begun.is_set() else None))
    end.set()
    assert why == "it has died"


def test_result_that_comes_at_once_counts_more_than_that_it_is_pointless() -> None:
    assert patiently(lambda: "done", Waiting(60, pointless=lambda: "it has died")) == "done"


def test_limit() -> None:
    end = threading.Event()
    begin = time.monotonic()
    assert patiently(lambda: end.wait(60), Waiting(0.3)) == "it did not end within 0.3 s"
    end.set()
    assert time.monotonic() - begin < 20


def test_who_waits_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_FIRST", 0.2)
    monkeypatch.setattr(patience, "_NEXT", 0.4)
    told: list[float] = []
    why = wait_patiently(lambda seconds: time.sleep(seconds) or len(told) == 3, Waiting(60, told.append))  # type: ignore[func-returns-value]
    assert why is None
    assert told == sorted(told)
    assert 0.2 <= told[0]
    # The first word comes sooner than the others follow each other.
    assert all(later - earlier >= 0.4 for earlier, later in itertools.pairwise(told))


def test_short_work_is_not_told() -> None:
    told: list[float] = []
    patiently(lambda: time.sleep(0.3), Waiting(60, told.append))
    assert told == []


def test_interrupt_is_not_held_up() -> None:
    end = threading.Event()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        patiently(lambda: end.wait(60), Waiting(60))
    end.set()


def test_waiting_is_narrowed() -> None:
    def dead() -> str:
        return "dead"

    waiting = Waiting(10, pointless=dead)
    assert waiting.at_most(3).limit == 3
    assert waiting.at_most(30).limit == 10
    assert waiting.at_most(3).pointless() == "dead"
    assert waiting.to_the_end().pointless() is None
    assert waiting.to_the_end().limit == 10
