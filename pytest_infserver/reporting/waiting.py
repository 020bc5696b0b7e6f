"""What a server that is starting does, shown while the user waits for it."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_FIRST_LIVE = 1.0
_FIRST_PLAIN = 5.0
_NEXT_PLAIN = 15.0


class WaitingLine:
    """One line that is rewritten on a terminal; elsewhere a line for a new phase, not more than one in 15 s."""

    def __init__(self, reporter: pytest.TerminalReporter) -> None:
        self._reporter = reporter
        self._live = False
        self._shown: dict[InferenceServer, tuple[str, float]] = {}

    def __call__(self, server: InferenceServer) -> None:
        """Show where a starting server is, or that it has come to an end with that."""
        if self._reporter.verbosity < 0:
            return
        if server.starting_seconds is None:
            self._finish(server)
        elif self._reporter.isatty:
            self._show_live(server, server.starting_seconds)
        else:
            self._show_plain(server, server.starting_seconds)

    def _show_live(self, server: InferenceServer, seconds: float) -> None:
        if seconds < _FIRST_LIVE:
            return
        if not self._live:
            self._reporter.ensure_newline()
            self._live = True
        text = f"infserver: {server}: {server.phase}, {seconds:.0f} s"
        room = self._reporter._tw.fullwidth - 1
        if len(text) > room:
            text = f"{seconds:.0f} s: {server.phase}"
        self._reporter.rewrite(text[:room], erase=True)

    def _show_plain(self, server: InferenceServer, seconds: float) -> None:
        # A percentage alone makes no new phase.
        phase = re.sub(r" \d+ %", "", server.phase)
        last_phase, last_time = self._shown.get(server, ("", time.monotonic() - seconds - _NEXT_PLAIN + _FIRST_PLAIN))
        if phase == last_phase or time.monotonic() - last_time < _NEXT_PLAIN:
            return
        self._shown[server] = phase, time.monotonic()
        self._line(f"{server}: {server.phase}, {seconds:.0f} s")

    def _finish(self, server: InferenceServer) -> None:
        if self._live:
            self._live = False
            self._reporter.rewrite("", erase=True)
            self._reporter.rewrite("")
        if self._shown.pop(server, None) is not None and server.running and server.start_seconds is not None:
            self._line(f"{server}: ready after {server.start_seconds:.0f} s")

    def _line(self, text: str) -> None:
        self._reporter.ensure_newline()
        self._reporter.write_line(f"infserver: {text}")
