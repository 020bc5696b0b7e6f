"""A command of the user's that ends with 0 when the server is ready."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

from pytest_infserver.launcher.startup.probes.probe import Pointless, Probe
from pytest_infserver.system.http.probe import Answer
from pytest_infserver.system.processes.bounded_run import run_bounded
from pytest_infserver.system.text import shortened

_MAX_OUTPUT = 64 * 1024
_MAX_SHOWN = 200


class CommandProbe(Probe):
    """Runs a command in the environment of the server."""

    once: ClassVar[bool] = True
    quick: ClassVar[bool] = False

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: str | None) -> None:
        """Run nothing yet.

        Args:
            argv: The words.
            env: The environment.
            cwd: The directory; this process's if None.
        """
        self._argv = tuple(argv)
        self._env = env
        self._cwd = cwd

    def look(self, limit: float, pointless: Pointless = lambda: False) -> Answer:
        """Run it."""
        begin = time.monotonic()
        output = run_bounded(self._argv, limit, _MAX_OUTPUT, self._env, cwd=self._cwd, pointless=pointless)
        lines = output.data.decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        said = f", its last line: {last[:_MAX_SHOWN]}" if last else ""
        what = "ended with 0" if output.problem is None else f"{output.problem}{said}"
        return Answer(None, what, time.monotonic() - begin, good=output.problem is None)

    @property
    def subject(self) -> str:
        """The command."""
        return f"command {shortened(shlex.join(self._argv), _MAX_SHOWN)}:"

    @property
    def expects(self) -> str:
        """The exit status."""
        return "exit status 0"
