"""OwnRuntime: a server that this process starts and stops."""

from __future__ import annotations

import os
import threading
import time
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from pytest_infserver.launcher.diagnosis import messages
from pytest_infserver.launcher.runtime.runtime import Runtime
from pytest_infserver.launcher.state import ServerState
from pytest_infserver.launcher.user_code import asked

if TYPE_CHECKING:
    from pytest_infserver.launcher.handle import ServerHandle


class OwnRuntime(Runtime):
    """The course of a start, which is the same wherever the server runs.

    Attributes:
        lifecycle: Held by whoever starts or stops the server.
    """

    def __init__(self, server: ServerHandle, before: Runtime | None = None) -> None:
        super().__init__(server, before)
        self.lifecycle = threading.RLock()

    def start(self) -> ServerHandle:
        """Start the server and return it when it is ready; no effect when it is running."""
        server = self.server
        if self.launched:
            self.require_owner("start it again")
        with self.lifecycle:
            if self.state is ServerState.READY:
                return server
            self.begin_token()
            begin = time.monotonic()
            try:
                self.change(phase=asked(server).first_phase)
                self._end_last()
                self.owner = os.getpid()
                self.change(state=ServerState.STARTING, why_killed=None)
                server.forget_commands()
                server.journal.note("starting")
                self._launch()
                self.raise_if_cancelled()
                self._become_ready()
                server.start_seconds = time.monotonic() - begin
                server.journal.note("ready", seconds=round(server.start_seconds, 3), pid=self.running_pid)
                # Not in a finally: an interrupt in it would leave the server running.
                self.end_waiting()
                return server
            except BaseException as error:
                self.change(state=ServerState.FAILED)
                try:
                    self._undo(error)
                finally:
                    messages.hide_secrets(error, server.secrets)
                    fields = self._failure_fields()
                    if fields is not None:
                        words = str(error).removeprefix(f"{server} ").removeprefix(f"{server}: ")
                        server.journal.note("failed", error=words or type(error).__name__, **fields)
                    self.end_waiting()
                self._after_failure(error)
                raise

    @abstractmethod
    def _end_last(self) -> None:
        """End what there is of the last launch, which has died."""

    @abstractmethod
    def _launch(self) -> None:
        """Launch the server and return when it is ready."""

    @abstractmethod
    def _become_ready(self) -> None:
        """Note that it is ready."""

    @abstractmethod
    def _undo(self, error: BaseException) -> None:
        """End what there is of a start that has failed or was interrupted."""

    def _failure_fields(self) -> dict[str, Any] | None:
        """Return what the journal says of the failed start beside the error; None if it has said it already."""
        return {}

    def _after_failure(self, error: BaseException) -> None:
        """Say what else is to be said of a failed start; raise another error in place of it."""
