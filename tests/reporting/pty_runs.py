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
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyte
import pytest
from isolation import FOREIGN_VARIABLES, cleaned_environment
from screens import lines_of, resize

LIMIT = 100.0
"""Seconds after which a run has hung."""
TERMINAL_VARIABLES = {"TERM": "xterm-256color", "PYTHONDONTWRITEBYTECODE": "1"}


class Terminal:
    """A terminal, and what its user sees.

    Attributes:
        screen: The terminal as it is now.
        frames: What it has shown, one text per change.
        raw: What was written on it.
    """

    def __init__(self, columns: int, lines: int) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=100_000, ratio=0.5)
        self.stream = pyte.ByteStream(self.screen)
        self.frames: list[str] = []
        self.raw = b""
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._deadline = time.monotonic() + LIMIT

    def read(self) -> bool:
        """Take in what is written within a moment; return whether more may come."""
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

    @property
    def text(self) -> str:
        """All that can be read on the terminal now, with what has scrolled away."""
        return "\n".join(lines_of(self.screen))


class PtyRun(Terminal):
    """One run on a terminal of its own."""

    def __init__(
        self, argv: list[str], cwd: Path, *, columns: int = 80, lines: int = 24, env: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(columns, lines)

        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        environment = {**cleaned_environment(), **TERMINAL_VARIABLES, **(env or {})}
        environment.pop("PYTEST_CURRENT_TEST", None)
        self.process = subprocess.Popen(
            argv,
            cwd=cwd,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=environment,
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(self._slave)

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


class InlineRun(Terminal):
    """One run in this process, whose standard files are a terminal meanwhile; it is over when this is made.

    It is not the terminal of this process: a key that means a signal is none here.
    """

    def __init__(
        self, run: Callable[[], int], *, columns: int = 80, lines: int = 24, env: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(columns, lines)
        self._code = -1
        reader = threading.Thread(target=self._read_all)
        reader.start()
        try:
            with pytest.MonkeyPatch.context() as patch:
                for name in (*FOREIGN_VARIABLES, "PYTEST_CURRENT_TEST"):
                    patch.delenv(name, raising=False)
                for name, value in {**TERMINAL_VARIABLES, **(env or {})}.items():
                    patch.setenv(name, value)
                with _standard_files(self._slave, patch):
                    self._code = run()
        finally:
            os.close(self._slave)
            reader.join(LIMIT)
            os.close(self._master)

    def finish(self) -> int:
        """Return the exit code."""
        return self._code

    def _read_all(self) -> None:
        while self.read():
            pass


@contextlib.contextmanager
def _standard_files(terminal: int, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put a terminal in the place of this process's standard files."""
    before = [os.dup(number) for number in range(3)]
    files = [open(number, "w", buffering=1, encoding="utf-8", closefd=False) for number in (1, 2)]
    for number in range(3):
        os.dup2(terminal, number)
    for name, file in zip(("stdout", "stderr"), files, strict=True):
        patch.setattr(sys, name, file)
        patch.setattr(sys, f"__{name}__", file)
    try:
        yield
    finally:
        for file in files:
            file.close()
        for number, old in enumerate(before):
            os.dup2(old, number)
            os.close(old)


def pytest_options(*arguments: str) -> list[str]:
    """Return the arguments of a run."""
    # Without the table of servers: it tells of times, and these differ.
    return ["--infserver-config", "servers.yaml", "--infserver-summary=never", *arguments]
