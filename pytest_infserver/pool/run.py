"""One pytest run: its settings, its servers, and which test uses which of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_infserver.pool.configured import backend_of, check_command, configured_servers
from pytest_infserver.pool.items import Unmatched, grouped, markers, parameter, unittest_skip, uses_fixture, will_run
from pytest_infserver.pool.late import report_error
from pytest_infserver.pool.pool import Lease, Pool
from pytest_infserver.selection import Candidate, MarkerError, explain, select
from pytest_infserver.settings import Settings

if TYPE_CHECKING:
    from pytest_infserver.launcher.server import InferenceServer

NO_CONFIGURATION = """\
this test needs an inference server, and none is configured. Give one in one of these ways:
  pytest --infserver-config servers.yaml      a YAML file that names servers (or ini: infserver_config = servers.yaml)
  pytest --infserver-backend llamacpp --infserver-model builtin:tiny      one server, started for this run
  pytest --infserver-url http://127.0.0.1:8000      a server that runs already"""

NOT_PARAMETRISED = (
    "unittest.TestCase methods and request.getfixturevalue cannot be parametrised over several servers ({names}):"
    " keep one with --infserver-server NAME, or write a plain test function that takes 'inference_server'"
)


class Run:
    """What the plugin knows between the beginning and the end of a session.

    Attributes:
        item: The test that runs now.
        lease: Its use of a configured server.
        extra_servers: The servers of `inference_server_factory`, each with the size of its log when the test began.
        late_errors: What went wrong in the running test's teardown and must not be raised there.
        errors: What went wrong after the last test.
    """

    def __init__(self, settings: Settings, pool: Pool) -> None:
        self.settings = settings
        self.pool = pool
        self.candidates = [Candidate(name, backend_of(config)) for name, config in pool.configs.items()]
        self.item: pytest.Item | None = None
        self.lease: Lease | None = None
        self.extra_servers: list[tuple[InferenceServer, int]] = []
        self.late_errors: list[str] = []
        self.errors: list[str] = []
        self._refusals: dict[str, str] = {}
        self._planned: dict[pytest.Item, str] = {}
        self._last = False
        self._last_users: dict[str, pytest.Item] = {}
        self._dependents: tuple[str, Callable[[], object]] | None = None

    # Which servers.

    def parameters(self, marks: Sequence[pytest.Mark]) -> list[object]:
        """Return what a test with these marks is parametrised with.

        Raises:
            MarkerError: A mark has arguments that have no meaning.
        """
        names: list[object] = [candidate.name for candidate in select(marks, self.candidates)]
        if names:
            return names
        reason = explain(marks, self.candidates)
        skip = [] if self.settings.strict else [pytest.mark.skip(reason=reason)]
        return [pytest.param(Unmatched(reason), id="no-server", marks=skip)]

    def choose(self, items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
        """Apply the marks that could not count at parametrisation: on single parameters and on unittest methods.

        Returns:
            The tests to keep, and those to leave out because they run on other servers.
        """
        kept: list[pytest.Item] = []
        left_out: list[pytest.Item] = []
        for item in items:
            fits = not uses_fixture(item) or not self.candidates or self._fits(item)
            (kept if fits else left_out).append(item)
        return kept, left_out

    def _fits(self, item: pytest.Item) -> bool:
        skipped = unittest_skip(item)
        if skipped is not None:
            item.add_marker(pytest.mark.skip(reason=skipped))
        marks, name = markers(item), parameter(item)
        try:
            names = [candidate.name for candidate in select(marks, self.candidates)]
        except MarkerError as error:
            self._refusals[item.nodeid] = str(error)
            return True
        if not names and not isinstance(name, Unmatched):
            self._turn_away(item, explain(marks, self.candidates))
        # A server that is not configured is left in: its error is better than its absence.
        return not names or not isinstance(name, str) or name in names or name not in self.pool.configs

    def _turn_away(self, item: pytest.Item, reason: str) -> None:
        if self.settings.strict:
            self._refusals[item.nodeid] = reason
        else:
            item.add_marker(pytest.mark.skip(reason=reason))

    def wanted(self, item: pytest.Item) -> str | None:
        """Return the server that a test runs on, or None if it uses none of ours."""
        if not uses_fixture(item) or item.nodeid in self._refusals:
            return None
        name = parameter(item)
        if name is None:
            return self._only(item)
        return name if isinstance(name, str) and name in self.pool.configs else None

    def named(self, name: object) -> str:
        """Return the server for the fixture's parameter, or for the running test if it has none."""
        if isinstance(name, Unmatched):
            pytest.fail(name.reason, pytrace=False)
        known = ", ".join(self.pool.configs)
        if name is not None and (not isinstance(name, str) or name not in self.pool.configs):
            pytest.fail(f"no server is called {name!r}; configured: {known or 'none'}", pytrace=False)
        if not self.candidates:
            pytest.fail(NO_CONFIGURATION, pytrace=False)
        only = str(name) if name is not None else self._only(self.item)
        if only is None:
            pytest.fail(NOT_PARAMETRISED.format(names=known), pytrace=False)
        return only

    def _only(self, item: pytest.Item | None) -> str | None:
        marks = [] if item is None else markers(item)
        try:
            chosen = select(marks, self.candidates)
        except MarkerError:
            return None
        return chosen[0].name if len(chosen) == 1 else None

    def plan(self, items: list[pytest.Item]) -> None:
        """Put the tests of each server together, and note what the run is going to want."""
        if len(self.candidates) > 1:
            items[:] = grouped(items, self.wanted)
        wanted = {item: self.wanted(item) for item in items}
        self._planned = {item: name for item, name in wanted.items() if name is not None and will_run(item)}
        self.pool.plan(self._planned.values())

    # One test.

    @contextlib.contextmanager
    def test(self, item: pytest.Item, last: bool) -> Iterator[None]:
        """Lease the test's server around everything that pytest does with the test.

        Args:
            item: The test.
            last: Whether no other one follows.
        """
        self.item, self._last = item, last
        self.extra_servers = [(server, server.log_size) for server, _ in self.extra_servers if server.launched]
        name = self.wanted(item) or self._asked_before(item)
        if name is not None and will_run(item):
            self.lease = self.pool.acquire(name)
            self._last_users[name] = item
        try:
            yield
        finally:
            self._end(item)

    def handle(self, name: str) -> InferenceServer:
        """Return the server for the fixture; it has been leased before, except where nobody could know."""
        if self.lease is None or self.lease.name != name:
            self.pool.keep(name)
            self.lease = self.pool.acquire(name)
            if self.item is not None:
                self._last_users[name] = self.item
        _require(self.lease)
        return self.lease.server

    def before_setup(self, item: pytest.Item) -> None:
        """Fail the test if its server could not be had; start it again if a rerun finds it dead."""
        if item.nodeid in self._refusals:
            pytest.fail(self._refusals[item.nodeid], pytrace=False)
        if self.lease is None:
            return
        if self.lease.error is None and not self.lease.server.running:
            self.lease = self.pool.acquire(self.lease.name)
        _require(self.lease)

    def remember_dependents(self, parameter: object, finish: Callable[[], object]) -> None:
        """Note how the fixtures that depend on a server are finished, for before its stop.

        Args:
            parameter: What the fixture is made with; None for the running test's only server.
            finish: Finishes the fixture, and before it those that depend on it.
        """
        name = self._only(self.item) if parameter is None else parameter
        self._dependents = (name, finish) if isinstance(name, str) else None

    def after_teardown(self, item: pytest.Item) -> None:
        """Finish the fixtures that depend on a server while it still runs, if this was its last test."""
        __tracebackhide__ = True
        if self._dependents is not None and self._dependents[0] in self._ending(self._planned.get(item)):
            (_, finish), self._dependents = self._dependents, None
            finish()

    def servers_in_use(self) -> list[tuple[InferenceServer, int]]:
        """Return the servers of the running test, each with the size of its log when the test began."""
        own = [] if self.lease is None else [(self.lease.server, self.lease.log_start)]
        return own + self.extra_servers

    def pause(self) -> Callable[[], None]:
        """Let no server be taken for hung, as under a debugger; return what lets time pass again."""
        servers = [*self.pool.servers, *(server for server, _ in self.extra_servers)]
        for server in servers:
            server.pause_heartbeat()

        def resume() -> None:
            for server in servers:
                server.resume_heartbeat()

        return resume

    # The end.

    def close(self) -> None:
        """Stop everything that still runs; what goes wrong lands in ``errors``."""
        self.errors += [*self.late_errors, *self.pool.close()]

    def _asked_before(self, item: pytest.Item) -> str | None:
        # request.getfixturevalue gives later tests the server without asking us again.
        return self.pool.kept if "request" in getattr(item, "fixturenames", ()) else None

    def _ending(self, soon: str | None = None) -> list[str]:
        return self.pool.launched() if self._last else self.pool.unwanted(soon)

    def _end(self, item: pytest.Item) -> None:
        used = self.servers_in_use()
        self.item = self.lease = None
        reasons = [self.pool.death(server) for server, _ in used]
        late, self.late_errors = self.late_errors, []
        for text in [*filter(None, reasons), *late]:
            report_error(item, text)
        if item in self._planned:
            self.pool.done(self._planned.pop(item))
        for name in self._ending():
            for text in self.pool.stop(name):
                self._report(text, self._last_users.get(name, item), item)

    def _report(self, text: str, user: pytest.Item, item: pytest.Item) -> None:
        """Report what went wrong at the stop of a server.

        Args:
            text: What.
            user: The last test that used the server.
            item: The test that has just ended.
        """
        if user is not item and hasattr(item.config, "workerinput"):
            # xdist takes reports on the running test only.
            self.errors.append(f"{text}\n  It was last used by {user.nodeid}")
        else:
            report_error(user, text)


def load_run(
    config: pytest.Config,
    settings: Settings,
    progress: Callable[[str], None],
    waiting: Callable[[InferenceServer], None],
) -> Run:
    """Read the configuration of a run.

    Args:
        config: pytest's configuration.
        settings: Ours.
        progress: Gets a line of text when a start takes long for a reason.
        waiting: Gets a starting server now and then, and once when it does not start any more.

    Raises:
        ConfigError: Something in it is wrong.
    """
    _register_backends(config)
    hook = config.hook
    configs = configured_servers(settings)
    for one in configs.values():
        check_command(one)
    pool = Pool(
        configs,
        started=lambda server: hook.pytest_infserver_server_started(config=config, server=server),
        stopping=lambda server: hook.pytest_infserver_server_stopping(config=config, server=server),
        stopped=lambda server: hook.pytest_infserver_server_stopped(config=config, server=server),
        progress=progress,
        waiting=waiting,
    )
    return Run(settings, pool)


def _register_backends(config: pytest.Config) -> None:
    """Make the backends known that plugins and conftest.py files bring."""
    from pytest_infserver.launcher.backends.registry import register_backend

    for classes in config.hook.pytest_infserver_backends(config=config):
        for backend in classes if isinstance(classes, (list, tuple)) else [classes]:
            register_backend(backend)


def _require(lease: Lease) -> None:
    if lease.error is not None:
        pytest.fail(str(lease.error), pytrace=False)
