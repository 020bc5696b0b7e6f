"""Runs of pytest on a terminal, and what its user would see there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pyte
from screens import lines_of, resize

LIMIT = 100.0
"""Seconds after which a run has hung."""


class PtyRun:
    """One run on a terminal of its own.

    Attributes:
        screen: The terminal as it is now.
        frames: What it has shown, one text per change.
        raw: What was written on it.
    """

    def __init__(
        self, argv: list[str], cwd: Path, *, columns: int = 80, lines: int = 24, env: Mapping[str, str] | None = None
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=100_000, ratio=0.5)
        self.stream = pyte.ByteStream(self.screen)
        self.frames: list[str] = []
        self.raw = b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        environment = {**os.environ, "TERM": "xterm-256color", "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
        for name in ("COLUMNS", "LINES", "CI", "BUILD_NUMBER", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            argv,
            cwd=cwd,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(slave)
        self._deadline = time.monotonic() + LIMIT

    def read(self) -> bool:
        """Take in what is written within a moment; tell whether more may come."""
        assert time.monotonic() < self._deadline, "\n".join(lines_of(self.screen))
        if not select.select([self._master], [], [], 0.05)[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:
            return False
        if not data:
            return False
        self.raw += data
        self.stream.feed(data)
        frame = "\n".join(line.rstrip() for line in self.screen.display)
        if not self.frames or frame != self.frames[-1]:
            self.frames.append(frame)
        return True

    def until(self, condition: Callable[[str], object]) -> str:
        """Read on until the screen is so; return what it shows."""
        while not (self.frames and condition(self.frames[-1])):
            assert self.read(), f"it did not come to that:\n{self.text}"
        return self.frames[-1]

    def resize(self, columns: int, lines: int) -> None:
        """Change the terminal's size, as the user does with a window."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        resize(self.screen, columns, lines)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def finish(self) -> int:
        """Read to the end; return the exit code."""
        while self.read():
            pass
        return self.process.wait(LIMIT)

    def close(self) -> None:
        """End it, if it has not ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
            self.process.kill()
            self.process.wait()
        os.close(self._master)

    @property
    def text(self) -> str:
        """All that can be read on the terminal now, with what has scrolled away."""
        return "\n".join(lines_of(self.screen))


def pytest_argv(*arguments: str) -> list[str]:
    """Return the command line of a run."""
    # Without the table of servers: it tells of times, and these differ.
    options = ["--infserver-config", "servers.yaml", "--infserver-summary=never"]
    return [sys.executable, "-m", "pytest", *options, *arguments]
