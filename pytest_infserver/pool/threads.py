"""Threads of the pool: what is raised in one reaches somebody who can do something about it."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread

_start = Thread.start
"""As it was before a test could patch it."""


def spawn(body: Callable[[], object], name: str, failed: Callable[[BaseException], object]) -> Thread:
    """Start a thread that does not outlive the process, and return it.

    Args:
        body: What it does.
        name: What it is called.
        failed: Gets whatever the body raises, in that thread.

    Raises:
        RuntimeError: The system has no thread left.
    """

    def run() -> None:
        try:
            body()
        except BaseException as error:
            failed(error)

    thread = Thread(target=run, name=f"infserver-{name}", daemon=True)
    _start(thread)
    return thread
