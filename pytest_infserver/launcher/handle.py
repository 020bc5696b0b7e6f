"""ServerHandle: a configured server, and what its life tells: journal, warnings, results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from pytest_infserver.errors import ServerDiedError
from pytest_infserver.launcher.configured import ConfiguredServer
from pytest_infserver.launcher.diagnosis.journal import Journal
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.system.text import clean

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_infserver.launcher.diagnosis.log import ServerLog
    from pytest_infserver.launcher.leaks.report import LeakReport
    from pytest_infserver.launcher.runtime.status import Status
    from pytest_infserver.launcher.supervision.exit import Survivor
    from pytest_infserver.launcher.supervision.supervised_process import ServerProcess

logger = logging.getLogger("pytest_infserver")


class Running(Protocol):
    """What those below a runtime may ask of it; see `Runtime`."""

    log: ServerLog
    status: Status
    stop_refusal: str | None

    @property
    def process(self) -> ServerProcess | None:
        """The process of the last launch."""

    @property
    def state(self) -> ServerState:
        """Where the server is in its life."""

    def start_is_cancelled(self) -> bool:
        """Return whether the start that is under way was cancelled."""

    def raise_if_cancelled(self) -> None:
        """Raise if it was."""

    def read_log_bytes(self, start: int, limit: int, end: int | None = None) -> tuple[bytes, int]:
        """Return a part of the log."""

    def why_died(self) -> str | None:
        """Return how and why the server died, or None if it did not."""


class ServerHandle(ConfiguredServer):
    """What runtimes know of their server. `InferenceServer`, the only subclass, says what each attribute is."""

    runtime: Running

    def __init__(self, model: str | None, settings: Mapping[str, Any]) -> None:
        super().__init__(model, settings)
        self.survivors: tuple[Survivor, ...] = ()
        self.leak_report: LeakReport | None = None
        self.start_seconds: float | None = None
        self.stop_seconds: float | None = None
        self.journal = Journal(lambda: self.secrets)
        self.on_progress: Callable[[str], None] = logger.info
        self.on_warning: Callable[[str], None] = logger.warning
        self.on_wait: Callable[[Any], None] = lambda server: None

    @property
    def state(self) -> ServerState:
        """Where the server is in its life; a death is noticed at once."""
        return self.runtime.state

    @property
    def running(self) -> bool:
        """Whether the server is ready to be used."""
        return self.state is ServerState.READY

    @property
    def launches(self) -> int:
        """How often the server's process was launched."""
        return self.runtime.status.launches

    def why_died(self) -> str | None:
        """Return how and why the server died, or None if it did not."""
        return self.runtime.why_died()

    def raise_if_dead(self) -> None:
        """Raise if the server has died.

        Raises:
            ServerDiedError: It has; the message says how and why.
        """
        reason = self.why_died()
        if reason is not None:
            raise ServerDiedError(reason)

    def wait_death(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for the server's end; return whether it has died."""
        process = self.runtime.process
        if process is not None:
            process.wait_exit(timeout)
        return self.state is ServerState.DIED

    @property
    def log_path(self) -> Path:
        """The server's log file."""
        return self.runtime.log.path

    def warn(self, text: str) -> None:
        """Tell `on_warning` about something that works, but not as one would want it."""
        self.on_warning(clean(text, self.secrets))

    def tell_waiting(self) -> None:
        """Tell `on_wait` that a start goes on, or has come to its end."""
        try:
            self.on_wait(self)
        except Exception:
            # Whoever watches must not keep the server from starting.
            logger.exception("%s: on_wait failed", self)
