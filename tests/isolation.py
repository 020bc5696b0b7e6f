"""What keeps tests apart: a clean environment, a limit for each, and proof that no process is left."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

HARD_LIMIT = 120.0
"""Seconds after which a test, or a run of pytest inside of one, counts as hung."""
FOREIGN_VARIABLES = frozenset(
    ("BUILD_NUMBER", "BUILDKITE", "CI", "COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "GITLAB_CI", "LINES", "PY_COLORS")
) | {"PYTEST_ADDOPTS"}
"""What changes how pytest and this plugin show a run."""


def cleaned_environment() -> dict[str, str]:
    """Return this process's environment as tests shall have it."""
    kept = {
        name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES and not _is_our_setting(name)
    }
    # Stand-ins of engines take any option, and their tables would stay in the cache.
    return {**kept, "NO_COLOR": "1", "INFSERVER_DEVICE_LOCKS": "0", "INFSERVER_CHECK_OPTIONS": "0"}


def _is_our_setting(name: str) -> bool:
    return name.startswith("INFSERVER_") and name not in ("INFSERVER_CACHE_DIR", "INFSERVER_TEST_TOKEN")


@contextlib.contextmanager
def no_process_left() -> Iterator[str]:
    """Fail if a process is left at the end that has the yielded value in its variable INFSERVER_TEST_TOKEN."""
    token = f"infserver-test-{os.getpid()}-{time.monotonic_ns()}"
    yield token
    # A bound on a hang: Ray's own processes take their time where others are busy.
    deadline = time.monotonic() + 40
    while (left := _processes_with(token)) and time.monotonic() < deadline:
        time.sleep(0.05)
    commands = []
    for process in left:
        with contextlib.suppress(psutil.Error):
            commands.append(process.cmdline())
            process.kill()
    assert not commands, f"left running: {commands}"


def _processes_with(token: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.pid != os.getpid() and process.environ().get("INFSERVER_TEST_TOKEN") == token
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def in_a_thread(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a thread of its own.

    Where a trace function raises in an `except` block Python may never leave that: all later errors of the same thread
    would have its exception as their context.
    """

    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        pool = ThreadPoolExecutor(1)
        try:
            pool.submit(test, *arguments, **fixtures).result()
        finally:
            pool.shutdown(wait=False)

    return run


def own_state_dir(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Give a test a state folder of its own, and ports: it does not see there which ones others were promised."""
    monkeypatch.setenv("INFSERVER_STATE_DIR", str(folder))
    first = 10_000 + os.getpid() % 200 * 50
    monkeypatch.setattr("pytest_infserver.launcher.startup.ports._SEARCH", range(first, first + 50))


def port_of_nobody() -> int:
    """Return a free port where neither this package nor the system looks for one."""
    for port in range(21_000 + int.from_bytes(os.urandom(2), "big") % 10_000, 32_000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
