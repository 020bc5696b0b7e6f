"""What servers do that somebody waits for, where no line can be rewritten."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_infserver.launcher.phases import without_percent
from pytest_infserver.reporting.terminal import write_line

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.outlook import Wait
    from pytest_infserver.reporting.wait_table import Row

_FIRST = 5.0
_NEXT = 15.0


class PlainLines:
    """A line for what is new, at most one in 15 s, and one for each server that is ready after that."""

    def __init__(self, describe: Callable[[Wait], Row]) -> None:
        """Tell nothing yet.

        Args:
            describe: Puts a wait into words.
        """
        self._describe = describe
        self._told: dict[InferenceServer, str] = {}
        self._starting: set[InferenceServer] = set()
        self._next = 0.0

    def is_due(self, waits: Sequence[Wait]) -> bool:
        """Tell whether there is something to say."""
        return bool(self._told) or any(wait.seconds >= _FIRST for wait in waits)

    def show(self, terminal: pytest.TerminalReporter, waits: Sequence[Wait]) -> None:
        """Say it."""
        for server in self._over(waits):
            del self._told[server]
            if server in self._starting and server.running and server.start_seconds is not None:
                write_line(terminal, f"{server}: ready after {server.start_seconds:.0f} s")
            self._starting.discard(server)
        if time.monotonic() < self._next:
            return
        parts = []
        for wait in waits:
            row = self._describe(wait)
            kind = without_percent(row.doing)
            if wait.seconds >= _FIRST and kind != self._told.get(wait.server):
                self._told[wait.server] = kind
                if not wait.server.running:
                    self._starting.add(wait.server)
                parts.append(f"{row.label}: {row.doing}, {row.time}{row.last}")
        if parts:
            self._next = time.monotonic() + _NEXT
            write_line(terminal, "; ".join(parts))

    def close(self) -> None:
        """Do nothing: what is said stays."""

    def _over(self, waits: Sequence[Wait]) -> list[InferenceServer]:
        waited_for = {wait.server for wait in waits}
        others = [server for server in self._told if server not in waited_for]
        # One that nobody waits for any more may start yet.
        return [server for server in others if server.running or server.starting_seconds is None]
