"""Where the processes that run tests ask for servers: a local socket that only they can use."""

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

from pytest_infserver.errors import ConfigError, InferenceServerError
from pytest_infserver.launcher.user_code import ends_run
from pytest_infserver.pool.broker.profile_turns import ProfileTurns
from pytest_infserver.pool.lease import Lease, Problem
from pytest_infserver.pool.member import Plan
from pytest_infserver.pool.outcomes import in_words
from pytest_infserver.pool.threads import spawn
from pytest_infserver.system.disk.socket_files import PAUSE, accept, listen, stop_listening

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.pool import Pool
    from pytest_infserver.pool.wait_report import WaitReport

INPUT = "infserver_pool"
"""Key of a worker's input: where the broker is, and the secret that opens it."""
ANSWERED, FAILED = "answered", "failed"
CANCEL = "cancel"
"""What a client says whose wait for servers was interrupted."""
WAITING, PROGRESS = "waiting", "progress"
"""Kinds of what comes before an answer."""
_TELLING = frozenset({"acquire", "stop_all", "close"})
"""Questions whose answer may take long, so that more is told meanwhile."""
_MAX_SOCKET_PATH = 100
_BACKLOG = 128


class Broker:
    """Answers the clients of one pool; knows nothing of xdist.

    Attributes:
        key: What a worker has to be given; it is a secret.
        refusal: Why the run cannot take place, or None.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        each: bool = False,
        waiting: Callable[[WaitReport], object] | None = None,
        progress: Callable[[str], object] | None = None,
        final: Callable[[], Any] = lambda: None,
        use_backends: Callable[[Mapping[str, Any]], object] = lambda backends: None,
    ) -> None:
        """Open the broker.

        Args:
            pool: What the clients share.
            each: Whether every client runs every test; else each test runs on one of them.
            waiting: Gets what all who wait are waiting for, in some thread; if None who asks is told.
            progress: Gets a line of text when a start takes long for another reason, likewise.
            final: Returns what its owner is told when it has closed the pool.
            use_backends: Takes in backends that only another process can import.
        """
        self._final = final
        self._use_backends = use_backends
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
        self._starting: dict[str, InferenceServer] = {}
        self._paused: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        self._folder = _private_folder()
        secret = secrets.token_bytes(32)
        self._secret = secret
        self._closed = threading.Event()
        self._listener = listen(self._folder, "broker", _BACKLOG)
        self._listener.setblocking(True)
        self.key = {"path": f"{self._folder}/broker", "secret": secret.hex()}
        self._accepting = spawn(self._accept, "broker", pool.fail)

    def servers_of(self, test: str) -> Sequence[str]:
        """Return the servers that a test needs."""
        return self._pool.servers_of(test)

    def is_ready(self, name: str) -> bool:
        """Return whether a server runs now."""
        return self._pool.is_ready(name)

    def in_order(self) -> bool:
        """Return whether the tests run in the order in which the workers have them."""
        return self._keeps_order

    def wind_up(self) -> None:
        """Let nobody wait for a start any more."""
        self._pool.wind_up()

    def refuse(self) -> None:
        """Let nobody wait for a server any more."""
        self._pool.refuse()
        self._cancel_starts()

    def pause(self, name: str) -> None:
        """Keep a server from being taken for hung."""
        with contextlib.suppress(InferenceServerError):
            self._pool.server(name).runtime.pause_heartbeat()

    def resume(self, name: str) -> None:
        """Undo one `pause`."""
        with contextlib.suppress(InferenceServerError):
            self._pool.server(name).runtime.resume_heartbeat()

    def raise_exit(self) -> None:
        """Raise what was raised elsewhere and ends the run."""
        self._pool.raise_exit()

    def close(self) -> None:
        """Answer no more."""
        self._closed.set()
        stop_listening(self._listener)
        shutil.rmtree(self._folder, ignore_errors=True)

    def leave(self, client: str) -> None:
        """Take back what a worker had: it is gone."""
        with self._lock:
            self._news.pop(client, None)
            if client in self._planners:
                self._planners.discard(client)
                self._bereft += 1
        for name in self._paused.pop(client, ()):
            # Nobody else would.
            self.resume(name)
        self._take_back(client)

    def _cancel_starts(self, client: str | None = None) -> None:
        """Let a start that a test has asked for fail soon: nobody waits for it any more."""
        with self._lock:
            for who, server in self._starting.items():
                if client in (None, who):
                    server.cancel_start()

    def _take_back(self, client: str) -> None:
        self._cancel_starts(client)
        try:
            self._profiles.leave(client)
        finally:
            self._pool.leave(client)

    def tell_end(self, server: InferenceServer, reason: str | None = None) -> None:
        """Tell all clients that a server's process has ended, and why, if that is known."""
        how, hang = server.runtime.last_exit()
        if how is None:
            return
        with self._lock:
            for client, connection in list(self._news.items()):
                try:
                    connection.send((server.name, server.launches, how, hang, reason))
                except OSError:
                    del self._news[client]

    def _accept(self) -> None:
        visitor: socket.socket | None = None
        while not self._closed.is_set():
            try:
                visitor = visitor or accept(self._listener)
                if visitor is not None:
                    spawn(functools.partial(self._serve, visitor), "broker", self._pool.fail)
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
            if kind == "owner":
                # It runs no tests itself: nobody waits for it.
                self._serve_questions(connection, client)
                return
            if kind == "news":
                with self._lock:
                    self._news[client] = connection
                try:
                    while connection.recv() == CANCEL:
                        self._pool.cancel(client)
                        self._cancel_starts(client)
                finally:
                    # Before it is closed: another thread may be about to tell it something.
                    with self._lock:
                        if self._news.get(client) is connection:
                            del self._news[client]
                return
            self._pool.join(client)
            try:
                self._serve_questions(connection, client)
            finally:
                self._take_back(client)

    def _serve_questions(self, connection: Connection[Any, Any], client: str) -> None:
        while True:
            number, verb, arguments = connection.recv()
            tell = functools.partial(_tell, connection, number)
            connection.send((number, *self._answer(client, verb, arguments, tell)))

    def _answer(
        self, client: str, verb: str, arguments: Mapping[str, Any], tell: Callable[[str, Any], object]
    ) -> tuple[str, Any]:
        try:
            more = {"tell": tell} if verb in _TELLING else {}
            return ANSWERED, getattr(self, f"_do_{verb}")(client, **arguments, **more)
        except InferenceServerError as error:
            return FAILED, (type(error).__name__, str(error))
        except BaseException as error:
            if ends_run(error):
                self._pool.fail(error)
            return FAILED, ("InferenceServerError", in_words(error))

    # What a worker may ask.

    def _do_plan(self, client: str, **plan: Any) -> str | None:
        said = Plan(**plan)
        with self._lock:
            self._keeps_order |= said.in_order
            # Whoever comes in the place of a worker that has crashed runs what that one would have run.
            first = not self._planners and not self._bereft
            counts = first or (self._each and not self._bereft)
            self._planners.add(client)
            self._bereft = max(0, self._bereft - (not first))
        try:
            if counts:
                self._pool.plan(said.tests, said.profilers, ahead=said.ahead)
        except ConfigError as error:
            # It ends the run; the worker would only say that it has crashed.
            self.refusal = str(error)
        return self.refusal

    def _do_add(self, client: str, configs: Mapping[str, ServerConfig], backends: Mapping[str, Any]) -> None:
        self._use_backends(backends)
        self._pool.add(configs)

    def _do_pin(self, client: str, name: str) -> None:
        self._pool.pin(name)

    def _do_acquire(
        self,
        client: str,
        names: Sequence[str],
        test: str | None,
        exclusive: bool,
        undisturbed: bool,
        tell: Callable[[str, Any], object],
    ) -> list[tuple[Any, ...]]:
        leases = self._pool.acquire(
            client,
            names,
            test=test,
            exclusive=exclusive,
            undisturbed=undisturbed,
            waiting=self._waiting or functools.partial(tell, WAITING),
            progress=self._progress or functools.partial(tell, PROGRESS),
        )
        try:
            return [_wire(lease) for lease in leases]
        except BaseException:
            # The worker does not hear of it.
            for ticket in {lease.ticket for lease in leases}:
                self._pool.release(ticket)
            raise

    def _do_release(self, client: str, ticket: int, done: str | None, user: str | None = None) -> None:
        self._pool.release(ticket, done, user)

    def _do_await_stopped(self, client: str, name: str) -> None:
        self._pool.await_stopped(name)

    def _do_done(self, client: str, test: str) -> None:
        self._pool.done(test)

    def _do_problems(self, client: str) -> tuple[list[Problem], str | None]:
        """Return what went wrong at stops since the last call, and what ends the run, if anything does."""
        failure: str | None = None
        try:
            self._pool.raise_exit()
        except BaseException as error:
            # What a hook has raised to end the run is raised where that is, too.
            failure = None if ends_run(error) else in_words(error)
        return self._pool.take_problems(), failure

    def _do_stop_all(self, client: str, tell: Callable[[str, Any], object]) -> None:
        self._pool.stop_all(functools.partial(tell, PROGRESS))

    def _do_close(self, client: str, tell: Callable[[str, Any], object]) -> Any:
        self._pool.close(functools.partial(tell, PROGRESS))
        return self._final()

    def _do_pause(self, client: str, name: str) -> None:
        self._pool.server(name).runtime.pause_heartbeat()
        self._paused.setdefault(client, []).append(name)

    def _do_resume(self, client: str, name: str) -> None:
        self._pool.server(name).runtime.resume_heartbeat()
        if name in self._paused.get(client, ()):
            self._paused[client].remove(name)

    def _do_start(self, client: str, name: str) -> Any:
        server = self._pool.alone(client, name)
        with self._lock:
            self._starting[client] = server
        try:
            server.start()
        finally:
            with self._lock:
                self._starting.pop(client, None)
        self._pool.watch(server)
        return server.runtime.view()

    def _do_view(self, client: str, name: str, launch: int | None = None) -> Any:
        return self._pool.view(name, launch)

    def _do_stop(self, client: str, name: str) -> Any:
        server = self._pool.alone(client, name)
        server.stop()
        return server.runtime.view()

    def _do_kill(self, client: str, name: str) -> None:
        self._pool.alone(client, name).kill()

    def _do_start_profile(self, client: str, name: str, profile: str, tool: str | None) -> None:
        self._profiles.begin(client, self._pool.server(name), profile, tool)

    def _do_stop_profile(self, client: str, name: str) -> Any:
        return self._profiles.end(client, self._pool.server(name))


def _tell(connection: Connection[Any, Any], number: int, kind: str, what: Any) -> None:
    connection.send((number, kind, what))


def _wire(lease: Lease) -> tuple[Any, ...]:
    error = None if lease.error is None else (type(lease.error).__name__, str(lease.error))
    return lease.ticket, lease.name, lease.server.runtime.view(), lease.launch, lease.log_start, error, lease.exclusive


def _private_folder() -> str:
    folder = tempfile.mkdtemp(prefix="infserver-")
    if len(folder) < _MAX_SOCKET_PATH:
        return folder
    # The path of a socket has 108 bytes at most.
    Path(folder).rmdir()
    return tempfile.mkdtemp(prefix="infserver-", dir="/tmp")
