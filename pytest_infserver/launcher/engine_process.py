"""The engine's process as tests see it: like a `subprocess.Popen`."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

from pytest_infserver.errors import InferenceServerError
from pytest_infserver.system.processes.table import descendants, send_signal

if TYPE_CHECKING:
    from pytest_infserver.launcher.handle import ServerHandle
    from pytest_infserver.launcher.supervision.supervised_process import ServerProcess

_STEP = 3600.0


class EngineProcess:
    """The engine's process of one launch of a server; it stays that one when the server is started again.

    Attributes:
        pid: Its process id.
    """

    def __init__(self, server: ServerHandle, process: ServerProcess, pid: int) -> None:
        self.pid = pid
        self._server = server
        self._process = process

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for the signal that has killed it, or None while it runs."""
        return self.poll()

    def poll(self) -> int | None:
        """Return its `returncode`."""
        how = self._process.exit
        if how is None:
            return None
        # A code that was lost with the supervisor: that was killed, and its server with it.
        return -signal.SIGKILL if how.code is None else how.code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its `returncode`.

        Args:
            timeout: Seconds; None waits as long as it takes.

        Raises:
            subprocess.TimeoutExpired: It still runs.
        """
        while self._process.wait_exit(_STEP if timeout is None else timeout) is None:
            if timeout is not None:
                raise subprocess.TimeoutExpired(str(self._server), timeout)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal; no effect when it has ended.

        Args:
            number: The signal.

        Raises:
            InferenceServerError: The server is shared with other tests, or runs on another machine.
        """
        if self._server.runtime.stop_refusal is not None:
            raise InferenceServerError(self._server.runtime.stop_refusal)
        if self._server.remote:
            raise InferenceServerError(
                f"{self._server} runs on {self._server.node}: no signal can be sent there; server.kill() ends it"
            )
        above = self._process.supervisor_pid
        if self.poll() is None and above is not None:
            # Only while the number is still its own.
            for one in descendants(above):
                if one.pid == self.pid:
                    send_signal(one, number)

    def terminate(self) -> None:
        """Send it SIGTERM; see `send_signal`."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL; see `send_signal`."""
        self.send_signal(signal.SIGKILL)

    def __repr__(self) -> str:
        code = self.poll()
        return f"<EngineProcess {self.pid} of {self._server}{'' if code is None else f', returncode {code}'}>"


def engine_process(server: ServerHandle) -> EngineProcess:
    """Return the engine's process of a server's last launch.

    Raises:
        InferenceServerError: There is none.
    """
    if server.attached:
        raise InferenceServerError(f"{server} has no process here: it was attached to by its URL")
    process = server.runtime.process
    pid = None if process is None else process.engine_pid
    if process is None or pid is None:
        raise InferenceServerError(f"{server} has no process: it is {server.state}; start it first")
    return EngineProcess(server, process, pid)
