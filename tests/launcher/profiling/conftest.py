"""Stand-ins for profilers on PATH, and servers that are profiled."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stand_ins import FakeNsys, Warned

from pytest_infserver import CommandServer, InferenceServer

HERE = Path(__file__).parent
FAKE_ENGINE = HERE.parent.parent / "fake_engine.py"


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH: profilers that this machine may have are not found."""
    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / "cat").symlink_to("/bin/cat")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def install(path: Path, command: str) -> Path:
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def nsys(bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNsys:
    """The stand-in for nsys."""
    events = tmp_path / "events"
    monkeypatch.setenv("FAKE_EVENTS", str(events))
    install(bin_folder / "nsys", f"{sys.executable} -S {HERE / 'fake_nsys.py'}")
    return FakeNsys(events, monkeypatch)


@pytest.fixture
def rocprofv3(bin_folder: Path) -> Path:
    """The stand-in for AMD's profiler."""
    return install(bin_folder / "rocprofv3", f"{sys.executable} -S {HERE / 'fake_rocprofv3.py'}")


@pytest.fixture
def rocprof(bin_folder: Path) -> Path:
    """The stand-in for AMD's old profiler."""
    path = Path(shutil.copy(HERE / "fake_rocprof.sh", bin_folder / "rocprof"))
    path.chmod(0o755)
    return path


Profiled = Callable[..., InferenceServer]


@pytest.fixture
def profiled(tmp_path: Path, nothing_left: None) -> Iterator[Profiled]:
    """Make servers that are profiled: ``profiled("nsys", "--delay", "1", on_demand=True)``; None profiles nothing."""
    made: list[InferenceServer] = []

    def make(
        tool: str | None,
        *arguments: str,
        cls: type[InferenceServer] = CommandServer,
        settings: dict[str, Any] | None = None,
        **profile: Any,
    ) -> InferenceServer:
        settings = {"output_dir": tmp_path / "server_logs", "startup_timeout": 30, "name": "fake", **(settings or {})}
        if tool is not None:
            settings["profile"] = {"tool": tool, **profile}
        command = [sys.executable, "-S", str(FAKE_ENGINE), "--port", "{port}", *arguments]
        server = cls(launch_command=command, **settings)
        server.on_warning = Warned()
        made.append(server)
        return server

    yield make
    for server in made:
        server.runtime.stop_refusal = None
        if server.runtime.launched:
            server.kill()
        try:
            server.stop()
        except Exception as problem:
            # What it has left is looked for all the same; what a test expects of a stop it says itself.
            print(problem)
