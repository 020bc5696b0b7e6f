"""One pytest process: which test has which servers now, and what became of them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_infserver.errors import InferenceServerError, ProfileError
from pytest_infserver.pool.arrangement import Arrangement
from pytest_infserver.pool.items import will_run
from pytest_infserver.pool.late import LateReports
from pytest_infserver.pool.lease import Problem
from pytest_infserver.pool.order import Rearranged
from pytest_infserver.pool.outcomes import in_words
from pytest_infserver.pool.profilers import default_tool, wanted_profilers
from pytest_infserver.selection import PROFILE

_NOT_PROFILED = (
    f"{PROFILE} profiles what a test takes as 'inference_server' or 'inference_servers'; around another server write"
    " 'with server.profiling(\"name\"):'"
)

if TYPE_CHECKING:
    from pytest_infserver.cluster.cluster import Cluster
    from pytest_infserver.launcher.follower import View
    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.choice import Choice
    from pytest_infserver.pool.lease import Lease
    from pytest_infserver.pool.member import Member
    from pytest_infserver.pool.outlook import Outlook
    from pytest_infserver.settings import Settings


class Run:
    """What the plugin knows between the beginning and the end of a session.

    Attributes:
        settings: What the user said.
        cluster: The cluster that the servers run on; None for this machine.
        choice: Which test runs on which servers.
        member: Gives out the servers.
        progress: Gets a line of text when a start takes long for a reason.
        waiting: Gets what is waited for, now and then, and once when that has come to an end.
        item: The test that runs now.
        leases: Its uses of configured servers, by name.
        extra_servers: The servers of `inference_server_factory`, each with the size of its log when the test began.
        late: Reports what turns up after a test.
        late_errors: What went wrong in the running test's teardown and must not be raised there.
        errors: What went wrong and belongs to no test.
        on_extra: Gets each server of `inference_server_factory` before it is started.
    """

    def __init__(
        self,
        settings: Settings,
        choice: Choice,
        member: Member,
        late: LateReports,
        *,
        cluster: Cluster | None = None,
        progress: Callable[[str], None] = lambda text: None,
        waiting: Callable[[Outlook], None] = lambda outlook: None,
    ) -> None:
        self.settings = settings
        self.cluster = cluster
        self.progress = progress
        self.waiting = waiting
        self.choice = choice
        self.member = member
        self.item: pytest.Item | None = None
        self.leases: dict[str, Lease] = {}
        self.extra_servers: list[tuple[InferenceServer, int]] = []
        self.late_errors: list[str] = []
        self.errors: list[str] = []
        self.on_extra: Callable[[InferenceServer], object] = lambda server: None
        self.late = late
        self._pinned: set[str] = set()
        self._planned: set[str] = set()
        self._no_lease: str | None = None
        self._next: pytest.Item | None = None
        self._arrangement = Arrangement(choice, settings)
        self._rearranged: Rearranged[pytest.Item] | None = None
        self._extra: list[InferenceServer] = []
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
        with self._arrangement.put_together(config, items):
            yield left_out
        # Last: whoever adds a mark does so in a hook of collection.
        items[:], left_out[:] = self.choice.choose(items)

    def plan(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Say what the run is going to want.

        Args:
            config: pytest's configuration.
            items: The tests in the order in which they are going to run.

        Raises:
            pytest.UsageError: A test wants more than there is.
        """
        running = [item for item in items if will_run(item)]
        # First: it refuses tests, which then want no server.
        profilers = wanted_profilers(running, self.choice)
        wanted = {item.nodeid: self.choice.servers(item) for item in running}
        tests = {test: names for test, names in wanted.items() if names}
        self._planned = set(tests)
        self._arrangement.stands(config, items)
        if self.member.alone:
            self._rearranged = self._arrangement.rearranged(items)
        if tests:
            try:
                self.member.plan(tests, profilers, in_order=not self._arrangement.is_ours)
            except InferenceServerError as error:
                raise pytest.UsageError(str(error)) from None

    def know(self, report: pytest.TestReport) -> None:
        """Remember a test that a worker has run."""
        self.late.know(report.nodeid, report.location, report.keywords)

    # One test.

    @contextlib.contextmanager
    def test(self, item: pytest.Item, following: pytest.Item | None) -> Iterator[None]:
        """Lease the test's servers around everything that pytest does with the test.

        Args:
            item: The test.
            following: The one after it.
        """
        self.item, self._next = item, following
        # Also one that was never planned: the run may have been made for it.
        self.late.know(item.nodeid, item.location, item.keywords)
        if self._rearranged is not None:
            self._rearranged.begin(item, self.member.is_ready)
        self.extra_servers = [(server, server.log_size_now()) for server, _ in self.extra_servers if server.launched]
        names = self._servers(item)
        if names and will_run(item):
            self._lease_or_fail(names)
        try:
            yield
        finally:
            self._end(item)

    def handle(self, name: str) -> InferenceServer:
        """Return the server for the fixture; it has been leased before, except where nobody could know."""
        if name not in self.leases:
            self._pinned.add(name)
            try:
                self.member.pin(name)
                self._lease((name,))
            except InferenceServerError as error:
                pytest.fail(str(error), pytrace=False)
        _require(self.leases[name])
        return self.leases[name].server

    def needed(self, item: pytest.Item) -> Mapping[str, InferenceServer]:
        """Return the servers that a test has named, by name."""
        return {name: self.handle(name) for name in self.choice.needed(item)}

    def before_setup(self, item: pytest.Item) -> None:
        """Fail the test if its server could not be had; start it again if a rerun finds it dead."""
        refusal = self.choice.refusal(item) or self._no_lease
        if refusal is not None:
            pytest.fail(refusal, pytrace=False)
        dead = [lease for lease in self.leases.values() if lease.error is None and not lease.server.running]
        if dead:
            names = tuple(self.leases)
            self._give_back()
            self._lease_or_fail(names)
            if self._no_lease is not None:
                pytest.fail(self._no_lease, pytrace=False)
        for lease in self.leases.values():
            _require(lease)

    @contextlib.contextmanager
    def profiled(self, item: pytest.Item) -> Iterator[None]:
        """Profile the servers of a test that asks for that."""
        __tracebackhide__ = True
        asked = self.choice.profiler(item)
        runs = False
        try:
            with contextlib.ExitStack() as stack:
                for lease in () if asked is None else self.leases.values():
                    tool = asked or default_tool(self.choice.configs, lease.name)
                    stack.enter_context(self._telling(lease.server))
                    stack.enter_context(lease.server.profiling(item.nodeid, tool))
                runs = True
                yield
                runs = False
            if asked is None and self.servers_in_use() and any(item.iter_markers(PROFILE)):
                pytest.fail(_NOT_PROFILED, pytrace=False)
        except ProfileError as error:
            # That of a block in the test is the test's own.
            if runs:
                raise
            raise pytest.fail.Exception(str(error), pytrace=False) from None

    @contextlib.contextmanager
    def _telling(self, server: InferenceServer) -> Iterator[None]:
        """Show at once what a server says."""
        before, server.on_progress = server.on_progress, self.progress
        try:
            yield
        finally:
            server.on_progress = before

    def know_extra(self, server: InferenceServer) -> None:
        """Watch a server that the running test has started beside those that are configured."""
        self.extra_servers.append((server, 0))
        self._extra.append(server)
        self.on_extra(server)

    def new_profiles(self) -> list[Path]:
        """Return the traces that were asked for since this was called last."""
        new = []
        for server, _ in self.servers_in_use():
            asked = server.profiles_asked_for
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
        if self._dependents is None:
            return
        name, finish = self._dependents
        goes_on = self._next is not None and (name in self.choice.servers(self._next) or name in self._pinned)
        if not goes_on:
            self._dependents = None
            finish()

    def servers_in_use(self) -> list[tuple[InferenceServer, int]]:
        """Return the servers of the running test, each with the size of its log when the test began."""
        return [(lease.server, lease.log_start) for lease in self.leases.values()] + self.extra_servers

    def death(self, server: InferenceServer) -> str | None:
        """Return why a server of the running test has died, once per death."""
        lease = self.leases.get(server.name)
        if lease is not None and lease.server is server:
            # A test that has it alone may kill it.
            reason, launch = (None if lease.exclusive else self.member.death(lease)), lease.launch
        else:
            reason, launch = server.why_died(), server.launches
        if reason is None or (server, launch) in self._reported:
            return None
        self._reported.add((server, launch))
        return reason

    def view(self, server: InferenceServer) -> View:
        """Return how a server of the running test is; nobody is waited for long."""
        lease = self.leases.get(server.name)
        if lease is None or lease.server is not server:
            return server.look()
        view = self.member.view(lease.name, lease.launch)
        return server.view() if view is None else view

    def pause(self) -> Callable[[], None]:
        """Let no server be taken for hung, as under a debugger; return what lets time pass again."""
        servers = [*self.member.servers(), *(server for server, _ in self.extra_servers)]
        for server in servers:
            server.pause_heartbeat()

        def resume() -> None:
            for server in servers:
                server.resume_heartbeat()

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

    def _servers(self, item: pytest.Item) -> tuple[str, ...]:
        names = self.choice.servers(item)
        if not names and "request" in getattr(item, "fixturenames", ()):
            # request.getfixturevalue gives later tests the server without asking us again.
            return tuple(self._pinned)
        return names

    def _lease_or_fail(self, names: tuple[str, ...]) -> None:
        """Lease servers; if nobody can say how they are, the test fails in its setup."""
        try:
            self._lease(names)
        except InferenceServerError as error:
            self._no_lease = str(error)

    def _lease(self, names: tuple[str, ...]) -> None:
        test = None if self.item is None else self.item.nodeid
        item = self.item
        exclusive = item is not None and self.choice.exclusive(item)
        undisturbed = item is not None and self.choice.undisturbed(item)
        self.leases.update({lease.name: lease for lease in self.member.acquire(names, test, exclusive, undisturbed)})

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
        planned = item.nodeid in self._planned
        try:
            reasons = [self.death(server) for server, _ in self.servers_in_use()]
        finally:
            self._give_back(item.nodeid if planned else None)
            self.item = self._no_lease = None
        late, self.late_errors = self.late_errors, []
        self.errors += self.late.report(Problem(text, item.nodeid) for text in [*filter(None, reasons), *late])
        if self._next is None:
            self.member.stop_all()
        self.errors += self.late.report(self.member.take_problems())


def _require(lease: Lease) -> None:
    if lease.error is not None:
        pytest.fail(str(lease.error), pytrace=False)
