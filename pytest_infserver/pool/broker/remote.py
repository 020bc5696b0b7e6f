"""A client's side of the broker: servers that another process owns."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_infserver.config.model import check_same
from pytest_infserver.errors import InferenceServerError, LeakError
from pytest_infserver.launcher.backends.registry import find_backend
from pytest_infserver.launcher.profiling.chosen import use_profiler
from pytest_infserver.launcher.runtime.followed import follow, note_end
from pytest_infserver.pool.broker.broker import CANCEL, FAILED, PROGRESS, WAITING
from pytest_infserver.pool.lease import Lease, Problem
from pytest_infserver.pool.member import Plan
from pytest_infserver.pool.outcomes import error_called, in_words
from pytest_infserver.pool.process.foreign import as_foreign, is_expressible
from pytest_infserver.pool.servers.stop_refusals import shared
from pytest_infserver.pool.threads import spawn

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.runtime.followed import FollowedProcess
    from pytest_infserver.launcher.runtime.view import View
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.launcher.supervision.supervised_process import Exit

_ADMISSION_LIMIT = 60.0
"""Seconds in which the controller lets a worker in; it takes long where the system has no descriptor left."""
_END_LIMIT = 10.0
"""Seconds that the news of an end gets which the controller knows of."""
_VIEW_LIMIT = 2.0
"""Seconds that the report of a failed test waits for what the controller knows of its servers."""


class RemoteMember:
    """A process that runs tests, such as a worker of xdist.

    Attributes:
        is_gone: Whether the process of the pool has ended, with its servers.
    """

    alone = False
    owns_pool = False

    def __init__(self, configs: Mapping[str, ServerConfig], key: Mapping[str, str], client: str) -> None:
        """Connect to a broker.

        Args:
            configs: The servers by name.
            key: What its owner has handed over.
            client: This process's name, as that of a worker.

        Raises:
            InferenceServerError: The broker cannot be reached.
        """
        self._init_handles(configs)
        self._connect(key, client, "ask")

    def begin(self, expected: Mapping[str, ServerConfig]) -> None:
        """Do nothing: the pool is there already."""

    def test(self) -> AbstractContextManager[None]:
        """Run a test."""
        return contextlib.nullcontext()

    def _init_handles(self, configs: Mapping[str, ServerConfig]) -> None:
        self.incidents: list[str] = []
        self._configs = configs
        self._servers: dict[str, InferenceServer] = {}
        self._added: set[str] = set()
        self._of_plan: set[str] = set()
        self._ended_here: set[tuple[str, int]] = set()
        self._processes: dict[str, FollowedProcess] = {}
        self._deaths: dict[tuple[str, int], str | None] = {}
        self._ends: dict[tuple[str, int], Sequence[Any]] = {}
        self.is_gone = False
        self._is_closing = False
        self._lock = threading.RLock()
        self._asking = threading.Lock()
        self._number = 0
        self._acquiring: int | None = None
        self._pid = os.getpid()

    def _connect(self, key: Mapping[str, str], client: str, kind: str) -> None:
        self._broker = _connect(key)
        self._broker.send((client, kind))
        self._news = _connect(key)
        self._news.send((client, "news"))
        spawn(self._listen, "news", self._hears_no_more)

    def server(self, name: str) -> InferenceServer:
        """Return the handle of a server; it is the controller's."""
        if name not in self._servers:
            from pytest_infserver.launcher.factory import create_from_config

            server = create_from_config(self._configs[name])
            server.on_warning = self.incidents.append
            server.runtime.stop_refusal = self._stop_refusal(server)
            self._servers[name] = server
        return self._servers[name]

    def _stop_refusal(self, server: InferenceServer) -> str | None:
        is_own = server.name in self._added and server.name not in self._of_plan
        # Whether others have it the pool knows.
        return None if is_own else shared(server)

    def know(self, configs: Mapping[str, ServerConfig]) -> None:
        """Take in the configurations of servers that the pool has beside those of the beginning."""
        with self._lock:
            self._configs = {**configs, **self._configs}

    def can_run(self, config: ServerConfig) -> bool:
        """Return whether the pool can run servers of a backend."""
        return is_expressible(find_backend(config))

    def add(self, configs: Mapping[str, ServerConfig]) -> None:
        """Have the pool take in servers that are not configured.

        Args:
            configs: The servers by name.

        Raises:
            ConfigError: One of them needs more than there is, or has the name of another one.
        """
        for name in configs.keys() & self._configs.keys():
            check_same(self._configs[name], configs[name])
        new = {name: config for name, config in configs.items() if name not in self._configs}
        if new:
            found = {config.backend: as_foreign(find_backend(config)) for config in new.values()}
            backends = {name: foreign for name, foreign in found.items() if foreign is not None}
            self._ask("add", configs=new, backends=backends)
            self._added.update(new)
            self.know(new)

    def servers(self) -> list[InferenceServer]:
        """Return the handles of all servers that were wanted so far."""
        return list(self._servers.values())

    def plan(self, plan: Plan) -> None:
        """Say which servers each test is going to need."""
        self._planned(plan)

    def _planned(self, plan: Plan) -> str | None:
        for name, tool in plan.profilers.items():
            use_profiler(self.server(name), tool)
        self._of_plan.update(name for names in plan.tests.values() for name in names)
        refusal: str | None = self._ask("plan", **asdict(plan))
        return refusal

    def is_ready(self, name: str) -> bool:
        """Return whether a server ran when it was leased last."""
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

    def release(self, ticket: int, done: str | None = None, user: str | None = None) -> None:
        """Give a lease back."""
        # A hook may make one known meanwhile.
        for server in list(self._servers.values()):
            server.runtime.stop_refusal = self._stop_refusal(server)
        with self._unless_gone():
            self._tell("release", ticket=ticket, done=done, user=user)

    def await_stopped(self, name: str) -> None:
        """Wait until a server has ended that nobody wants any more."""
        with self._unless_gone():
            self._ask("await_stopped", name=name)

    def done(self, test: str) -> None:
        """Note that a planned test is over that had no lease."""
        with self._unless_gone():
            self._ask("done", test=test)

    def death(self, lease: Lease) -> str | None:
        """Return why the server has died since it was leased."""
        with self._lock:
            if (lease.name, lease.launch) in self._ended_here:
                return None
            reason = self._deaths.get((lease.name, lease.launch))
        if reason is None and self.is_gone and lease.error is None:
            return f"{lease.server} has died: {self._why_gone()}"
        return reason

    def view(self, name: str, launch: int) -> View | None:
        """Return how a server is as the controller sees it, or None if that does not answer at once."""
        if os.getpid() != self._pid or not self._asking.acquire(timeout=_VIEW_LIMIT):
            return None
        try:
            if self._acquiring is not None:
                # The answer to another question comes first, and nobody knows when.
                return None
            self._number += 1
            self._broker.send((self._number, "view", {"name": name, "launch": launch}))
            return self._view_answer(self._number)
        except Exception:
            # A test has failed and is being reported: what is not known is left out.
            return None
        finally:
            self._asking.release()

    def _view_answer(self, wanted: int) -> View | None:
        deadline = time.monotonic() + _VIEW_LIMIT
        while self._broker.poll(max(0.0, deadline - time.monotonic())):
            number, kind, answer = self._broker.recv()
            if number == wanted and kind not in (WAITING, PROGRESS):
                return None if kind == FAILED else answer
        return None

    def take_problems(self) -> list[Problem]:
        """Return nothing: the controller stops the servers, and says what went wrong with that."""
        return []

    def stop_all(self) -> None:
        """Do nothing: other workers may still use them."""

    def close(self) -> None:
        """Hang up; the controller stops the servers when nobody wants them any more."""
        self._is_closing = True
        for connection in (self._broker, self._news):
            with contextlib.suppress(OSError):
                connection.close()

    # The owner's side, as `Owner`: a test that has a server alone may stop and start it.

    def start(self, server: InferenceServer) -> None:
        """Have a server started."""
        if not server.running:
            self._follow(server.name, self._ask("start", name=server.name))

    def stop(self, server: InferenceServer) -> None:
        """Have a server stopped."""
        self._ended_here.add((server.name, server.launches))
        try:
            view = self._ask("stop", name=server.name)
        except LeakError:
            # It is stopped all the same.
            self._follow(server.name, self._ask("view", name=server.name))
            raise
        self._follow(server.name, view)

    def kill(self, server: InferenceServer) -> None:
        """Have a server ended at once."""
        self._ended_here.add((server.name, server.launches))
        self._ask("kill", name=server.name)
        # Its end is heard as any other, with how and why.
        server.wait_death(_END_LIMIT)

    def pause(self, server: InferenceServer) -> None:
        """Keep a server from being taken for hung."""
        self._ask("pause", name=server.name)

    def resume(self, server: InferenceServer) -> None:
        """Undo one `pause`."""
        self._ask("resume", name=server.name)

    def start_profile(self, server: InferenceServer, name: str, tool: str | None) -> None:
        """Have a profile of a server on another machine begun."""
        self._ask("start_profile", name=server.name, profile=name, tool=tool)

    def stop_profile(self, server: InferenceServer) -> list[Path]:
        """Have it ended."""
        files: list[Path] = self._ask("stop_profile", name=server.name)
        server.runtime.profiling.note_brought(files)
        return files

    # The inside.

    @contextlib.contextmanager
    def _unless_gone(self) -> Iterator[None]:
        """Do something that is of no use any more if the process is gone: each test that needs it says so."""
        try:
            yield
        except InferenceServerError:
            if not self.is_gone:
                raise

    @contextlib.contextmanager
    def _turn_of(self, verb: str) -> Iterator[None]:
        if os.getpid() != self._pid:
            raise InferenceServerError(f"the server belongs to process {self._pid}: only that one may {verb} it")
        with self._asking:
            self._forget_interrupted()
            yield

    def _ask(self, verb: str, **arguments: Any) -> Any:
        with self._turn_of(verb):
            kind, answer = self._exchange(verb, arguments)
        if kind == FAILED:
            raise error_called(*answer)
        return answer

    def _tell(self, verb: str, **arguments: Any) -> None:
        """Ask for something without waiting for it: what goes wrong with it ends the run, which the pool says."""
        with self._turn_of(verb):
            self._number += 1
            try:
                self._broker.send((self._number, verb, arguments))
            except OSError:
                raise self._gone() from None

    def _exchange(self, verb: str, arguments: Mapping[str, Any]) -> tuple[str, Any]:
        self._number += 1
        if verb == "acquire":
            self._acquiring = self._number
        try:
            self._broker.send((self._number, verb, arguments))
            return self._answer(self._number)
        except (EOFError, OSError):
            raise self._gone() from None
        except BaseException:
            with contextlib.suppress(OSError):
                self._news.send(CANCEL)
            raise

    def _gone(self) -> InferenceServerError:
        # The thread that listens may not have heard of it yet.
        self.is_gone = not self._is_closing
        return InferenceServerError(self._why_gone())

    def _why_gone(self) -> str:
        return "the process of the pool is gone, and its servers with it"

    def _told_meanwhile(self, kind: str, what: Any) -> None:
        """Take in what comes before an answer."""

    def _answer(self, wanted: int) -> tuple[str, Any]:
        while True:
            number, kind, answer = self._broker.recv()
            if kind in (WAITING, PROGRESS):
                self._told_meanwhile(kind, answer)
            # The answer to a question that was interrupted may still come, or to one that nobody waits for.
            elif number == wanted:
                self._acquiring = None
                return kind, answer

    def _forget_interrupted(self) -> None:
        """Give back what nobody has heard of, since a time limit of the test has ended its wait for it."""
        if self._acquiring is not None:
            try:
                kind, answer = self._answer(self._acquiring)
            except (EOFError, OSError):
                raise self._gone() from None
            for ticket in {fields[0] for fields in answer} if kind != FAILED else ():
                self._exchange("release", {"ticket": ticket, "done": None})

    def _lease(
        self,
        ticket: int,
        name: str,
        view: View,
        launch: int,
        log_start: int,
        error: tuple[str, str] | None,
        exclusive: bool,
    ) -> Lease:
        server = self._follow(name, view)
        if exclusive and error is None:
            server.runtime.stop_refusal = None
        failure = None if error is None else error_called(*error)
        return Lease(ticket, name, server, launch, log_start, failure, exclusive)

    def _follow(self, name: str, view: View) -> InferenceServer:
        server = self.server(name)
        with self._lock:
            self._processes[name] = follow(server, view, self)
            known = self._ends.get((name, view.launches))
        if known is not None and view.running:
            self._note_end(name, view.launches, *known)
        return server

    def _listen(self) -> None:
        # TypeError: it was closed by this side.
        with contextlib.suppress(EOFError, OSError, TypeError):
            while True:
                name, launch, *end = self._news.recv()
                with self._lock:
                    self._ends[name, launch] = end
                self._note_end(name, launch, *end)
        self.is_gone = not self._is_closing

    def _hears_no_more(self, error: BaseException) -> None:
        self.incidents.append(
            f"this process does not hear of deaths of servers any more ({in_words(error)}): a failed test may not"
            " say that its server had died"
        )

    def _note_end(self, name: str, launch: int, how: Exit, hang: str | None, reason: str | None) -> None:
        with self._lock:
            server, process = self._servers.get(name), self._processes.get(name)
            if server is None or process is None or server.launches != launch:
                return
            if reason is not None:
                # Before the end is seen, so that who sees it knows why.
                self._deaths[name, launch] = reason
            note_end(server, process, how, hang)
            if reason is None:
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
            f"the process of the pool cannot be reached ({in_words(error)}): workers of xdist must run on the same"
            " machine"
        ) from None
