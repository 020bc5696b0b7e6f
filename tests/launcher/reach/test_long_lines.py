"""Logs whose lines have 20 MB: what is read of them, and what is said, stays small."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_infserver import ServerDiedError, ServerStartupError, create_server

MUCH = "import os, sys, time; out = sys.stdout; out.write('ERROR: ' + 'x' * (20 << 20)); out.flush(); "
MEMORY = 16 << 20


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Make sure that this process never has such a line in its memory."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY


def test_a_start_that_fails(tmp_path: Path, nothing_left: None, hard_limit: None, little_memory: None) -> None:
    command = [sys.executable, "-S", "-c", MUCH + "sys.exit(3)", "{port}"]
    server = create_server("command", launch_command=command, output_dir=tmp_path, startup_timeout=60)
    with pytest.raises(ServerStartupError, match="exited with code 3") as caught:
        server.start()
    assert len(str(caught.value)) < 10_000


def test_a_server_that_dies(tmp_path: Path, nothing_left: None, hard_limit: None, little_memory: None) -> None:
    waits = f"while not os.path.exists({str(tmp_path / 'end')!r}): time.sleep(0.01)\n"
    code = MUCH + "print('\\nit is ready', flush=True)\n" + waits + MUCH + "sys.exit(3)"
    command = [sys.executable, "-S", "-c", code]
    settings = {"ready": {"log": "^it is ready"}, "startup_timeout": 60}
    server = create_server("command", launch_command=command, output_dir=tmp_path / "logs", **settings).start()
    assert len(server.read_log()) < MEMORY / 4
    (tmp_path / "end").touch()
    assert server.wait_death(60)
    with pytest.raises(ServerDiedError) as caught:
        server.raise_if_dead()
    assert len(str(caught.value)) < 10_000
    server.stop()
