"""pytest's terminal, also while what a test writes is captured."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def visible_terminal(config: pytest.Config) -> Iterator[pytest.TerminalReporter | None]:
    """Give the terminal for something that the user is to see now; None where there is none, as in xdist's workers.

    A server may start inside a test: without this the line would land in what the test has written.
    """
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    # Other threads write in xdist's controller only, which runs no tests.
    in_test = threading.current_thread() is threading.main_thread()
    capture = config.pluginmanager.get_plugin("capturemanager") if in_test else None
    if reporter is None or not capture:
        yield reporter
        return
    streams = sys.stdout, sys.stderr
    try:
        with capture.global_and_fixture_disabled():
            yield reporter
    finally:
        # They need not be pytest's own: a doctest has put another one there.
        sys.stdout, sys.stderr = streams


def write_line(terminal: pytest.TerminalReporter, text: str) -> None:
    """Write a line of this plugin, at once also where pytest's output is buffered."""
    terminal.ensure_newline()
    # In one piece: under xdist other threads may write meanwhile.
    terminal.write(f"infserver: {text}\n", flush=True)
