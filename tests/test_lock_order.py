"""The busiest tests of servers and of the pool take no two locks in both orders."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import lock_order
import pytest

TESTS = Path(__file__).parent
BUSIEST = ["pool/test_pool.py", "pool/test_broker.py", "pool/test_profile_turns.py", "pool/process"]
BUSIEST += ["launcher/test_server.py", "launcher/test_hang.py", "reporting/test_memory_sampler.py"]
LIMIT = 500


@pytest.fixture
def hard_limit_seconds() -> int:
    """As long as the run of them, which takes minutes on a machine that is busy otherwise."""
    return LIMIT


def run(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "lock_order", "-p", "no:cacheprovider", *words]
    return subprocess.run(command, cwd=TESTS, env=env, capture_output=True, text=True, timeout=LIMIT)


@pytest.mark.run
def test_the_busiest_tests(nothing_left: None) -> None:
    done = run("-n0", *BUSIEST)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-5000:]
    # It has seen some.
    orders = int(text.rpartition("orders of locks: ")[2].split()[0])
    assert orders >= 5


@pytest.mark.parametrize("code", ["Lock(), Lock()", "Condition(), RLock()", "RLock(), Condition(Lock())"])
def test_a_circle_is_found(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_order, "_orders", {})
    for name in ("Lock", "RLock"):
        monkeypatch.setattr(threading, name, lock_order._watching(getattr(threading, name)))
    names = {name: getattr(threading, name) for name in ("Lock", "RLock", "Condition")}
    # Two lines of a file of the package, as far as anybody can see.
    text = "\n" + ",\n".join(code.split(", "))
    first, second = eval(compile(f"({text})", "/x/pytest_infserver/made.py", "eval"), names)
    for one, other in ((first, second), (second, first)):
        with one, other:
            pass
        assert len(list(lock_order.circles())) == (1 if one is second else 0)
