"""When code of the user's may run beside the main thread."""

from __future__ import annotations

import threading
import time

from pytest_infserver.pool.process import safe_moments
from pytest_infserver.pool.process.safe_moments import SafeMoments

LIMIT = 20.0


def in_moment(moments: SafeMoments, body: object = None) -> tuple[threading.Thread, threading.Event]:
    ran = threading.Event()

    def run() -> None:
        with moments.moment():
            if callable(body):
                body()
            ran.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, ran


def test_it_waits_for_the_end_of_a_test_and_goes_before_the_next() -> None:
    moments = SafeMoments()
    with moments.test():
        _, ran = in_moment(moments)
        assert not ran.wait(0.2)
    with moments.test():
        assert ran.is_set()


def test_it_runs_while_the_main_thread_waits_in_the_middle_of_a_test() -> None:
    moments = SafeMoments()
    with moments.test():
        _, ran = in_moment(moments)
        with moments.wait():
            assert ran.wait(LIMIT)
        _, later = in_moment(moments)
        assert not later.wait(0.2)
    assert later.wait(LIMIT)


def test_a_test_waits_for_what_runs_already_but_not_for_ever(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(safe_moments, "_PATIENCE", 0.3)
    moments = SafeMoments()
    may_end = threading.Event()
    thread, ran = in_moment(moments, lambda: may_end.wait(LIMIT))
    time.sleep(0.1)
    begin = time.monotonic()
    with moments.test():
        assert 0.2 < time.monotonic() - begin < LIMIT
        assert not ran.is_set()
    # The next one does not wait once more.
    monkeypatch.setattr(safe_moments, "_PATIENCE", 10 * LIMIT)
    with moments.test():
        assert not ran.is_set()
    may_end.set()
    thread.join(LIMIT)
    assert ran.is_set()


def test_outside_of_tests_it_runs_at_once() -> None:
    moments = SafeMoments()
    with moments.wait():
        assert in_moment(moments)[1].wait(LIMIT)
    assert in_moment(moments)[1].wait(LIMIT)
