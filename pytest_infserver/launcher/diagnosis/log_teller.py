"""Tells the lines of servers' logs as they are written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pytest_infserver.launcher.diagnosis.log_follower import LogFollower

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

_STEP = 0.1
_BURST, _RATE = 20_000, 2000.0
"""More than any engine writes while it works; what floods is cut short."""


class LogTeller:
    """Follows the logs of servers in a thread of its own, in the process that starts them."""

    def __init__(self, tell: Callable[[str, Sequence[str]], object]) -> None:
        """Follow nothing yet.

        Args:
            tell: Gets a server's name and the lines that are new in its log, clean and without secrets.
        """
        self._tell = tell
        self._servers: list[tuple[InferenceServer, str]] = []
        self._followers: dict[int, LogFollower] = {}
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, server: InferenceServer, label: str | None = None) -> None:
        """Follow a server's log, from its next launch on.

        Args:
            server: The server; one that is attached has no log.
            label: What it is called; its name if None.
        """
        if server.attached:
            return
        self._servers.append((server, label or server.name))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="infserver-log", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Tell what is left, and nothing any more."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._look(complete=True)

    def _run(self) -> None:
        while not self._over.wait(_STEP):
            self._look()

    def _look(self, *, complete: bool = False) -> None:
        for server, label in list(self._servers):
            if not server.launches:
                continue
            if id(server) not in self._followers:
                self._followers[id(server)] = LogFollower(server.secrets, _BURST, _RATE)
            follower = self._followers[id(server)]
            lines = follower.new_lines(server.log_path, server.runtime.status.launch_log_start)
            if complete:
                lines += follower.last_line()
            if lines:
                self._tell(label, lines)
