"""The servers of one run, as those ask for them who run the tests."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_infserver.errors import ConfigError, InferenceServerError
from pytest_infserver.launcher.health.liveness import notice_death
from pytest_infserver.launcher.profiling.chosen import profile_problem, use_profiler
from pytest_infserver.pool.lease import Lease, Problem
from pytest_infserver.pool.planning.decisions import Phase, Request
from pytest_infserver.pool.planning.planner import Planner
from pytest_infserver.pool.servers.books import Books
from pytest_infserver.pool.servers.executor import Executor
from pytest_infserver.pool.servers.failures import Failures
from pytest_infserver.pool.servers.handles import Handles
from pytest_infserver.pool.servers.leasing import Leasing
from pytest_infserver.pool.servers.planned import PlannedTests
from pytest_infserver.pool.servers.policy import Hooks, Policy
from pytest_infserver.pool.servers.run_end import RunEnd
from pytest_infserver.pool.servers.sleepers import Sleepers
from pytest_infserver.pool.servers.start_stop import StartStop
from pytest_infserver.pool.servers.stop_refusals import shared, stop_refusal
from pytest_infserver.pool.servers.tickets import Tickets
from pytest_infserver.pool.wait_report import WaitReport

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.runtime.view import View
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.room import Room

_NOT_WAITED_FOR = "whoever has asked for it does not wait any more"


class Pool:
    """Hands the configured servers out.

    Attributes:
        incidents: What happened to servers and is worth a word.
        on_end: Gets a server whose process has ended, whoever ended it, and why it died if it did.
        on_made: Gets each server before anything is done with it.
        on_up: Gets the names of the servers that run whenever these change; called under the lock.
        on_trouble: Called when there is something for `take_problems` to tell; under the lock.
    """

    def __init__(
        self, configs: Mapping[str, ServerConfig], room: Room, hooks: Hooks, policy: Policy | None = None
    ) -> None:
        """Make a pool; nothing is started.

        Args:
            configs: The servers by name.
            room: How many of them may run at the same time.
            hooks: Whom to tell.
            policy: What the user wants.
        """
        self.incidents: list[str] = []
        self.on_end: Callable[[InferenceServer, str | None], object] = lambda server, reason: None
        self.on_made: Callable[[InferenceServer], object] = lambda server: None
        self.on_up: Callable[[frozenset[str]], object] = lambda names: None
        self.on_trouble: Callable[[], object] = lambda: None
        policy = policy or Policy()
        self._changed = threading.Condition()
        self._planning = threading.Lock()
        self._looked_for: set[str] = set()
        self._room = room
        self._handles = Handles(configs, room, self._changed, self._prepare)
        keeps, needs = policy.keep is not None, self._handles.needs_of
        sleepers = Sleepers(lambda text: self._books.tell_once(text), wanted=policy.share_gpu)
        self._planner = Planner(
            room,
            prelaunch=policy.prelaunch,
            linger=keeps,
            needs=needs,
            may_sleep=lambda name, other: sleepers.may_sleep(self.server(name), self.server(other)),
        )
        self._planned = PlannedTests()
        self._failures = Failures()
        self._tickets = Tickets()
        self._end = RunEnd(self._changed, self._planned, lambda: self.on_trouble())
        self._books = Books(
            self._changed,
            room,
            policy,
            self._planner,
            self._handles,
            self._planned,
            self._failures,
            self._tickets,
            self._end,
            self.incidents,
        )
        self._executor = Executor(
            self._books,
            StartStop(self._books, hooks),
            sleepers,
            on_end=lambda server, reason: self.on_end(server, reason),
            on_up=lambda names: self.on_up(names),
        )
        self._leasing = Leasing(self._books, self._executor)

    def _prepare(self, server: InferenceServer) -> None:
        server.on_warning = self.incidents.append
        server.runtime.stop_refusal = stop_refusal(server, self._books)
        self._room.settle(server)
        self.on_made(server)

    # What the run says.

    def server(self, name: str) -> InferenceServer:
        """Return the handle of a server, which stays the same through restarts; it need not run."""
        return self._handles.get(name)

    @property
    def servers(self) -> list[InferenceServer]:
        """The servers that were wanted so far."""
        return self._handles.made()

    @property
    def configs(self) -> Mapping[str, ServerConfig]:
        """The servers by name."""
        return self._handles.configs

    def add(self, configs: Mapping[str, ServerConfig]) -> None:
        """Take in servers that were not configured: variants of these, and what tests make.

        Args:
            configs: The servers by name; one that is known already is left as it is.

        Raises:
            ConfigError: One of them needs more than there is, or has the name of another one.
        """
        self._handles.add(configs)

    def join(self, client: str) -> None:
        """Note somebody who is going to ask for servers."""
        with self._changed:
            self._planner.join(client)

    def leave(self, client: str) -> None:
        """Take back what a client still has: it is gone, and the test that it was running with it."""
        with self._end.locked():
            self._leasing.leave(client)
            self._executor.proceed()

    def cancel(self, client: str) -> None:
        """Let a client wait no more, which has been interrupted; what it has got meanwhile it gives back itself."""
        with self._end.locked():
            for request in self._planner.wishes():
                if request.client == client:
                    self._planner.give_back(request.ticket, time.monotonic())
                    self._tickets.refuse(request.ticket, client, _NOT_WAITED_FOR)
            self._executor.proceed()

    def plan(
        self, tests: Mapping[str, Sequence[str]], profilers: Mapping[str, str] | None = None, *, ahead: bool = True
    ) -> None:
        """Note which tests are going to run, and start what they need ahead of time.

        Args:
            tests: Node id to the servers that the test needs, in the order in which they are going to run.
            profilers: Name of a server to the profiler for which it has to be started.
            ahead: Whether any server may be started before a test asks for it.

        Raises:
            ConfigError: One of them needs more than there is, or cannot be profiled as configured.
        """
        wanted = list(dict.fromkeys(name for names in tests.values() for name in names))
        for test, names in tests.items():
            shortage = self._room.shortage(names)
            if shortage is not None:
                raise ConfigError(f"{test}: {shortage}")
        for name in wanted:
            server = self.server(name)
            problem = None if server.runtime.runs_elsewhere else profile_problem(server, also_on_demand=False)
            if problem is not None:
                raise server.settings.error(problem, "profile", "tool")
        for name, tool in (profilers or {}).items():
            use_profiler(self.server(name), tool)
        # In turn: with --dist each every worker plans, and some of them while tests run.
        with self._planning:
            for name in wanted:
                if name not in self._looked_for:
                    self._looked_for.add(name)
                    with self._end.exits():
                        self._executor.take_over(name)
        with self._end.locked():
            if not ahead:
                self._planner.start_nothing_ahead()
            for test, names in tests.items():
                self._planned.add(test, names)
                for name in names:
                    self._planner.want(name)
            self._expect_no_more()
            self._executor.proceed()

    def expect(self, configs: Mapping[str, ServerConfig]) -> None:
        """Start servers that tests are probably going to use, until `plan` says which; it never fails.

        Args:
            configs: The servers by name, the first one wanted first.
        """
        from pytest_infserver.launcher.keeping.kept import kept_servers

        if not configs or kept_servers():
            # Those would have to make way for a guess, or are the very same.
            return
        for name, config in configs.items():
            with contextlib.suppress(InferenceServerError):
                self.add({name: config})
                if self._room.shortage([name]) is None and profile_problem(self.server(name)) is None:
                    with self._changed:
                        self._planner.expect(name)
        with self._end.locked():
            self._executor.proceed()

    def _expect_no_more(self) -> None:
        vain, failed = self._planner.expect_no_more()
        for name in failed:
            self._failures.forget(name)
        self.incidents += [
            f"{name} was started while pytest collected, since the last run like this one had wanted it, and is"
            " stopped: no test wants it now"
            for name in vain
        ]

    def pin(self, name: str) -> None:
        """Note a use that was not planned, which more may follow: the server runs to the end of the run."""
        with self._changed:
            self._planner.pin(name)

    def acquire(
        self,
        client: str,
        names: Sequence[str],
        *,
        test: str | None = None,
        exclusive: bool = False,
        undisturbed: bool = False,
        waiting: Callable[[WaitReport], object] = lambda wait_report: None,
        progress: Callable[[str], object] = lambda text: None,
    ) -> list[Lease]:
        """Wait for servers, all of them together; an error is in the leases, not raised.

        Args:
            client: Who asks; one that still has leases never waits for somebody who waits for it.
            names: The servers.
            test: Node id of the test that needs them.
            exclusive: Whether nobody else may use them meanwhile, and the test may stop them.
            undisturbed: Whether nobody else may use them meanwhile.
            waiting: Gets what all who wait are waiting for, now and then, and once when this has come to an end.
            progress: Gets what takes long for another reason.
        """
        handles = [self.server(name) for name in names]
        self._require_room(client, names)
        for server in handles:
            # Outside of the lock: the news of an end may take seconds.
            notice_death(server)
        ticket = self._tickets.new()
        try:
            with self._end.locked():
                self._leasing.ask(Request(ticket, client, tuple(names), exclusive, undisturbed), test)
            self._leasing.wait_for(ticket, waiting, progress)
            # Asked for and waited for here: the first request of the test takes the shorter way.
            begins = [server.runtime.log_size_now() for server in handles]
            with self._changed:
                return self._leasing.leases(ticket, names, test, exclusive, begins)
        except BaseException:
            # Nobody knows of the lease.
            self.release(ticket)
            with contextlib.suppress(Exception):
                waiting(self.wait_report())
            raise

    def _require_room(self, client: str, names: Sequence[str]) -> None:
        """Make sure that a client can ever have servers beside those that it has.

        Raises:
            InferenceServerError: It cannot; the message has the arithmetic.
        """
        with self._changed:
            held = [
                name for name in self._handles.names() for lease in self._planner.leases(name) if lease.client == client
            ]
            together = list(dict.fromkeys([*held, *names]))
            if not self._handles.added.intersection(together):
                # Of those that are configured each test's need was looked at before.
                return
            shortage = self._room.shortage(together)
        if shortage is not None:
            raise InferenceServerError(f"{', '.join(names)} cannot be had beside {', '.join(held)}: {shortage}")

    def release(self, ticket: int, done: str | None = None, user: str | None = None) -> None:
        """Take a lease back.

        Args:
            ticket: The lease's.
            done: A planned test that is over now.
            user: The test that has used the servers last, if that is another one than has asked for them.
        """
        with self._end.locked():
            request = self._planner.lease(ticket)
            if user is not None and request is not None:
                self._planned.used_by(user, request.names)
            self._leasing.give_back(ticket, done)
            self._executor.proceed()

    def await_stopped(self, name: str) -> None:
        """Wait until a server has ended, if it is about to."""
        with self._changed:
            self._changed.wait_for(lambda: self._end.closed or self._planner.phase(name) is not Phase.STOPPING)

    def done(self, test: str) -> None:
        """Note that a planned test is over which had no lease, as one that was running when its worker crashed."""
        with self._end.locked():
            self._leasing.note_done(test)
            self._executor.proceed()

    def death(self, name: str, launch: int) -> str | None:
        """Return why a launch of a server died, or None if it did not."""
        with self._end.locked():
            self._executor.note_deaths()
        with self._changed:
            return self._failures.death(name, launch)

    def view(self, name: str, launch: int | None = None) -> View:
        """Return how a server is; if a launch is named that has died, how it was then."""
        with self._changed:
            last = self._failures.last_view(name, launch)
        if last is None:
            return self.server(name).runtime.look()
        at, view = last
        return view.later(time.monotonic() - at)

    def take_problems(self) -> list[Problem]:
        """Return what went wrong at stops since the last call; raise what ends the run."""
        return self._end.take_problems()

    @property
    def tests(self) -> dict[str, tuple[str, ...]]:
        """The servers that each planned test needs."""
        with self._changed:
            return dict(self._planned.tests)

    def servers_of(self, test: str) -> Sequence[str]:
        """Return the servers that a planned test needs."""
        return self._planned.tests.get(test, ())

    def is_ready(self, name: str) -> bool:
        """Return whether a server runs now."""
        with self._changed:
            return self._planner.phase(name) is Phase.UP

    def wait_report(self) -> WaitReport:
        """Return what those wait for who wait now."""
        return self._leasing.wait_report()

    def fail(self, error: BaseException) -> None:
        """Let nobody wait any more: the run ends with an error, which pytest's own thread is going to raise."""
        self._end.fail(error)

    def raise_exit(self) -> None:
        """Raise what was raised elsewhere and ends the run: by a hook, or in a thread of the pool."""
        self._end.raise_exit()

    def watch(self, server: InferenceServer) -> None:
        """Let the end of a server be noticed at once."""
        self._executor.watch(server)

    def alone(self, client: str, name: str) -> InferenceServer:
        """Return a server that a client may stop and start, since it has it alone.

        Raises:
            InferenceServerError: It has not.
        """
        server = self.server(name)
        with self._changed:
            leases = self._planner.leases(name)
            own = bool(leases) and all(lease.client == client for lease in leases)
            if not (own and (any(lease.exclusive for lease in leases) or stop_refusal(server, self._books) is None)):
                raise InferenceServerError(shared(server))
        return server

    def wind_up(self) -> None:
        """Start nothing any more, and let nobody wait for what does not run: the run is about to end."""
        with self._end.locked():
            self._planner.wind_up()
            self._executor.proceed()

    def refuse(self) -> None:
        """Let nobody wait any more: the run ends."""
        self._end.refuse()

    def close(self, progress: Callable[[str], object] = lambda text: None) -> None:
        """Stop all servers and hand none out any more."""
        self.refuse()
        self.stop_all(progress)

    def stop_all(self, progress: Callable[[str], object] = lambda text: None) -> None:
        """Stop all servers, or leave them running if they are to be kept; returns when that is done.

        Args:
            progress: Gets a line of text when that takes long for a reason, as for a profile that is being written.
        """
        self._executor.stop_all(progress)
