"""Shows the lines of servers' logs as they come, each with the server's name: ``--infserver-log live``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import pytest

from pytest_infserver.compat import end_of_begun_line, uncaptured_output

_STDERR = 2


class LogLines:
    """Writes past what captures the output of tests, from whatever thread."""

    def __init__(self, config: pytest.Config) -> None:
        """Write nothing yet.

        Args:
            config: pytest's configuration.
        """
        self._config = config

    def __call__(self, name: str, lines: Sequence[str]) -> None:
        """Show lines of a server's log.

        Args:
            name: The server's name.
            lines: The lines, without their ends.
        """
        # That of a worker of xdist is seen by nobody; its stderr is the controller's.
        worker = hasattr(self._config, "workerinput")
        terminal = None if worker else self._config.pluginmanager.get_plugin("terminalreporter")
        begun = "" if terminal is None else end_of_begun_line(terminal)
        text = begun + "".join(f"{name} | {line}\n" for line in lines)
        # In one piece, so that nothing of others comes between.
        with contextlib.suppress(OSError, ValueError):
            handle = uncaptured_output(self._config)
            if terminal is not None and handle is None:
                terminal.write(text, flush=True)
            else:
                _write(_STDERR if handle is None else handle, text.encode("utf-8", "replace"))


def _write(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]
