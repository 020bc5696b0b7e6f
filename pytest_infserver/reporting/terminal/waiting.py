"""What servers do that somebody waits for, shown meanwhile."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import pytest

from pytest_infserver.compat import file_of
from pytest_infserver.reporting.terminal.live_lines import LiveLines, terminal_size
from pytest_infserver.reporting.terminal.plain_lines import PlainLines
from pytest_infserver.reporting.terminal.terminal import visible_terminal
from pytest_infserver.reporting.terminal.wait_table import Row, table

if TYPE_CHECKING:
    from pytest_infserver.pool.wait_report import Wait, WaitReport
    from pytest_infserver.reporting.terminal.start_times import StartTimes

_FIRST_LIVE = 1.0
"""Seconds that a wait has to last to be shown at all."""
_NEXT_LIVE = 0.2
"""Seconds between two drawings; whoever waits looks every 0.25 s."""


class _View(Protocol):
    """One way of showing it."""

    def is_due(self, waits: Sequence[Wait]) -> bool:
        """Return whether there is something to show, or to take away."""

    def show(self, terminal: pytest.TerminalReporter, report: WaitReport) -> None:
        """Show it."""

    def close(self) -> None:
        """Take away what is shown."""


class Waiting:
    """Shows it as lines that are rewritten on a terminal, elsewhere as a line now and then.

    Any thread may call it. It asks nobody else for a lock, whoever writes on the terminal meanwhile.
    """

    def __init__(self, config: pytest.Config, times: StartTimes, *, plain: bool = False) -> None:
        """Show nothing yet.

        Args:
            config: pytest's configuration.
            times: How long the servers' last starts took.
            plain: Rewrite no lines: others write on the terminal at any time.
        """
        self._plain = plain
        self._config = config
        self._describe = Describer(times)
        self._lock = threading.RLock()
        self._number = 0
        self._closed = False
        self._view: _View | None = None

    def __call__(self, wait_report: WaitReport) -> None:
        """Show what is waited for; nothing if nobody waits any more."""
        # A drawing may be left out while another thread draws; the end may not.
        if not self._lock.acquire(blocking=not wait_report.waits):
            return
        try:
            if self._closed or wait_report.number < self._number:
                return
            self._number = wait_report.number
            if self._is_due(wait_report.waits):
                self._show(wait_report)
        except (OSError, ValueError):
            # The terminal is gone, or closed: that must not keep a test from its server.
            self._closed = True
        finally:
            self._lock.release()

    def close(self) -> None:
        """Take away what is shown, and show nothing any more."""
        with self._lock:
            self._closed = True
            if self._view is not None:
                with contextlib.suppress(OSError, ValueError), visible_terminal(self._config):
                    self._view.close()

    def _is_due(self, waits: Sequence[Wait]) -> bool:
        if self._view is not None:
            return self._view.is_due(waits)
        return any(wait.seconds >= _FIRST_LIVE for wait in waits)

    def _show(self, report: WaitReport) -> None:
        with visible_terminal(self._config) as terminal:
            if terminal is None or terminal.verbosity < 0:
                self._closed = True
                return
            if self._view is None:
                live = (
                    not self._plain
                    and terminal.isatty
                    and not _others_write(self._config)
                    and terminal_size(file_of(terminal))
                )
                view = _LiveView(self._config, terminal, self._describe) if live else PlainLines(self._describe)
                self._view = view
                if not view.is_due(report.waits):
                    return
            self._view.show(terminal, report)


class _LiveView:
    """One line per server on a terminal."""

    def __init__(self, config: pytest.Config, terminal: pytest.TerminalReporter, describe: Describer) -> None:
        self._describe = describe
        self._file = file_of(terminal)
        # What another reporter writes, or a test, may end to the left of something.
        alone = type(terminal) is pytest.TerminalReporter and config.getoption("capture", "no") != "no"
        self._lines = LiveLines(self._file, wipe=alone)
        self._count = 0
        self._next = 0.0

    def is_due(self, waits: Sequence[Wait]) -> bool:
        """Return whether it is time to draw, or to erase."""
        if len(waits) == self._count:
            return bool(waits) and time.monotonic() >= self._next
        return self._count > 0 or any(wait.seconds >= _FIRST_LIVE for wait in waits)

    def show(self, terminal: pytest.TerminalReporter, report: WaitReport) -> None:
        """Draw."""
        waits = report.waits
        self._count, self._next = len(waits), time.monotonic() + _NEXT_LIVE
        size = terminal_size(self._file)
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        rows = [self._describe(wait) for wait in waits]
        # Half of the terminal is left for what pytest shows.
        lines = [] if size is None else table(rows, size.columns, min(size.lines - 1, max(1, size.lines // 2)))
        self._lines.show([line.encode(encoding, "replace").decode(encoding, "replace") for line in lines])

    def close(self) -> None:
        """Erase."""
        self._count = 0
        self._lines.show([])


class Describer:
    """Puts into words what is waited for."""

    def __init__(self, times: StartTimes) -> None:
        self._times = times

    def __call__(self, wait: Wait) -> Row:
        """Return the text for one server."""
        last = None if wait.is_hindered else self._times.last(wait.kind)
        return Row(
            label=wait.label,
            doing=wait.doing,
            time=f"{wait.seconds:.0f} s",
            last="" if last is None else f" (last time {last:.0f} s)",
        )


def _others_write(config: pytest.Config) -> bool:
    """Return whether other processes write on the terminal: xdist's workers, if what tests write is not captured."""
    return config.pluginmanager.hasplugin("dsession") and config.getoption("capture", "no") == "no"
