"""Servers that are reached in other ways than by plain HTTP on one port."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import write_certificate

from pytest_infserver import CommandServer, create_server

ENGINE = str(Path(__file__).with_name("reach_engine.py"))
MakeServer = Callable[..., CommandServer]


@pytest.fixture
def reach_server(tmp_path: Path, nothing_left: None, hard_limit: None) -> Iterator[Callable[..., Any]]:
    """Return what makes a server; it is stopped at the end."""
    made = []

    def make(*arguments: str, port: bool = True, backend: str = "command", **settings: Any) -> Any:
        if backend == "command":
            listens = ["--port", "{port}"] if port else []
            settings["launch_command"] = [sys.executable, "-S", ENGINE, *listens, *arguments]
        else:
            wrapper = tmp_path / "engine"
            wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -S {ENGINE} "$@"\n')
            wrapper.chmod(0o755)
            settings |= {"binary_path": str(wrapper), "gpus": 0}
        server = create_server(backend, **{"output_dir": tmp_path / "logs", "startup_timeout": 30, **settings})
        made.append(server)
        return server

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str, str]:
    """Return files: a certificate for another host than the one that is asked, its key, and its authority."""
    return write_certificate(tmp_path, "some-other-host.example")


@pytest.fixture
def good_certificate(tmp_path: Path) -> tuple[str, str, str]:
    """Return the same for 127.0.0.1."""
    return write_certificate(tmp_path, "127.0.0.1", "localhost")
