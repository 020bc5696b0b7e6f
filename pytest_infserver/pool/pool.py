"""The pool of one pytest process: starts each server when the first test wants it, stops it after the last."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pytest_infserver.errors import InferenceServerError, ServerDiedError, ServerStartupError
from pytest_infserver.launcher.liveness import notice_death

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.server import InferenceServer

MAX_RESTARTS = 3
"""How often a server that died is started again in one run."""

_OUTCOMES = (Exception, pytest.fail.Exception, pytest.skip.Exception)
"""What a hook or a backend may raise; pytest's own outcomes are no Exceptions."""
_NOT_USER_CODE = ("pytest_infserver", "pluggy")


@dataclass(frozen=True)
class Lease:
    """One test's use of one server.

    Attributes:
        name: The server's name.
        server: The server, ready unless ``error`` is set.
        log_start: Size of its log, in bytes, when the test began.
        error: Why it could not be had.
    """

    name: str
    server: InferenceServer
    log_start: int
    error: InferenceServerError | None = None


class Pool:
    """Hands the configured servers out.

    Attributes:
        configs: The servers by name.
        progress: Gets a line of text when a start takes long for a reason.
        waiting: Gets a starting server now and then.
        incidents: What happened to servers between two tests.
        kept: The server that runs to the end of the run, because nobody knows which tests use it.
    """

    def __init__(
        self,
        configs: Mapping[str, ServerConfig],
        *,
        started: Callable[[InferenceServer], object],
        stopping: Callable[[InferenceServer], object],
        stopped: Callable[[InferenceServer], object],
        progress: Callable[[str], None],
        waiting: Callable[[InferenceServer], None] = lambda server: None,
    ) -> None:
        """Make a pool; nothing is started.

        Args:
            configs: The servers by name.
            started: Called with each server that has become ready.
            stopping: Called before a server is stopped.
            stopped: Called when it is gone.
            progress: Gets a line of text when a start takes long for a reason.
            waiting: Gets a starting server now and then, and once when it does not start any more.
        """
        self.configs = configs
        self.progress = progress
        self.waiting = waiting
        self.incidents: list[str] = []
        self.kept: str | None = None
        self._started = started
        self._stopping = stopping
        self._stopped = stopped
        self._servers: dict[str, InferenceServer] = {}
        self._failures: dict[str, InferenceServerError] = {}
        self._restarts: Counter[str] = Counter()
        self._wanted: Counter[str] = Counter()
        self._reported: set[tuple[InferenceServer, int]] = set()

    @property
    def servers(self) -> list[InferenceServer]:
        """The servers that were wanted so far."""
        return list(self._servers.values())

    def plan(self, wanted: Iterable[str]) -> None:
        """Say which servers the tests of this run will want, one name for each test and server."""
        self._wanted = Counter(wanted)

    def server(self, name: str) -> InferenceServer:
        """Return the handle of a server, which stays the same through restarts; it need not run."""
        if name not in self._servers:
            from pytest_infserver.launcher.factory import create_from_config

            server = create_from_config(self.configs[name])
            server.on_progress = self.progress
            server.on_wait = self.waiting
            server.on_warning = self.incidents.append
            server.refuse_stop(
                f"{server} is shared with other tests: a test must not stop it;"
                " inference_server_factory starts one that it may stop"
            )
            self._servers[name] = server
        return self._servers[name]

    def acquire(self, name: str) -> Lease:
        """Give a test a server, started if it does not run; an error is in the lease, not raised."""
        server = self.server(name)
        launches = server.launches
        error = self._ready(name, server)
        # What a failed start has written is shown once, with the first test.
        log_start = server.launch_log_start if error and server.launches > launches else server.log_size
        return Lease(name, server, log_start, error)

    def done(self, name: str) -> None:
        """Note that a planned test is over."""
        self._wanted[name] -= 1

    def keep(self, name: str) -> None:
        """Note a use that was not planned, which more may follow."""
        self.kept = name

    def launched(self) -> list[str]:
        """Return the servers that run, or have died and were not restarted yet."""
        return [name for name, server in self._servers.items() if server.launched]

    def unwanted(self, soon: str | None = None) -> list[str]:
        """Return those of them that no test wants any more.

        Args:
            soon: A server of which one planned test counts as over.
        """
        return [name for name in self.launched() if name != self.kept and self._wanted[name] - (name == soon) <= 0]

    def death(self, server: InferenceServer) -> str | None:
        """Return why a server died, once per death."""
        notice_death(server)
        reason = server.why_died()
        if reason is None or (server, server.launches) in self._reported:
            return None
        self._reported.add((server, server.launches))
        return reason

    def stop(self, name: str) -> list[str]:
        """Stop a server; return what went wrong."""
        server = self._servers[name]
        self._note_silent_death(server)
        errors = self._try(self._stopping, server)
        server.refuse_stop(None)
        errors += self._try(lambda one: one.stop(), server)
        server.refuse_stop(f"{server} has been stopped: no later test of this run was known to want it")
        return errors + self._try(self._stopped, server)

    def close(self) -> list[str]:
        """Stop all servers; return what went wrong."""
        return [error for name in self.launched() for error in self.stop(name)]

    @staticmethod
    def _try(action: Callable[[InferenceServer], object], server: InferenceServer) -> list[str]:
        try:
            action(server)
        except InferenceServerError as error:
            return [str(error)]
        except pytest.exit.Exception:
            raise
        except _OUTCOMES as error:
            # It must not keep the next server from its stop.
            return [_user_error(server, error)]
        return []

    def _ready(self, name: str, server: InferenceServer) -> InferenceServerError | None:
        if name in self._failures:
            return self._failures[name]
        notice_death(server)
        if server.running:
            return None
        if server.launched and server.why_died() is not None:
            self._note_silent_death(server)
            if self._restarts[name] >= MAX_RESTARTS:
                return ServerDiedError(
                    f"{server} has died {MAX_RESTARTS + 1} times and is not restarted any more; log: {server.log_path}"
                )
            self._restarts[name] += 1
        error = self._start(server)
        if error is not None:
            # N tests do not each wait for the same failure.
            self._failures[name] = error
        return error

    def _start(self, server: InferenceServer) -> InferenceServerError | None:
        try:
            server.start()
            self._started(server)
        except InferenceServerError as error:
            return error
        except pytest.exit.Exception:
            raise
        except _OUTCOMES as error:
            # It is one of the tests that want the server, not of the whole run.
            return ServerStartupError(_user_error(server, error))
        return None

    def _note_silent_death(self, server: InferenceServer) -> None:
        reason = self.death(server)
        if reason is not None:
            self.incidents.append(f"between two tests: {reason}")


def _user_error(server: InferenceServer, error: BaseException) -> str:
    """Return the text for an exception that is none of ours, with the user's part of its traceback."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_USER_CODE:
        frame = frame.tb_next
    lines = traceback.format_exception(type(error), error, frame or error.__traceback__)
    return f"{server}: an error in a hook or in its backend\n{''.join(lines).rstrip()}"
