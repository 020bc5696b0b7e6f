"""What servers do that somebody waits for, where no line can be rewritten."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_infserver.launcher.startup.phases import without_percent
from pytest_infserver.reporting.terminal.terminal import write_line

if TYPE_CHECKING:
    from pytest_infserver.pool.wait_report import Wait, WaitReport
    from pytest_infserver.reporting.terminal.wait_table import Row

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
        self._told: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        self._starting: set[str] = set()
        self._next = 0.0

    def is_due(self, waits: Sequence[Wait]) -> bool:
        """Return whether there is something to say."""
        return bool(self._told) or any(wait.seconds >= _FIRST for wait in waits)

    def show(self, terminal: pytest.TerminalReporter, report: WaitReport) -> None:
        """Say it."""
        for name in self._over(report):
            del self._told[name]
            seconds = report.ready.get(name)
            if name in self._starting and seconds is not None:
                write_line(terminal, f"{self._labels[name]}: ready after {seconds:.0f} s")
            self._starting.discard(name)
        if time.monotonic() < self._next:
            return
        parts = []
        for wait in report.waits:
            row = self._describe(wait)
            kind = without_percent(row.doing)
            if wait.seconds >= _FIRST and kind != self._told.get(wait.name):
                self._told[wait.name] = kind
                self._labels[wait.name] = wait.label
                if not wait.is_ready:
                    self._starting.add(wait.name)
                parts.append(f"{row.label}: {row.doing}, {row.time}{row.last}")
        if parts:
            self._next = time.monotonic() + _NEXT
            write_line(terminal, "; ".join(parts))

    def close(self) -> None:
        """Do nothing: what is said stays."""

    def _over(self, report: WaitReport) -> list[str]:
        waited_for = {wait.name for wait in report.waits}
        # One that nobody waits for any more may start yet.
        return [name for name in self._told if name not in waited_for and name not in report.starting]
