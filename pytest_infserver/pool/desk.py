"""Where the workers of xdist ask the controller for servers: a local socket that only they can use."""

from __future__ import annotations

import contextlib
import functools
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_infserver.errors import ConfigError, InferenceServerError
from pytest_infserver.launcher.socket_files import PAUSE, accept, listen
from pytest_infserver.pool.lease import Lease
from pytest_infserver.pool.outcomes import OUTCOMES, in_words
from pytest_infserver.pool.profile_turns import ProfileTurns
from pytest_infserver.pool.threads import spawn

if TYPE_CHECKING:
    from pytest_infserver.cluster.demand import Demand as ClusterDemand
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.outlook import Outlook
    from pytest_infserver.pool.pool import Pool

INPUT = "infserver_pool"
"""Key of a worker's input: where the desk is, and the secret that opens it."""
ANSWERED, FAILED = "answered", "failed"
_MAX_SOCKET_PATH = 100
_BACKLOG = 128


class Desk:
    """Answers the workers of one run; knows nothing of xdist.

    Attributes:
        key: What a worker has to be given; it is a secret.
        refusal: Why the run cannot take place, or None.
    """

    def __init__(
        self, pool: Pool, *, each: bool, waiting: Callable[[Outlook], object], progress: Callable[[str], object]
    ) -> None:
        """Open the desk.

        Args:
            pool: What the workers share.
            each: Whether every worker runs every test; else each test runs on one of them.
            waiting: Gets what all who wait are waiting for, in some thread.
            progress: Gets a line of text when a start takes long for another reason.
        """
        self._pool = pool
        self._profiles = ProfileTurns(pool.fail)
        self._each = each
        self._waiting = waiting
        self._progress = progress
        self._planners: set[str] = set()
        self._keeps_order = False
        self._bereft = 0
        self.refusal: str | None = None
        self._news: dict[str, Connection[Any, Any]] = {}
        self._lock = threading.Lock()
        self._folder = _private_folder()
        secret = secrets.token_bytes(32)
        self._secret = secret
        self._closed = threading.Event()
        self._listener = listen(self._folder, "desk", _BACKLOG)
        self._listener.setblocking(True)
        self.key = {"path": f"{self._folder}/desk", "secret": secret.hex()}
        self._accepting = spawn(self._accept, "desk", pool.fail)

    def servers_of(self, test: str) -> Sequence[str]:
        """Return the servers that a test needs."""
        return self._pool.servers_of(test)

    def is_ready(self, name: str) -> bool:
        """Tell whether a server runs now."""
        return self._pool.is_ready(name)

    def in_order(self) -> bool:
        """Tell whether the tests run in the order in which the workers have them."""
        return self._keeps_order

    def wind_up(self) -> None:
        """Let nobody wait for a start any more."""
        self._pool.wind_up()

    def refuse(self) -> None:
        """Let nobody wait for a server any more."""
        self._pool.refuse()

    def raise_exit(self) -> None:
        """Raise what was raised elsewhere and ends the run."""
        self._pool.raise_exit()

    def close(self) -> None:
        """Answer no more."""
        self._closed.set()
        with contextlib.suppress(OSError):
            # On Linux a close alone would not wake the thread that waits for workers.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def leave(self, client: str) -> None:
        """Take back what a worker had: it is gone."""
        with self._lock:
            self._news.pop(client, None)
            if client in self._planners:
                self._planners.discard(client)
                self._bereft += 1
        self._take_back(client)

    def _take_back(self, client: str) -> None:
        try:
            self._profiles.leave(client)
        finally:
            self._pool.leave(client)

    def tell_end(self, server: InferenceServer) -> None:
        """Tell all workers that a server's process has ended."""
        how, hang = server.last_exit
        if how is None:
            return
        with self._lock:
            for client, connection in list(self._news.items()):
                try:
                    connection.send((server.name, server.launches, how, hang))
                except OSError:
                    del self._news[client]

    def _accept(self) -> None:
        visitor: socket.socket | None = None
        while not self._closed.is_set():
            try:
                visitor = visitor or accept(self._listener)
                if visitor is not None:
                    spawn(functools.partial(self._serve, visitor), "desk", self._pool.fail)
                    visitor = None
            except (OSError, RuntimeError, MemoryError):
                # No descriptor is left, or no thread: the workers wait until there is one.
                self._closed.wait(PAUSE)
        if visitor is not None:
            visitor.close()

    def _knows_secret(self, connection: Connection[Any, Any]) -> bool:
        # As Listener does it, but not where one that says nothing keeps the others waiting.
        try:
            deliver_challenge(connection, self._secret)
            answer_challenge(connection, self._secret)
        except Exception:
            return False
        return True

    def _serve(self, visitor: socket.socket) -> None:
        # Not what a test of this process may have set as the default.
        visitor.setblocking(True)
        connection: Connection[Any, Any] = Connection(visitor.detach())
        with contextlib.suppress(EOFError, OSError), connection:
            if not self._knows_secret(connection):
                return
            client, kind = connection.recv()
            if kind == "news":
                with self._lock:
                    self._news[client] = connection
                connection.recv()
                return
            self._pool.join(client)
            try:
                while True:
                    number, verb, arguments = connection.recv()
                    connection.send((number, *self._answer(client, verb, arguments)))
            finally:
                self._take_back(client)

    def _answer(self, client: str, verb: str, arguments: Mapping[str, Any]) -> tuple[str, Any]:
        try:
            return ANSWERED, getattr(self, f"_do_{verb}")(client, **arguments)
        except InferenceServerError as error:
            return FAILED, (type(error).__name__, str(error))
        except BaseException as error:
            if isinstance(error, pytest.exit.Exception) or not isinstance(error, OUTCOMES):
                self._pool.fail(error)
            return FAILED, ("InferenceServerError", in_words(error))

    # What a worker may ask.

    def _do_plan(
        self, client: str, tests: Mapping[str, Sequence[str]], profilers: Mapping[str, str], in_order: bool
    ) -> None:
        with self._lock:
            self._keeps_order |= in_order
            # Whoever comes in the place of a worker that has crashed runs what that one would have run.
            first = not self._planners and not self._bereft
            counts = first or (self._each and not self._bereft)
            self._planners.add(client)
            self._bereft = max(0, self._bereft - (not first))
        try:
            if counts:
                self._pool.plan(tests, profilers)
        except ConfigError as error:
            # It ends the run; the worker would only say that it has crashed.
            self.refusal = str(error)

    def _do_pin(self, client: str, name: str) -> None:
        self._pool.pin(name)

    def _do_acquire(
        self, client: str, names: Sequence[str], test: str | None, exclusive: bool, undisturbed: bool
    ) -> list[tuple[Any, ...]]:
        leases = self._pool.acquire(
            client,
            names,
            test=test,
            exclusive=exclusive,
            undisturbed=undisturbed,
            waiting=self._waiting,
            progress=self._progress,
        )
        try:
            return [_wire(lease) for lease in leases]
        except BaseException:
            # The worker does not hear of it.
            for ticket in {lease.ticket for lease in leases}:
                self._pool.release(ticket)
            raise

    def _do_release(self, client: str, ticket: int, done: str | None) -> None:
        self._pool.release(ticket, done)

    def _do_done(self, client: str, test: str) -> None:
        self._pool.done(test)

    def _do_start(self, client: str, name: str) -> Any:
        server = self._pool.alone(client, name)
        server.start()
        self._pool.watch(server)
        return server.view()

    def _do_view(self, client: str, name: str, launch: int | None = None) -> Any:
        return self._pool.view(name, launch)

    def _do_stop(self, client: str, name: str) -> Any:
        server = self._pool.alone(client, name)
        server.stop()
        return server.view()

    def _do_kill(self, client: str, name: str) -> None:
        self._pool.alone(client, name).kill()

    def _do_make_room_for(self, client: str, name: str, demands: Sequence[ClusterDemand]) -> None:
        self._pool.make_room_for(name, demands)

    def _do_start_profile(self, client: str, name: str, profile: str, tool: str | None) -> None:
        self._profiles.begin(client, self._pool.server(name), profile, tool)

    def _do_stop_profile(self, client: str, name: str) -> Any:
        return self._profiles.end(client, self._pool.server(name))


def _wire(lease: Lease) -> tuple[Any, ...]:
    error = None if lease.error is None else str(lease.error)
    return lease.ticket, lease.name, lease.server.view(), lease.launch, lease.log_start, error, lease.exclusive


def _private_folder() -> str:
    folder = tempfile.mkdtemp(prefix="infserver-")
    if len(folder) < _MAX_SOCKET_PATH:
        return folder
    # The path of a socket has 108 bytes at most.
    Path(folder).rmdir()
    return tempfile.mkdtemp(prefix="infserver-", dir="/tmp")
