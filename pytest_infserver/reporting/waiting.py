"""What a server that is starting does, shown while the user waits for it."""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING

import pytest

from pytest_infserver.reporting.terminal import visible_terminal, write_line

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_FIRST_LIVE = 1.0
_FIRST_PLAIN = 5.0
_NEXT_PLAIN = 15.0


class WaitingLine:
    """One line that is rewritten on a terminal; elsewhere a line for a new phase, not more than one in 15 s."""

    def __init__(self, config: pytest.Config, *, live: bool = True) -> None:
        """Show nothing yet.

        Args:
            config: pytest's configuration.
            live: Whether a line may be rewritten; not where somebody else writes at the same time.
        """
        self._config = config
        self._may_live = live
        self._live = False
        self._lock = threading.Lock()
        self._shown: dict[InferenceServer, tuple[str, float]] = {}

    def __call__(self, server: InferenceServer) -> None:
        """Show where a starting server is, or that it has come to an end with that."""
        seconds = server.starting_seconds
        if seconds is None and not self._live and server not in self._shown:
            return
        if seconds is not None and seconds < _FIRST_LIVE:
            return
        with self._lock, visible_terminal(self._config) as terminal:
            if terminal is None or terminal.verbosity < 0:
                return
            if seconds is None:
                self._finish(terminal, server)
            elif terminal.isatty and self._may_live:
                self._show_live(terminal, server, seconds)
            else:
                self._show_plain(terminal, server, seconds)

    def _show_live(self, terminal: pytest.TerminalReporter, server: InferenceServer, seconds: float) -> None:
        if not self._live:
            terminal.ensure_newline()
            self._live = True
        text = f"infserver: {server}: {server.phase}, {seconds:.0f} s"
        room = terminal._tw.fullwidth - 1
        if len(text) > room:
            text = f"{seconds:.0f} s: {server.phase}"
        terminal.rewrite(text[:room], erase=True)

    def _show_plain(self, terminal: pytest.TerminalReporter, server: InferenceServer, seconds: float) -> None:
        # A percentage alone makes no new phase.
        phase = re.sub(r" \d+ %", "", server.phase)
        last_phase, last_time = self._shown.get(server, ("", time.monotonic() - seconds - _NEXT_PLAIN + _FIRST_PLAIN))
        if phase == last_phase or time.monotonic() - last_time < _NEXT_PLAIN:
            return
        self._shown[server] = phase, time.monotonic()
        write_line(terminal, f"{server}: {server.phase}, {seconds:.0f} s")

    def _finish(self, terminal: pytest.TerminalReporter, server: InferenceServer) -> None:
        if self._live:
            self._live = False
            terminal.rewrite("", erase=True)
            terminal.rewrite("")
        if self._shown.pop(server, None) is not None and server.running and server.start_seconds is not None:
            write_line(terminal, f"{server}: ready after {server.start_seconds:.0f} s")
