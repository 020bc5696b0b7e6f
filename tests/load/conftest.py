"""A stand-in for an engine that streams tokens without computing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import CommandServer

INSTANT = Path(__file__).parent / "instant_server.py"


@pytest.fixture
def instant(tmp_path: Path, nothing_left: None) -> Iterator[Callable[..., CommandServer]]:
    """Start servers that answer at once: ``instant("--gap", "0.001")``."""
    started: list[CommandServer] = []

    def start(*arguments: str, **settings: Any) -> CommandServer:
        command = [sys.executable, str(INSTANT), "--port", "{port}", *arguments]
        settings = {"name": "instant", "startup_timeout": 30, "output_dir": tmp_path / "server_logs", **settings}
        started.append(CommandServer(launch_command=command, **settings).start())
        return started[-1]

    yield start
    for server in started:
        server.stop()
