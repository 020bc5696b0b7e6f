"""Waits for what may take minutes: tells meanwhile, and gives up when it takes too long or has become pointless."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pytest_infserver.launcher.profiling.profiler import Waiting

Result = TypeVar("Result")

HUNG = "it did not end"
_STEP = 0.1
_FIRST = 3.0
_NEXT = 10.0


def wait_patiently(is_done: Callable[[float], bool], waiting: Waiting) -> str | None:
    """Wait until something is done.

    Args:
        is_done: Waits for it up to so many seconds and returns whether it is done.
        waiting: How long that may take, who is told, and what makes it pointless.

    Returns:
        Why it was given up, or None if it is done.
    """
    begin = time.monotonic()
    told = begin + _FIRST - _NEXT
    while not is_done(_STEP):
        now = time.monotonic()
        if now - begin > waiting.limit:
            return f"{HUNG} within {waiting.limit:g} s"
        if now - told >= _NEXT:
            told = now
            waiting.tell(now - begin)
        problem = waiting.pointless()
        if problem is not None and not is_done(_STEP):
            return problem
    return None


def patiently(work: Callable[[], Result], waiting: Waiting) -> Result | str:
    """Do something in a thread that cannot be looked at meanwhile.

    Args:
        work: The work. Its errors are raised here.
        waiting: As for `wait_patiently`.

    Returns:
        What the work has returned; or why it was given up. It is not ended then.
    """
    results: list[Result] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        done.set()

    thread = threading.Thread(target=run, name="infserver-profiler", daemon=True)
    thread.start()
    problem = wait_patiently(done.wait, waiting)
    if problem is not None:
        return problem
    if errors:
        raise errors[0]
    return results[0]
