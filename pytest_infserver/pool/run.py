"""One pytest process: which test has which servers now, and what became of them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_infserver.config.needs import with_needs
from pytest_infserver.errors import InferenceServerError, ProfileError
from pytest_infserver.launcher.operations.reset import reset
from pytest_infserver.launcher.operations.sleeping import wake_for_others
from pytest_infserver.pool.collection.arrangement import Arrangement
from pytest_infserver.pool.collection.items import will_run
from pytest_infserver.pool.collection.order import Rearranged
from pytest_infserver.pool.collection.profilers import NOT_PROFILED, default_tool, telling, wanted_profilers
from pytest_infserver.pool.collection.remembered import Memory, files_of
from pytest_infserver.pool.collection.selection import PROFILE
from pytest_infserver.pool.collection.setup_phase import setup_may_skip
from pytest_infserver.pool.collection.shards import share_of
from pytest_infserver.pool.holding.fresh import started_anew
from pytest_infserver.pool.holding.holds import Holds
from pytest_infserver.pool.late_reports import LateReports
from pytest_infserver.pool.lease import Problem
from pytest_infserver.pool.member import Plan
from pytest_infserver.pool.outcomes import in_words

if TYPE_CHECKING:
    from pytest_infserver.config.model import ServerConfig
    from pytest_infserver.launcher.runtime.view import View
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.collection.choice import Choice
    from pytest_infserver.pool.collection.durations import Durations
    from pytest_infserver.pool.lease import Lease
    from pytest_infserver.pool.member import Member
    from pytest_infserver.pool.on_cluster import Cluster
    from pytest_infserver.pool.wait_report import WaitReport
    from pytest_infserver.settings import Settings


class Run:
    """What the plugin knows between the beginning and the end of a session.

    Attributes:
        settings: What the user said.
        cluster: The cluster that the servers run on; None for this machine.
        memory: What the last run of this invocation has wanted; None if that does not matter.
        choice: Which test runs on which servers.
        member: Gives out the servers.
        progress: Gets a line of text when a start takes long for a reason.
        waiting: Gets what is waited for, now and then, and once when that has come to an end.
        item: The test that runs now.
        leases: Its uses of configured servers, by name.
        extra_servers: The servers of `inference_server_factory`, each with the size of its log when the test began.
        late: Reports what turns up after a test.
        holds: The uses that outlive a test: of the servers of `inference_server_factory`.
        late_errors: What went wrong in the running test's teardown and must not be raised there.
        errors: What went wrong and belongs to no test.
        elsewhere: How many tests the other shards run.
        on_extra: Gets each server of `inference_server_factory` before it is started.
    """

    def __init__(
        self,
        settings: Settings,
        choice: Choice,
        member: Member,
        late: LateReports,
        *,
        durations: Durations,
        cluster: Cluster | None = None,
        memory: Memory | None = None,
        progress: Callable[[str], None] = lambda text: None,
        waiting: Callable[[WaitReport], None] = lambda wait_report: None,
    ) -> None:
        self.settings = settings
        self.cluster = cluster
        self.memory = memory
        self.progress = progress
        self.waiting = waiting
        self.choice = choice
        self.member = member
        self.item: pytest.Item | None = None
        self.leases: dict[str, Lease] = {}
        self.extra_servers: list[tuple[InferenceServer, int]] = []
        self.late_errors: list[str] = []
        self.errors: list[str] = []
        self.elsewhere = 0
        self._durations = durations
        self.on_extra: Callable[[InferenceServer], object] = lambda server: None
        self.late = late
        self._pinned: set[str] = set()
        self._planned: set[str] = set()
        self._bystanders: set[pytest.Item] = set()
        self._next: pytest.Item | None = None
        self._setups = 0
        self._arrangement = Arrangement(choice, settings)
        self._rearranged: Rearranged[pytest.Item] | None = None
        self._extra: list[InferenceServer] = []
        self.holds = Holds(member, choice, self)
        self._fixtures: list[pytest.FixtureDef[Any]] = []
        self._profiles_seen: Counter[InferenceServer] = Counter()
        self._reported: set[tuple[InferenceServer, int]] = set()
        self._dependents: tuple[str, Callable[[], object]] | None = None

    @contextlib.contextmanager
    def collecting(self, config: pytest.Config, items: list[pytest.Item]) -> Iterator[list[pytest.Item]]:
        """Put the tests of each server together, before anybody else orders or chooses among them.

        Args:
            config: pytest's configuration.
            items: The tests as they were collected; they are moved in place.

        Yields:
            A list that gets, at the end, the tests which are left out because they run on other servers.
        """
        left_out: list[pytest.Item] = []
        self.choice.use_variants(items)
        with self._arrangement.put_together(config, items):
            yield left_out
        # Last: whoever adds a mark does so in a hook of collection.
        self.choice.use_variants(items)
        items[:], left_out[:] = self.choice.choose(items)
        if self.settings.shard is not None:
            mine = share_of(items, self._started_for, self.settings.shard, self._durations)
            elsewhere = [item for item in items if item not in mine]
            self.elsewhere = len(elsewhere)
            items[:], left_out[:] = [item for item in items if item in mine], left_out + elsewhere

    def begin(self) -> None:
        """Prepare for servers while pytest collects, and start those that the last run like this one has wanted."""
        expected: Mapping[str, ServerConfig] = {}
        if self.memory is not None:
            expected = self.memory.servers(self.choice)
            self.memory = replace(self.memory, is_used=bool(expected))
        self.member.begin(expected)

    def plan(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Say what the run is going to want.

        Args:
            config: pytest's configuration.
            items: The tests in the order in which they are going to run.

        Raises:
            pytest.UsageError: A test wants more than there is.
        """
        self._bystanders = {item for item in items if self.choice.is_bystander(item)}
        running = [item for item in items if item in self._bystanders or will_run(item)]
        # First: it refuses tests, which then want no server.
        profilers = wanted_profilers(running, self.choice)
        wanted = [(item, self.choice.servers(item)) for item in running]
        tests = {item.nodeid: names for item, names in wanted if names}
        self._planned = set(tests)
        self._arrangement.stands(config, items)
        if self.member.alone:
            self._rearranged = self._arrangement.rearranged(items)
        ahead = not setup_may_skip(config)
        used = dict.fromkeys(name for names in tests.values() for name in names)
        if tests or (self.memory is not None and self.memory.is_used):
            try:
                variants = self.choice.variants
                self.member.add({name: config for name, config in variants.items() if name in used})
                in_order = not self._arrangement.is_ours
                self.member.plan(Plan(tests, profilers, in_order, ahead=ahead))
            except InferenceServerError as error:
                raise pytest.UsageError(str(error)) from None
        if self.memory is not None:
            # One with a profiler has to be started for it.
            names = [name for name in used if ahead and name not in profilers]
            self.memory.leave(self.choice, names, files_of(config, items, self.settings.config_files))

    def know(self, report: pytest.TestReport) -> None:
        """Remember a test that a worker has run."""
        self.late.know(report.nodeid, report.location, report.keywords)

    # One test.

    def passes_by(self, item: pytest.Item, following: pytest.Item | None) -> bool:
        """Return whether a test has nothing to do with servers, and begin it; `test` is not needed for it then.

        Args:
            item: The test.
            following: The one after it.
        """
        if item not in self._bystanders or following is None or self.extra_servers or self.holds.all or self._pinned:
            return False
        if self._rearranged is not None:
            self._rearranged.begin(item, self.member.is_ready)
        return True

    def tell_problems(self) -> None:
        """Report what has gone wrong at stops of servers."""
        self.errors += self.late.report(self.member.take_problems())

    @contextlib.contextmanager
    def test(self, item: pytest.Item, following: pytest.Item | None) -> Iterator[None]:
        """Give back, when pytest is done with the test, what `before_fixtures` has leased.

        Args:
            item: The test.
            following: The one after it.
        """
        self.item, self._next = item, following
        self._setups = 0
        # Also one that was never planned: the run may have been made for it.
        self.late.know(item.nodeid, item.location, item.keywords)
        if self._rearranged is not None:
            self._rearranged.begin(item, self.member.is_ready)
        self.extra_servers = [
            (server, server.runtime.log_size_now()) for server, _ in self.extra_servers if server.runtime.launched
        ]
        self.holds.begin_test(item)
        try:
            yield
        finally:
            self._end(item)

    def handle(self, name: str) -> InferenceServer:
        """Return the server for the fixture; it has been leased before, except where nobody could know."""
        if name not in self.leases:
            self._pinned.add(name)
            try:
                if name in self.choice.variants:
                    self.member.add({name: self.choice.variants[name]})
                self.member.pin(name)
                needed = with_needs((name,), self.choice.all_configs)
                self._lease(tuple(one for one in needed if one not in self.leases))
            except InferenceServerError as error:
                pytest.fail(str(error), pytrace=False)
            _reset(self.leases[name])
        _require(self.leases[name])
        return self.leases[name].server

    def needed(self, item: pytest.Item) -> Mapping[str, InferenceServer]:
        """Return the servers that a test has named, by name."""
        return {name: self.handle(name) for name in self.choice.needed(item)}

    def before_fixtures(self, item: pytest.Item) -> None:
        """Lease the test's servers, or fail it; again for a test that is repeated, which may find them dead."""
        refusal = self.choice.refusal(item)
        if refusal is not None:
            pytest.fail(refusal, pytrace=False)
        self.holds.revive(item)
        names = tuple(self.leases) or self._servers(item)
        self._setups += 1
        if self._setups > 1 and self.settings.fresh_on_rerun and self._all_run():
            self._lease_afresh(names)
        if any(lease.error is None and not lease.server.running for lease in self.leases.values()):
            self._give_back()
        if names and not self.leases and will_run(item):
            try:
                self._lease(names)
            except InferenceServerError as error:
                # Nobody can say how they are.
                pytest.fail(str(error), pytrace=False)
        for lease in self.leases.values():
            _require(lease)
            _reset(lease)

    @contextlib.contextmanager
    def profiled(self, item: pytest.Item) -> Iterator[None]:
        """Profile the servers of a test that asks for that."""
        __tracebackhide__ = True
        self.holds.end(gone=True)
        asked = self.choice.profiler(item)
        runs = False
        try:
            with contextlib.ExitStack() as stack:
                for lease in () if asked is None else self.leases.values():
                    tool = asked or default_tool(self.choice.all_configs, lease.name)
                    stack.enter_context(telling(lease.server, self.progress))
                    stack.enter_context(lease.server.profiling(item.nodeid, tool))
                runs = True
                yield
                runs = False
            if asked is None and self.servers_in_use() and any(item.iter_markers(PROFILE)):
                pytest.fail(NOT_PROFILED, pytrace=False)
        except ProfileError as error:
            # That of a block in the test is the test's own.
            if runs:
                raise
            raise pytest.fail.Exception(str(error), pytrace=False) from None

    @property
    def fixture_in_setup(self) -> pytest.FixtureDef[Any] | None:
        """The fixture that is being made, of those of the project, or None."""
        return self._fixtures[-1] if self._fixtures else None

    @contextlib.contextmanager
    def making(self, fixture: pytest.FixtureDef[Any]) -> Iterator[None]:
        """Make a fixture."""
        self._fixtures.append(fixture)
        try:
            yield
        finally:
            self._fixtures.pop()

    def know_extra(self, server: InferenceServer) -> None:
        """Watch a server that the running test has started in this process, beside those of the pool."""
        self.extra_servers.append((server, 0))
        self._extra.append(server)
        self.on_extra(server)

    def new_profiles(self) -> list[Path]:
        """Return the traces that were asked for since this was called last."""
        new: list[Path] = []
        for server, _ in self.servers_in_use():
            asked = server.runtime.profiling.asked_for
            new += asked[self._profiles_seen[server] :]
            self._profiles_seen[server] = len(asked)
        return new

    def profiles(self) -> dict[str, str]:
        """Return path to server of all traces that were made here."""
        return {str(path): server.name for server in self.servers() for path in server.profiles}

    def servers(self) -> list[InferenceServer]:
        """Return all servers that were wanted here so far."""
        return [*self.member.servers(), *self._extra]

    def remember_dependents(self, parameter: object, finish: Callable[[], object]) -> None:
        """Note how the fixtures that depend on a server are finished, for before its stop.

        Args:
            parameter: What the fixture is made with; None for the running test's only server.
            finish: Finishes the fixture, and before it those that depend on it.
        """
        name = self.choice.only(self.item) if parameter is None else parameter
        # Also one that fails: pytest would remember that for tests which use another server.
        self._dependents = (str(name), finish)

    def after_teardown(self) -> None:
        """Finish the fixtures that depend on a server while it is leased, unless the next test uses it, too."""
        __tracebackhide__ = True
        for lease in self.leases.values():
            # The next test wants it awake.
            wake_for_others(lease.server.runtime)
        if self._dependents is None:
            return
        name, finish = self._dependents
        goes_on = self._next is not None and (name in self.choice.servers(self._next) or name in self._pinned)
        if not goes_on:
            self._dependents = None
            finish()

    def servers_in_use(self) -> list[tuple[InferenceServer, int]]:
        """Return the servers of the running test, each with the size of its log when the test began."""
        return [(lease.server, lease.log_start) for lease in self._all_leases()] + self.extra_servers

    def death(self, server: InferenceServer) -> str | None:
        """Return why a server of the running test has died, once per death."""
        lease = self._lease_of(server)
        if any(held.is_over and held.lease is lease for held in self.holds.all):
            # Its end was due.
            return None
        if lease is not None:
            # A test that has it alone may kill it.
            reason, launch = (None if lease.exclusive else self.member.death(lease)), lease.launch
        else:
            reason, launch = server.why_died(), server.launches
        if reason is None or (server, launch) in self._reported:
            return None
        self._reported.add((server, launch))
        return reason

    def _all_leases(self) -> list[Lease]:
        """Return the leases of the running test, one for each server."""
        held = [held.lease for held in self.holds.all if held.name not in self.leases]
        return [*{lease.name: lease for lease in held}.values(), *self.leases.values()]

    def _lease_of(self, server: InferenceServer) -> Lease | None:
        return next((lease for lease in self._all_leases() if lease.server is server), None)

    def uses(self) -> list[tuple[str, InferenceServer, int, int]]:
        """Return the running test's servers: name, server, launch when the test began, size of its log then."""
        return [(lease.name, lease.server, lease.launch, lease.log_start) for lease in self._all_leases()]

    def view(self, server: InferenceServer) -> View:
        """Return how a server of the running test is; nobody is waited for long."""
        lease = self._lease_of(server)
        if lease is None:
            return server.runtime.look()
        view = self.member.view(lease.name, lease.launch)
        return server.runtime.view() if view is None else view

    def pause(self) -> Callable[[], None]:
        """Let no server be taken for hung, as under a debugger; return what lets time pass again."""
        servers = [*self.member.servers(), *(server for server, _ in self.extra_servers)]
        for server in servers:
            server.runtime.pause_heartbeat()

        def resume() -> None:
            for server in servers:
                server.runtime.resume_heartbeat()

        return resume

    # The end.

    def close(self) -> None:
        """Stop everything that still runs; what goes wrong lands in ``errors``."""
        self.errors += self.late_errors
        self.late_errors = []
        self.member.close()
        if self.cluster is not None:
            self.cluster.close()
        try:
            problems = self.member.take_problems()
        except pytest.exit.Exception:
            raise
        except Exception as error:
            # The run ends anyway, and what else went wrong must be told, too.
            self.errors.append(f"the run has ended early ({in_words(error)})")
            problems = self.member.take_problems()
        self.errors += self.late.report(problems)

    def _started_for(self, item: pytest.Item) -> tuple[str, ...]:
        """Return the servers of a test that somebody has to start."""
        return tuple(name for name in self.choice.servers(item) if self.choice.all_configs[name].url is None)

    def _servers(self, item: pytest.Item) -> tuple[str, ...]:
        names = self.choice.servers(item)
        if not names and "request" in getattr(item, "fixturenames", ()):
            # request.getfixturevalue gives later tests the server without asking us again.
            return tuple(self._pinned)
        return names

    def _lease(self, names: tuple[str, ...], *, exclusive: bool = False) -> None:
        test = None if self.item is None else self.item.nodeid
        item = self.item
        exclusive = exclusive or (item is not None and self.choice.exclusive(item))
        undisturbed = item is not None and self.choice.undisturbed(item)
        self.leases.update({lease.name: lease for lease in self.member.acquire(names, test, exclusive, undisturbed)})

    def _all_run(self) -> bool:
        return bool(self.leases) and all(lease.server.running for lease in self.leases.values())

    def _lease_afresh(self, names: tuple[str, ...]) -> None:
        """Lease the running test's servers again, started anew: nobody else uses them meanwhile."""
        self._give_back()
        try:
            self._lease(names, exclusive=True)
        except InferenceServerError as error:
            pytest.fail(str(error), pytrace=False)
        shared = self.item is None or not self.choice.exclusive(self.item)
        for name, lease in self.leases.items():
            if lease.error is None and not lease.server.attached:
                self.leases[name] = started_anew(lease, self.member.incidents.append, shared=shared)

    def _give_back(self, done: str | None = None) -> None:
        tickets = {lease.ticket for lease in self.leases.values()}
        self.leases = {}
        for ticket in tickets:
            # What the test is done with counts once.
            self.member.release(ticket, done)
            done = None
        if done is not None:
            self.member.done(done)

    def _end(self, item: pytest.Item) -> None:
        if self._next is None:
            self.holds.end()
        planned = item.nodeid in self._planned
        try:
            reasons = [self.death(server) for server, _ in self.servers_in_use()]
        finally:
            self._give_back(item.nodeid if planned else None)
            self.item = None
        late, self.late_errors = self.late_errors, []
        self.errors += self.late.report(Problem(text, item.nodeid) for text in [*filter(None, reasons), *late])
        if self._next is None:
            self.member.stop_all()
        self.tell_problems()


def _require(lease: Lease) -> None:
    if lease.error is not None:
        pytest.fail(str(lease.error), pytrace=False)


def _reset(lease: Lease) -> None:
    if lease.error is None:
        try:
            reset(lease.server)
        except InferenceServerError as error:
            pytest.fail(str(error), pytrace=False)
