"""Runs of pytest in the background, each in a folder of its own, that wait in a test until they may go on."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

LIMIT = 180.0
HELPERS = """
import time
from helpers import EVENTS, get, note

def await_go():
    while not EVENTS.with_name("go").exists():
        time.sleep(0.02)
"""


class BackgroundRuns:
    """All of them, until `kill`."""

    def __init__(self, path: Path, helpers: Path) -> None:
        """Start none.

        Args:
            path: Where their folders are made.
            helpers: Module for their tests, as of `plugin.conftest.Project`.
        """
        self._path = path
        self._helpers = helpers
        self._running: dict[Path, subprocess.Popen[bytes]] = {}

    def start(self, name: str, config: str, tests: str, *arguments: str) -> Path:
        """Start a run; return its folder.

        Args:
            name: Name of the folder.
            config: Its servers.yaml.
            tests: Its tests; they may call ``await_go()``.
            arguments: Further arguments of pytest.
        """
        folder = self._path / name
        folder.mkdir(parents=True)
        (folder / "helpers.py").write_text(self._helpers.read_text())
        (folder / "test_it.py").write_text(HELPERS + tests)
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "servers.yaml").write_text(config)
        plugins = ["-p", "pytest_infserver.plugin", *(["-p", "xdist"] if "-n" in " ".join(arguments) else [])]
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *plugins, *arguments]
        with (folder / "output").open("w") as output:
            self._running[folder] = subprocess.Popen(
                [*command, "--infserver-config=servers.yaml"], cwd=folder, stdout=output, stderr=subprocess.STDOUT
            )
        return folder

    def process(self, folder: Path) -> subprocess.Popen[bytes]:
        """Return the process of a run."""
        return self._running[folder]

    def await_lines(self, folder: Path, *lines: str) -> None:
        """Wait until the tests of a run have noted these lines."""
        path, deadline = folder / "events.txt", time.monotonic() + LIMIT
        while not set(lines) <= set(path.read_text().splitlines() if path.exists() else []):
            output = (folder / "output").read_text()
            assert self._running[folder].poll() is None, output
            assert time.monotonic() < deadline, output
            time.sleep(0.05)

    def end(self, folder: Path) -> str:
        """Let the tests of a run go on, and return what it has shown."""
        (folder / "go").touch()
        self._running[folder].wait(LIMIT)
        return (folder / "output").read_text()

    def kill(self) -> None:
        """End those that are left."""
        for process in self._running.values():
            with contextlib.suppress(OSError):
                process.kill()
            process.wait()
