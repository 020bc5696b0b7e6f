"""Runs of pytest in this process: quick, and without a trace in it."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pkgutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pytest_infserver.launcher.backends import registry

_FILES = "open files"
_LIMIT = 10.0
"""Seconds in which threads end that a run has told to."""
_PACKAGES = ("config", "launcher", "models", "pool", "reporting", "system")


@contextlib.contextmanager
def without_a_trace() -> Iterator[None]:
    """Let pytest run in this process: fail if that changes it; what a run makes known to the plugin is forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", {})
        # A file that is written anew within a second must not be taken for the one before.
        patch.setattr(sys, "dont_write_bytecode", True)
        # The run's own modules may have the name of one of ours.
        for name in [name for name in sys.modules if name == "conftest" or name.startswith("test_")]:
            patch.delitem(sys.modules, name)
        with no_trace_left():
            yield


def load_all() -> None:
    """Load what a run loads, before pytester begins: it makes this process forget what was loaded meanwhile."""
    for package in _PACKAGES:
        folder = importlib.import_module(f"pytest_infserver.{package}")
        for module in pkgutil.walk_packages(folder.__path__, f"{folder.__name__}."):
            # Those have an engine's packages.
            if not module.name.endswith("_in_group"):
                importlib.import_module(module.name)
    importlib.import_module("pytest_infserver.settings")
    importlib.import_module("pytest_infserver.setup")
    importlib.import_module("pytest_infserver.launcher.clients.openai_clients")
    for module in ("httpx", "httpcore", "httpx2", "httpcore2"):
        # openai loads the second of each pair only when it needs it, and keeps its classes of errors.
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


@contextlib.contextmanager
def no_trace_left() -> Iterator[None]:
    """Fail if what is done meanwhile changes this process: a run in it must end as if the process had."""
    # An unclosed file of an earlier test must not be this run's warning.
    gc.collect()
    before = _state()
    threads = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(_LIMIT)
        assert not thread.is_alive(), f"left running: {thread}"
    deadline = time.monotonic() + _LIMIT
    while (after := _state()) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    # What earlier tests have left open may be collected meanwhile.
    after[_FILES] |= before[_FILES]
    for what, value in before.items():
        assert after[what] == value, f"{what} was changed: {after[what]} was {value}"


def _state() -> dict[str, Any]:
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    modules = {name: id(module) for name, module in sys.modules.items() if name.startswith("pytest_infserver")}
    return {
        "how signals are handled": handlers,
        "which signals are blocked": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        # That one is the test runner's own.
        "the environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "the working directory": os.getcwd(),
        "sys.modules": (modules, set(sys.modules)),
        "sys.path": list(sys.path),
        "the standard files": [id(file) for file in (sys.stdin, sys.stdout, sys.stderr)],
        _FILES: _open_files(),
    }


def _open_files() -> set[str]:
    if not os.path.isdir("/proc/self/fd"):
        return set()
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
    return found
