"""The servers of one run: carries out what the planner decides, each start and stop in a thread of its own."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_infserver.config.model import check_same
from pytest_infserver.errors import ConfigError, InferenceServerError, ServerDiedError, ServerStartupError
from pytest_infserver.launcher.diagnosis.messages import repeated
from pytest_infserver.launcher.health.liveness import notice_death
from pytest_infserver.launcher.profiling.chosen import profile_problem, use_profiler
from pytest_infserver.launcher.user_code import ends_run
from pytest_infserver.pool.eviction import in_the_way, on_devices, sent_away
from pytest_infserver.pool.lease import Lease, Problem
from pytest_infserver.pool.outcomes import in_words, user_error
from pytest_infserver.pool.planning.decisions import Grant, Phase, Request, Start, Stop
from pytest_infserver.pool.planning.planner import ENDED, Planner
from pytest_infserver.pool.threads import spawn
from pytest_infserver.pool.wait_report import Wait, WaitReport, causes, wait_of, wait_report

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.runtime.view import View
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.room import Room

_NOT_WAITED_FOR = "whoever has asked for it does not wait any more"
MAX_RESTARTS = 3
"""How often a server that died is started again in one run."""
_STEP = 0.25
"""Seconds between two looks of somebody who waits."""
_PATIENCE = 120.0
"""Seconds after which a server is stopped although others that need it have not ended."""
_TELL_EVERY = 0.2
"""Seconds between two reports of what somebody waits for."""
_MEMORY_GRACE = 10.0
"""Seconds in which the memory of GPUs is to be back before another server, or another run, can get them."""
_LOOK_AGAIN = 2.0
"""Seconds between two looks for kept servers that hold the GPUs which a server needs."""


@dataclass(frozen=True)
class Hooks:
    """Whom the pool tells about its servers.

    Attributes:
        started: Gets each server that has become ready.
        stopping: Gets it before it is stopped.
        stopped: Gets it when it is gone.
    """

    started: Callable[[InferenceServer], object]
    stopping: Callable[[InferenceServer], object]
    stopped: Callable[[InferenceServer], object]


@dataclass(frozen=True)
class Policy:
    """What the user wants of the pool.

    Attributes:
        prelaunch: Whether servers are started before a test asks for them.
        restarts: How often a server that died is started again.
        keep: Seconds that servers live on after their last use; None stops them.
    """

    prelaunch: bool = True
    restarts: int = MAX_RESTARTS
    keep: float | None = None


class Pool:
    """Hands the configured servers out.

    Attributes:
        configs: The servers by name.
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
        self.configs = configs
        self.incidents: list[str] = []
        self.on_end: Callable[[InferenceServer, str | None], object] = lambda server, reason: None
        self.on_made: Callable[[InferenceServer], object] = lambda server: None
        self.on_up: Callable[[frozenset[str]], object] = lambda names: None
        self.on_trouble: Callable[[], object] = lambda: None
        self._up: frozenset[str] = frozenset()
        self._room = room
        self._hooks = hooks
        self._policy = policy or Policy()
        keeps = self._policy.keep is not None
        self._planner = Planner(room, prelaunch=self._policy.prelaunch, linger=keeps, needs=self._needs_of)
        self._servers: dict[str, InferenceServer] = {}
        self._added: set[str] = set()
        self._failures: dict[str, InferenceServerError] = {}
        self._shown: set[str] = set()
        self._first_told: dict[str, str] = {}
        self._deaths: dict[tuple[str, int], str] = {}
        self._last_views: dict[tuple[str, int | None], tuple[float, View]] = {}
        self._restarts: Counter[str] = Counter()
        self._evictions: Counter[tuple[str, str]] = Counter()
        self._tests: dict[str, tuple[str, ...]] = {}
        self._left: Counter[str] = Counter()
        self._tickets = itertools.count(1)
        self._granted: dict[int, Grant] = {}
        self._running: dict[int, tuple[str, str]] = {}
        self._asked: dict[int, float] = {}
        self._begun: dict[str, float] = {}
        self._users: dict[str, str] = {}
        self._used: dict[str, float] = {}
        self._watched: dict[str, int] = {}
        self._problems: list[tuple[str, Problem]] = []
        self._lines: deque[str] = deque()
        self._cause: BaseException | None = None
        self._exit: BaseException | None = None
        self._closed = False
        self._planning = threading.Lock()
        self._looked_for: set[str] = set()
        self._look_again: dict[str, float] = {}
        self._starts: dict[str, threading.Thread] = {}
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()

    # What the run says.

    def server(self, name: str) -> InferenceServer:
        """Return the handle of a server, which stays the same through restarts; it need not run."""
        with self._changed:
            if name not in self._servers:
                self._servers[name] = self._made(name)
            return self._servers[name]

    @property
    def servers(self) -> list[InferenceServer]:
        """The servers that were wanted so far."""
        with self._changed:
            return list(self._servers.values())

    def add(self, configs: Mapping[str, ServerConfig]) -> None:
        """Take in servers that were not configured: variants of these, and what tests make.

        Args:
            configs: The servers by name; one that is known already is left as it is.

        Raises:
            ConfigError: One of them needs more than there is, or has the name of another one.
        """
        from pytest_infserver.launcher.factory import create_from_config

        for name, config in configs.items():
            with self._changed:
                known = self.configs.get(name)
            if known is not None:
                check_same(known, config)
                continue
            # Outside of the lock: its backend may have to be asked.
            server = create_from_config(config)
            with self._changed:
                self._room.add(server)
                self.configs = {**self.configs, name: config}
                self._added.add(name)
            shortage = self._room.shortage([name])
            if shortage is not None:
                raise config.error(shortage)

    def join(self, client: str) -> None:
        """Note somebody who is going to ask for servers."""
        with self._changed:
            self._planner.join(client)

    def leave(self, client: str) -> None:
        """Take back what a client still has: it is gone, and the test that it was running with it."""
        with self._books():
            wishes, leases = self._planner.leave(client)
            # Also a test that waits for a server, or could not have it, is over.
            running = [ticket for ticket, (user, _) in self._running.items() if user == client]
            for ticket in dict.fromkeys(wishes + leases + running):
                waits = ticket in self._asked
                self._give_back(ticket, self._running.get(ticket, (client, None))[1])
                if waits:
                    self._granted[ticket] = Grant(Request(ticket, client, ()), f"{client} is gone")
            self._proceed()

    def cancel(self, client: str) -> None:
        """Let a client wait no more, which has been interrupted; what it has got meanwhile it gives back itself."""
        with self._books():
            for request in self._planner.wishes():
                if request.client == client:
                    self._planner.give_back(request.ticket, time.monotonic())
                    self._granted[request.ticket] = Grant(Request(request.ticket, client, ()), _NOT_WAITED_FOR)
            self._proceed()

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
                    with self._exits():
                        self._take_over(name)
        with self._books():
            if not ahead:
                self._planner.start_nothing_ahead()
            for test, names in tests.items():
                self._tests[test] = tuple(names)
                self._left[test] += 1
                for name in names:
                    self._planner.want(name)
            self._proceed()

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
        ticket = next(self._tickets)
        try:
            with self._books():
                if test is not None:
                    self._running[ticket] = client, test
                self._asked[ticket] = time.monotonic()
                self._planner.ask(Request(ticket, client, tuple(names), exclusive, undisturbed))
                self._proceed()
            self._wait_for(ticket, waiting, progress)
            # Asked for and waited for here: the first request of the test takes the shorter way.
            begins = [server.runtime.log_size_now() for server in handles]
            with self._changed:
                return self._leases(ticket, names, test, exclusive, begins)
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
            held = [name for name in self._servers for lease in self._planner.leases(name) if lease.client == client]
            together = list(dict.fromkeys([*held, *names]))
            if not self._added.intersection(together):
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
        with self._books():
            request = self._planner.lease(ticket)
            if user is not None and request is not None:
                self._users.update(dict.fromkeys(request.names, user))
            self._give_back(ticket, done)
            self._proceed()

    def await_stopped(self, name: str) -> None:
        """Wait until a server has ended, if it is about to."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._planner.phase(name) is not Phase.STOPPING)

    def done(self, test: str) -> None:
        """Note that a planned test is over which had no lease, as one that was running when its worker crashed."""
        with self._books():
            self._note_done(test)
            self._proceed()

    def death(self, name: str, launch: int) -> str | None:
        """Return why a launch of a server died, or None if it did not."""
        with self._books():
            self._note_deaths()
        with self._changed:
            return self._deaths.get((name, launch))

    def view(self, name: str, launch: int | None = None) -> View:
        """Return how a server is; if a launch is named that has died, how it was then."""
        with self._changed:
            last = self._last_views.get((name, launch))
        if last is None:
            return self.server(name).runtime.look()
        at, view = last
        return view.later(time.monotonic() - at)

    def take_problems(self) -> list[Problem]:
        """Return what went wrong at stops since the last call; raise what ends the run."""
        self.raise_exit()
        with self._changed:
            problems, self._problems = self._problems, []
            # One that nobody had used by then is told to who wanted it.
            return [Problem(one.text, one.user or self._users.get(name)) for name, one in problems]

    @property
    def tests(self) -> dict[str, tuple[str, ...]]:
        """The servers that each planned test needs."""
        with self._changed:
            return dict(self._tests)

    def servers_of(self, test: str) -> Sequence[str]:
        """Return the servers that a planned test needs."""
        return self._tests.get(test, ())

    def is_ready(self, name: str) -> bool:
        """Return whether a server runs now."""
        with self._changed:
            return self._planner.phase(name) is Phase.UP

    def wait_report(self) -> WaitReport:
        """Return what those wait for who wait now."""
        with self._changed:
            if self._closed or not self._planner.wishes():
                return wait_report((), self._servers.values())
            tests = {ticket: test for ticket, (_, test) in self._running.items()}
            waits = tuple(self._wait(*cause) for cause in causes(self._planner, self._room, tests))
            return wait_report(waits, self._servers.values())

    def fail(self, error: BaseException) -> None:
        """Let nobody wait any more: the run ends with an error, which pytest's own thread is going to raise."""
        with self._changed:
            self._closed = True
            if self._cause is None:
                self._cause = self._exit = error
            elif not ends_run(error) and in_words(error) != in_words(self._cause):
                problem = "", Problem(f"when the run had ended: {in_words(error)}", None)
                self._problems += [] if problem in self._problems else [problem]
            self.on_trouble()
            self._changed.notify_all()

    def raise_exit(self) -> None:
        """Raise what was raised elsewhere and ends the run: by a hook, or in a thread of the pool."""
        with self._changed:
            error, self._exit = self._exit, None
        if error is not None:
            raise error

    def alone(self, client: str, name: str) -> InferenceServer:
        """Return a server that a client may stop and start, since it has it alone.

        Raises:
            InferenceServerError: It has not.
        """
        server = self.server(name)
        with self._changed:
            leases = self._planner.leases(name)
            own = bool(leases) and all(lease.client == client for lease in leases)
            if not (own and (any(lease.exclusive for lease in leases) or self._stop_refusal(server) is None)):
                raise InferenceServerError(shared(server))
        return server

    def wind_up(self) -> None:
        """Start nothing any more, and let nobody wait for what does not run: the run is about to end."""
        with self._books():
            self._planner.wind_up()
            self._proceed()

    def refuse(self) -> None:
        """Let nobody wait any more: the run ends."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self, progress: Callable[[str], object] = lambda text: None) -> None:
        """Stop all servers and hand none out any more."""
        self.refuse()
        self.stop_all(progress)

    def stop_all(self, progress: Callable[[str], object] = lambda text: None) -> None:
        """Stop all servers, or leave them running if they are to be kept; returns when that is done.

        Args:
            progress: Gets a line of text when that takes long for a reason, as for a profile that is being written.
        """
        with self._books():
            for stop in self._planner.stop_all():
                self._spawn(self._stop_or_keep, stop.name)
            self._changed.notify_all()
        self._join(progress)
        self._stop_rest()
        with self._changed:
            evictions, self._evictions = self._evictions, Counter()
        self.incidents += [
            f"{name} was stopped {count} {'time' if count == 1 else 'times'} to make room for {other}"
            for (name, other), count in evictions.items()
        ]

    # The inside; all of it under the lock, unless it says otherwise.

    def _made(self, name: str) -> InferenceServer:
        from pytest_infserver.launcher.factory import create_from_config

        server = create_from_config(self.configs[name])
        # The next tests expect it where it was, also if it dies.
        server.runtime.holds_port = True
        server.on_progress = self._lines.append
        server.on_warning = self.incidents.append
        server.runtime.stop_refusal = self._stop_refusal(server)
        self._room.settle(server)
        self.on_made(server)
        return server

    def _stop_refusal(self, server: InferenceServer) -> str | None:
        """Return why a test must not stop a server; who has asked the factory for one that nobody else uses may."""
        name = server.name
        with self._changed:
            is_own = name in self._added and not self._planner.is_planned(name) and len(self._planner.leases(name)) <= 1
        return None if is_own else shared(server)

    def _wait(self, name: str, hindrance: str, ticket: int | None) -> Wait:
        now = time.monotonic()
        changes = self._planner.phase(name) in (Phase.STARTING, Phase.STOPPING)
        begin = self._begun.get(name, now) if changes or ticket is None else self._asked.get(ticket, now)
        return wait_of(self._servers[name], now - begin, hindrance)

    def _wait_for(
        self, ticket: int, waiting: Callable[[WaitReport], object], progress: Callable[[str], object]
    ) -> None:
        """Wait until a request is answered; without the lock."""
        told = 0.0
        while True:
            with self._changed:
                if not self._is_answered(ticket):
                    with self._exits():
                        self._proceed(changed=False)
                if not self._is_answered(ticket):
                    wake, now = self._planner.wake, time.monotonic()
                    self._changed.wait(_STEP if wake is None else max(0.0, min(_STEP, wake - now)))
                answered = self._is_answered(ticket)
            for line in self._take_lines():
                progress(line)
            # Whoever shows it does not show more.
            if answered or time.monotonic() - told >= _TELL_EVERY:
                told = time.monotonic()
                waiting(self.wait_report())
            if answered:
                return

    def _is_answered(self, ticket: int) -> bool:
        return self._closed or ticket in self._granted

    def _take_lines(self) -> Iterator[str]:
        """Yield what the servers have said; each line once, also if several wait."""
        while True:
            try:
                line = self._lines.popleft()
            except IndexError:
                return
            yield line

    def _leases(
        self, ticket: int, names: Sequence[str], test: str | None, exclusive: bool, begins: Sequence[int]
    ) -> list[Lease]:
        """Return what a request has been granted; ``begins`` are the sizes of the servers' logs."""
        self._asked.pop(ticket, None)
        grant = self._granted.pop(ticket, None) or Grant(Request(ticket, "", ()), self._end_in_words())
        if test is not None:
            self._users.update(dict.fromkeys(names, test))
        # All of them together or none.
        failed = next((name for name in names if name in self._failures), None)
        errors = {name: self._failure(name if name in self._failures else failed, test) for name in names}
        return [
            self._lease(ticket, name, grant, exclusive, errors[name], begin)
            for name, begin in zip(names, begins, strict=True)
        ]

    def _end_in_words(self) -> str:
        return ENDED if self._cause is None else f"{ENDED} ({in_words(self._cause)})"

    def _lease(
        self,
        ticket: int,
        name: str,
        grant: Grant,
        exclusive: bool,
        error: InferenceServerError | None,
        log_start: int,
    ) -> Lease:
        server = self._servers[name]
        if error is None and grant.refusal is not None:
            error = InferenceServerError(grant.refusal)
        if name in self._failures and name not in self._shown and server.launches:
            # What a failed start has written is shown once, with the first test.
            self._shown.add(name)
            log_start = server.runtime.status.launch_log_start
        if error is None and (exclusive or name in self._added):
            server.runtime.stop_refusal = None if exclusive else self._stop_refusal(server)
        return Lease(ticket, name, server, server.launches, log_start, error, exclusive)

    def _failure(self, name: str | None, test: str | None) -> InferenceServerError | None:
        """Return why a server could not be had: all of it for the first test, for each later one that and where."""
        error = None if name is None else self._failures.get(name)
        if error is None or test is None:
            return error
        first = self._first_told.setdefault(str(name), test)
        text = repeated(str(error), first)
        return error if first == test or text == str(error) else type(error)(text)

    def _take_over(self, name: str) -> None:
        """Take a server over that an earlier run has kept, if there is one like this; without the lock."""
        server = self.server(name)
        with self._changed:
            if self._planner.phase(name) is not Phase.DOWN or name in self._failures:
                return
        try:
            if not server.take_over():
                return
        except BaseException as error:
            if ends_run(error):
                raise
            # Its start says it better.
            return
        with self._exits():
            problems = _try(self._hooks.started, server)
            with self._changed:
                self._note_problems(name, problems)
        with self._changed:
            # Somebody who did not announce it may have asked for it meanwhile, and then its start has found it running.
            if self._planner.phase(name) is Phase.DOWN:
                self._room.adopt(name, server.device_keys)
                self._planner.adopted(name, time.monotonic())
                self._note_adoption(server)
                self.watch(server)

    def _make_way(self, name: str) -> None:
        """Stop a kept server that holds the GPUs that another one needs; in a thread of its own, without the lock."""
        from pytest_infserver.launcher.keeping.kept import kept_servers

        for kept in on_devices(self._room.candidates(name), kept_servers())[:1]:
            self._tell_once(sent_away(kept, f": {name} needs its GPUs"))
        with self._changed:
            self._look_again[name] = time.monotonic() + _LOOK_AGAIN
            self._proceed()

    def _give_back(self, ticket: int, done: str | None) -> None:
        now = time.monotonic()
        request = self._planner.lease(ticket)
        self._planner.give_back(ticket, now)
        if request is not None:
            self._used.update(dict.fromkeys(request.names, now))
            for name in request.names:
                if request.exclusive or name in self._added:
                    self._end_exclusive(name)
        for book in (self._running, self._asked, self._granted):
            book.pop(ticket, None)
        self._note_done(done)

    def _end_exclusive(self, name: str) -> None:
        """Bring a server back in line that a test has had alone: it may have stopped it, or killed it."""
        server = self._servers[name]
        server.runtime.stop_refusal = self._stop_refusal(server)
        if self._planner.phase(name) is Phase.UP:
            if server.running:
                self.watch(server)
            else:
                self._planner.died(name)

    def _note_done(self, test: str | None) -> None:
        if test is not None and self._left[test] > 0:
            self._left[test] -= 1
            for name in self._tests[test]:
                self._planner.done(name)

    def _proceed(self, *, changed: bool = True) -> None:
        """Carry out what is to be done now.

        Args:
            changed: Whether the others who wait have to look again; those who only look do not wake one another.
        """
        changed |= self._note_deaths()
        if not self._closed:
            for decision in self._planner.decide(time.monotonic()):
                changed = True
                if isinstance(decision, Start):
                    self.server(decision.name)
                    self._begun[decision.name] = time.monotonic()
                    self._starts[decision.name] = self._spawn(self._start, decision.name)
                elif isinstance(decision, Stop):
                    self._carry_out(decision)
                else:
                    self._granted[decision.request.ticket] = decision
            for name in self._planner.short:
                if self._look_again.get(name, 0.0) <= time.monotonic():
                    self._look_again[name] = math.inf
                    self._spawn(self._make_way, name)
        up = frozenset(self._planner.names(Phase.UP))
        if up != self._up:
            self._up, changed = up, True
            self.on_up(up)
        if changed:
            self._changed.notify_all()

    def _carry_out(self, stop: Stop) -> None:
        self._begun[stop.name] = time.monotonic()
        self._spawn(functools.partial(self._stop, room_for=stop.room_for), stop.name)

    def _spawn(self, action: Callable[[str], None], name: str) -> threading.Thread:
        thread = spawn(functools.partial(action, name), name, self.fail)
        self._threads = [*(one for one in self._threads if one.is_alive()), thread]
        return thread

    def _join(self, progress: Callable[[str], object]) -> None:
        """Wait until all starts and stops have come to an end; without the lock."""
        while True:
            with self._changed:
                thread = next((one for one in self._threads if one.is_alive()), None)
                stopping = [self._servers[name] for name in self._planner.names(Phase.STOPPING)]
            if thread is None:
                return
            with self._exits():
                for server in stopping:
                    # As the thread that stops it does, if there is one.
                    server.cancel_start()
            thread.join(_STEP)
            for line in self._take_lines():
                progress(line)

    def _stop_rest(self) -> None:
        """Stop what still runs, where a thread has failed or could not be started; without the lock."""
        for server in self.servers:
            problems: list[str] = []
            if server.runtime.launched:
                with self._exits():
                    server.cancel_start()
                    problems = self._stopped(server)
            with self._books():
                self._note_problems(server.name, problems)
                if self._planner.phase(server.name) is Phase.STOPPING:
                    self._planner.stopped(server.name)

    def _note_problems(self, name: str, texts: Iterable[str]) -> None:
        # The user as of now: when somebody asks another test may have used the server.
        found = [(name, Problem(text, self._users.get(name))) for text in texts]
        if found:
            self._problems += found
            self.on_trouble()

    def _note_deaths(self) -> bool:
        """Note which servers have died; return whether any has."""
        found = False
        for name in self._planner.names(Phase.UP):
            server = self._servers[name]
            leases = self._planner.leases(name)
            ended_by_a_test = any(lease.exclusive for lease in leases) or (leases and server.runtime.status.was_killed)
            if server.running or ended_by_a_test:
                continue
            reason = server.why_died()
            if reason is None:
                continue
            self._deaths[name, server.launches] = reason
            self._last_views[name, server.launches] = time.monotonic(), server.runtime.view()
            # Before it is started again.
            self.on_end(server, reason)
            self._planner.died(name)
            self._restarts[name] += 1
            if not leases:
                self.incidents.append(f"between two tests: {reason}")
            if self._restarts[name] > self._policy.restarts:
                self._failures[name] = ServerDiedError(_not_restarted(server, self._restarts[name]))
                self._planner.give_up(name)
            found = True
        return found

    def _start(self, name: str) -> None:
        """Start a server; in a thread of its own, without the lock."""
        server = self._servers[name]
        error: InferenceServerError | None = None
        problems: list[str] = []
        with self._exits():
            error = self._started(server)
            if error is not None and server.running:
                # It was a hook that failed.
                problems = self._stopped(server)
        with self._changed:
            self._note_problems(name, problems)
            if self._planner.phase(name) is Phase.STARTING:
                if error is None and server.running:
                    self._planner.started(name, time.monotonic())
                    self.watch(server)
                else:
                    # N tests do not each wait for the same failure.
                    self._failures[name] = error or _ended_at_once(server)
                    self._planner.start_failed(name)
                    server.runtime.stop_refusal = self._why_down(server)
            self._proceed()

    def _needs_of(self, name: str) -> Sequence[str]:
        needs: Sequence[str] = getattr(self.configs.get(name), "needs", ())
        return needs

    def _use_peers(self, server: InferenceServer) -> None:
        """Tell a server where those are that it needs.

        Raises:
            ServerStartupError: One of them could not be had.
        """
        names = self._needs_of(server.name)
        with self._changed:
            failed = next((name for name in names if name in self._failures), None)
            error = None if failed is None else self._failures[failed]
        if error is not None:
            raise ServerStartupError(f"{server} cannot start: it needs {failed}, and {error}")
        if names:
            server.use_peers([self.server(name) for name in names])

    def _started(self, server: InferenceServer) -> InferenceServerError | None:
        try:
            self._use_peers(server)
            with self._changed:
                if not self._room.renew(server.name):
                    raise ServerStartupError(
                        f"{server} cannot start again: another process has taken its GPUs meanwhile"
                    )
                claim, places = self._room.devices(server.name), self._room.places_left()
            if not server.attached and not server.runtime.launched and not server.runtime.runs_elsewhere:
                self._clear(server, places)
            server.use_devices(claim)
            server.runtime.stop_refusal = self._stop_refusal(server)
            server.start()
            self._note_adoption(server)
            self._hooks.started(server)
        except InferenceServerError as error:
            return error
        except BaseException as error:
            if ends_run(error):
                raise
            # It is one of the tests that want the server, not of the whole run.
            return ServerStartupError(user_error(server, error))
        return None

    def _clear(self, server: InferenceServer, places: int) -> None:
        from pytest_infserver.launcher.keeping.kept import kept_servers

        for kept in in_the_way(server, kept_servers(), places):
            self._tell_once(sent_away(kept, f" to make room for {server}"))

    def _note_adoption(self, server: InferenceServer) -> None:
        if server.runtime.status.taken_over and self._policy.keep is None:
            self._tell_once(
                f"{server}: an earlier run had kept it; this one took it over and stops it at its end"
                " (--infserver-keep keeps it again)"
            )

    def _tell_once(self, incident: str) -> None:
        if incident not in self.incidents:
            self.incidents.append(incident)

    def watch(self, server: InferenceServer) -> None:
        """Let the end of a server be noticed at once."""
        with self._books():
            launch = server.launches
            if not server.attached and self._watched.get(server.name) != launch:
                spawn(functools.partial(self._watch, server, launch), f"watch-{server.name}", self.fail)
                self._watched[server.name] = launch

    def _watch(self, server: InferenceServer, launch: int) -> None:
        """Wait for the end of a launch; in a thread of its own, without the lock."""
        while server.launches == launch and server.running and not self._closed:
            server.wait_death(60.0)
        with self._changed:
            self._proceed()
            if (server.name, launch) not in self._deaths and server.launches == launch:
                # Who has it alone may have ended it.
                self.on_end(server, None)

    def _stop(self, name: str, room_for: str | None = None) -> None:
        """Stop a server; in a thread of its own, without the lock."""
        server = self._servers[name]
        start = self._starts.get(name)
        while start is not None and start.is_alive():
            # It may not have come as far as to notice.
            server.cancel_start()
            start.join(0.1)
        problems: list[str] = []
        with self._changed:
            # Those that need it end before it.
            self._changed.wait_for(lambda: not self._is_needed(name), _PATIENCE)
        with self._exits():
            problems = self._stopped(server)
        devices = self._room.devices(name)
        if devices is not None:
            # Longer waits who gets them next.
            devices.wait_until_back(_MEMORY_GRACE)
        with self._changed:
            if room_for is not None and not server.runtime.launched:
                self._evictions[name, room_for] += 1
            self._note_problems(name, problems)
            self._planner.stopped(name)
            self._proceed()

    def _is_needed(self, name: str) -> bool:
        others = [one for one in self._servers if name in self._needs_of(one)]
        return any(self._planner.phase(one) is Phase.STOPPING for one in others)

    def _stopped(self, server: InferenceServer) -> list[str]:
        """Stop a server, with all that goes with it, and return what went wrong; without the lock."""
        launched = server.runtime.launched
        errors: list[str] = []
        if launched:
            errors += self._tried(self._hooks.stopping, server)
            server.runtime.stop_refusal = None
            errors += self._tried(lambda one: one.stop(), server)
            errors += self._tried(lambda one: one.runtime.release_port(), server)
        with self._changed:
            server.runtime.stop_refusal = self._why_down(server)
        if launched:
            errors += self._tried(self._hooks.stopped, server)
        return errors

    def _tried(self, action: Callable[[InferenceServer], object], server: InferenceServer) -> list[str]:
        """Do one step, and return what went wrong; also what ends the run does not keep the others from being done."""
        with self._exits():
            return _try(action, server)
        return []

    def _why_down(self, server: InferenceServer) -> str:
        """Return why a test must not stop a server that does not run."""
        if server.name in self._failures:
            return f"{server} does not run: it has failed, and is not started again in this run"
        if self._planner.is_wanted(server.name):
            return f"{server} has been stopped: it is started again for the next test that needs it"
        return f"{server} has been stopped: no later test of this run was known to want it"

    def _stop_or_keep(self, name: str) -> None:
        if self._policy.keep is None or not self._kept(self._servers[name], self._policy.keep):
            self._stop(name)
        else:
            with self._changed:
                self._planner.stopped(name)

    def _kept(self, server: InferenceServer, seconds: float) -> bool:
        left = seconds - (time.monotonic() - self._used.get(server.name, time.monotonic()))
        if left <= 0 or not server.running:
            return False
        server.runtime.stop_refusal = None
        kept = server.keep(left)
        if not kept and not server.attached:
            self.incidents.append(f"{server} is not kept: {server.why_not_kept}")
        return kept

    @contextlib.contextmanager
    def _books(self) -> Iterator[None]:
        """Hold the lock; if anything is raised meanwhile, nobody knows what is so any more, and the run ends."""
        with self._changed, self._exits():
            yield

    @contextlib.contextmanager
    def _exits(self) -> Iterator[None]:
        """Pass on what ends the run: it must end it in pytest's own thread."""
        try:
            yield
        except BaseException as error:
            self.fail(error)


def shared(server: InferenceServer) -> str:
    """Return why a test must not stop a server."""
    return (
        f"{server} is shared with other tests: a test must not stop it; @pytest.mark.infserver(exclusive=True) gives"
        " it one alone, inference_server_factory(..., fresh=True) starts one that it may stop"
    )


def _not_restarted(server: InferenceServer, deaths: int) -> str:
    if deaths == 1:
        return f"{server} has died and is not restarted (--infserver-on-crash=fail); log: {server.log_path}"
    return f"{server} has died {deaths} times and is not restarted any more; log: {server.log_path}"


def _ended_at_once(server: InferenceServer) -> InferenceServerError:
    """Return why a server does not run although its start went well."""
    reason = server.why_died()
    return InferenceServerError(ENDED) if reason is None else ServerDiedError(reason)


def _try(action: Callable[[InferenceServer], object], server: InferenceServer) -> list[str]:
    try:
        action(server)
    except InferenceServerError as error:
        return [str(error)]
    except BaseException as error:
        if ends_run(error):
            raise
        # It must not keep the next server from its stop.
        return [user_error(server, error)]
    return []
