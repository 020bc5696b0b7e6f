"""A worker's side of the desk: servers that the controller owns."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_infserver import errors
from pytest_infserver.errors import InferenceServerError, LeakError
from pytest_infserver.launcher.follower import Keeper
from pytest_infserver.pool.desk import FAILED
from pytest_infserver.pool.lease import Lease, Problem
from pytest_infserver.pool.outcomes import in_words
from pytest_infserver.pool.pool import shared
from pytest_infserver.pool.threads import spawn

if TYPE_CHECKING:
    from pytest_infserver.cluster.demand import Demand as ClusterDemand
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.follower import FollowedProcess, View
    from pytest_infserver.launcher.process import Exit
    from pytest_infserver.launcher.server import InferenceServer

_ADMISSION_LIMIT = 60.0
"""Seconds in which the controller lets a worker in; it takes long where the system has no descriptor left."""
_END_LIMIT = 10.0
"""Seconds that the news of an end gets which the controller knows of."""
_VIEW_LIMIT = 2.0
"""Seconds that the report of a failed test waits for what the controller knows of its servers."""


class RemoteMember(Keeper):
    """One worker of xdist."""

    alone = False

    def __init__(self, configs: Mapping[str, ServerConfig], key: Mapping[str, str], client: str) -> None:
        """Connect to the controller's desk.

        Args:
            configs: The servers by name.
            key: What the controller has handed over.
            client: The worker's name.

        Raises:
            InferenceServerError: The controller cannot be reached.
        """
        self.incidents: list[str] = []
        self._configs = configs
        self._servers: dict[str, InferenceServer] = {}
        self._processes: dict[str, FollowedProcess] = {}
        self._deaths: dict[tuple[str, int], str | None] = {}
        self._ends: dict[tuple[str, int], tuple[Exit, str | None]] = {}
        self._lock = threading.RLock()
        self._asking = threading.Lock()
        self._number = 0
        self._acquiring: int | None = None
        self._pid = os.getpid()
        self._desk = _connect(key)
        self._desk.send((client, "ask"))
        self._news = _connect(key)
        self._news.send((client, "news"))
        spawn(self._listen, "news", self._hears_no_more)

    def server(self, name: str) -> InferenceServer:
        """Return the handle of a server; it is the controller's."""
        if name not in self._servers:
            from pytest_infserver.launcher.factory import create_from_config

            server = create_from_config(self._configs[name])
            server.on_warning = self.incidents.append
            server.refuse_stop(shared(server))
            self._servers[name] = server
        return self._servers[name]

    def servers(self) -> list[InferenceServer]:
        """Return the handles of all servers that were wanted so far."""
        return list(self._servers.values())

    def plan(
        self, tests: Mapping[str, Sequence[str]], profilers: Mapping[str, str] | None = None, *, in_order: bool = False
    ) -> None:
        """Say which servers each test is going to need."""
        profilers = dict(profilers or {})
        for name, tool in profilers.items():
            self.server(name).use_profiler(tool)
        self._ask("plan", tests=dict(tests), profilers=profilers, in_order=in_order)

    def is_ready(self, name: str) -> bool:
        """Tell whether a server ran when it was leased last."""
        return self.server(name).running

    def pin(self, name: str) -> None:
        """Note a use that was not planned."""
        self._ask("pin", name=name)

    def acquire(
        self, names: Sequence[str], test: str | None, exclusive: bool, undisturbed: bool = False
    ) -> list[Lease]:
        """Wait for servers."""
        answer = self._ask("acquire", names=list(names), test=test, exclusive=exclusive, undisturbed=undisturbed)
        try:
            return [self._lease(*fields) for fields in answer]
        except BaseException:
            # Nobody here knows of the lease.
            for ticket in {fields[0] for fields in answer}:
                self.release(ticket)
            raise

    def release(self, ticket: int, done: str | None = None) -> None:
        """Give a lease back."""
        for server in self._servers.values():
            server.refuse_stop(shared(server))
        self._ask("release", ticket=ticket, done=done)

    def done(self, test: str) -> None:
        """Note that a planned test is over that had no lease."""
        self._ask("done", test=test)

    def death(self, lease: Lease) -> str | None:
        """Return why the server has died since it was leased."""
        with self._lock:
            return self._deaths.get((lease.name, lease.launch))

    def view(self, name: str, launch: int) -> View | None:
        """Return how a server is as the controller sees it, or None if that does not answer at once."""
        if os.getpid() != self._pid or not self._asking.acquire(timeout=_VIEW_LIMIT):
            return None
        try:
            if self._acquiring is not None:
                # The answer to another question comes first, and nobody knows when.
                return None
            self._number += 1
            self._desk.send((self._number, "view", {"name": name, "launch": launch}))
            return self._view_answer(self._number)
        except Exception:
            # A test has failed and is being reported: what is not known is left out.
            return None
        finally:
            self._asking.release()

    def _view_answer(self, wanted: int) -> View | None:
        deadline = time.monotonic() + _VIEW_LIMIT
        while self._desk.poll(max(0.0, deadline - time.monotonic())):
            number, kind, answer = self._desk.recv()
            if number == wanted:
                return None if kind == FAILED else answer
        return None

    def take_problems(self) -> list[Problem]:
        """Return nothing: the controller stops the servers, and says what went wrong with that."""
        return []

    def stop_all(self) -> None:
        """Do nothing: other workers may still use them."""

    def close(self) -> None:
        """Hang up; the controller stops the servers when nobody wants them any more."""
        for connection in (self._desk, self._news):
            with contextlib.suppress(OSError):
                connection.close()

    # Keeper: a test that has a server alone may stop and start it.

    def start(self, server: InferenceServer) -> None:
        """Have a server started."""
        if not server.running:
            self._follow(server.name, self._ask("start", name=server.name))

    def stop(self, server: InferenceServer) -> None:
        """Have a server stopped."""
        try:
            view = self._ask("stop", name=server.name)
        except LeakError:
            # It is stopped all the same.
            self._follow(server.name, self._ask("view", name=server.name))
            raise
        self._follow(server.name, view)

    def kill(self, server: InferenceServer) -> None:
        """Have a server ended at once."""
        self._ask("kill", name=server.name)
        # Its end is heard as any other, with how and why.
        server.wait_death(_END_LIMIT)

    def make_room_for(self, name: str, demands: Sequence[ClusterDemand]) -> None:
        """Have idle servers stopped."""
        self._ask("make_room_for", name=name, demands=demands)

    def start_profile(self, server: InferenceServer, name: str, tool: str | None) -> None:
        """Have a profile of a server on another machine begun."""
        self._ask("start_profile", name=server.name, profile=name, tool=tool)

    def stop_profile(self, server: InferenceServer) -> list[Path]:
        """Have it ended."""
        files: list[Path] = self._ask("stop_profile", name=server.name)
        server.note_profiles(files)
        return files

    # The inside.

    def _ask(self, verb: str, **arguments: Any) -> Any:
        if os.getpid() != self._pid:
            raise InferenceServerError(f"the server belongs to process {self._pid}: only that one may {verb} it")
        with self._asking:
            self._forget_interrupted()
            kind, answer = self._exchange(verb, arguments)
        if kind == FAILED:
            raise getattr(errors, answer[0], InferenceServerError)(answer[1])
        return answer

    def _exchange(self, verb: str, arguments: Mapping[str, Any]) -> tuple[str, Any]:
        self._number += 1
        if verb == "acquire":
            self._acquiring = self._number
        try:
            self._desk.send((self._number, verb, arguments))
            return self._answer(self._number)
        except (EOFError, OSError):
            raise InferenceServerError("the controller of xdist is gone, and its servers with it") from None

    def _answer(self, wanted: int) -> tuple[str, Any]:
        while True:
            number, kind, answer = self._desk.recv()
            # The answer to a question that was interrupted may still come.
            if number == wanted:
                self._acquiring = None
                return kind, answer

    def _forget_interrupted(self) -> None:
        """Give back what nobody has heard of, since a time limit of the test has ended its wait for it."""
        if self._acquiring is not None:
            try:
                kind, answer = self._answer(self._acquiring)
            except (EOFError, OSError):
                raise InferenceServerError("the controller of xdist is gone, and its servers with it") from None
            for ticket in {fields[0] for fields in answer} if kind != FAILED else ():
                self._exchange("release", {"ticket": ticket, "done": None})

    def _lease(
        self, ticket: int, name: str, view: View, launch: int, log_start: int, error: str | None, exclusive: bool
    ) -> Lease:
        server = self._follow(name, view)
        if exclusive and error is None:
            server.refuse_stop(None)
        failure = None if error is None else InferenceServerError(error)
        return Lease(ticket, name, server, launch, log_start, failure, exclusive)

    def _follow(self, name: str, view: View) -> InferenceServer:
        server = self.server(name)
        with self._lock:
            self._processes[name] = server.follow(view, self)
            known = self._ends.get((name, view.launches))
        if known is not None and view.running:
            self._note_end(name, view.launches, *known)
        return server

    def _listen(self) -> None:
        # TypeError: it was closed by this side.
        with contextlib.suppress(EOFError, OSError, TypeError):
            while True:
                name, launch, how, hang = self._news.recv()
                with self._lock:
                    self._ends[name, launch] = how, hang
                self._note_end(name, launch, how, hang)

    def _hears_no_more(self, error: BaseException) -> None:
        self.incidents.append(
            f"a worker of xdist does not hear of deaths of servers any more ({in_words(error)}): a failed test may not"
            " say that its server had died"
        )

    def _note_end(self, name: str, launch: int, how: Exit, hang: str | None) -> None:
        with self._lock:
            server, process = self._servers.get(name), self._processes.get(name)
            if server is None or process is None or server.launches != launch:
                return
            server.note_end(process, how, hang)
            # Now, while its log ends with its own last words.
            self._deaths[name, launch] = server.why_died()


def _connect(key: Mapping[str, str]) -> Connection[Any, Any]:
    secret = bytes.fromhex(key["secret"])
    try:
        connection: Connection[Any, Any] = Client(key["path"], family="AF_UNIX")
        if not connection.poll(_ADMISSION_LIMIT):
            raise TimeoutError(f"no answer in {_ADMISSION_LIMIT:.0f} s")
        # In the order in which `Client` does it.
        answer_challenge(connection, secret)
        deliver_challenge(connection, secret)
        return connection
    except (EOFError, OSError, AuthenticationError) as error:
        raise InferenceServerError(
            f"the controller of xdist cannot be reached ({in_words(error)}): its workers must run on the same machine"
        ) from None
