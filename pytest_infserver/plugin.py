"""The pytest plugin: hooks and fixtures. What they do lies in the other modules, imported when needed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from pytest_infserver.options import add_options, is_used, runs_conformance

if TYPE_CHECKING:
    import openai
    import requests

    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.broker.pool_requests import PoolRequests
    from pytest_infserver.pool.process.controller import Controller
    from pytest_infserver.pool.run import Run
    from pytest_infserver.reporting.record.measured import Measured
    from pytest_infserver.reporting.record.run_report import RunReport
    from pytest_infserver.reporting.record.worker_notes import Notes, WorkerNotes
    from pytest_infserver.reporting.terminal.start_times import StartTimes
    from pytest_infserver.reporting.terminal.waiting import Waiting
    from pytest_infserver.snapshots.response_snapshot import ResponseSnapshot

_Client = TypeVar("_Client")

RUN: pytest.StashKey[Run] = pytest.StashKey()
BROKER: pytest.StashKey[Controller] = pytest.StashKey()
POOL_REQUESTS: pytest.StashKey[PoolRequests] = pytest.StashKey()
WORKER_NOTES: pytest.StashKey[WorkerNotes] = pytest.StashKey()
NOTES: pytest.StashKey[Notes] = pytest.StashKey()
REPORT: pytest.StashKey[RunReport] = pytest.StashKey()
WAITING: pytest.StashKey[Waiting] = pytest.StashKey()
MEASURED: pytest.StashKey[Measured] = pytest.StashKey()
START_TIMES: pytest.StashKey[StartTimes] = pytest.StashKey()
REFUSED: pytest.StashKey[str] = pytest.StashKey()
"""Why a worker of xdist has no run."""
TEST: pytest.StashKey[Test] = pytest.StashKey()
RESUME: pytest.StashKey[Callable[[], None]] = pytest.StashKey()
_CLOSED: tuple[pytest.StashKey[Any], ...] = (RUN, REFUSED, BROKER, WORKER_NOTES)
"""What the end of a session closes, or tells."""
_OUR_FIXTURES = {"inference_server", "inference_servers", "inference_server_factory"}
_CLIENTS = {"inference_client", "inference_async_client"}
_SITE_PACKAGES = os.path.dirname(os.path.dirname(pytest.__file__))  # noqa: PTH120
MARKERS = (
    "backend(*names, exclude=...): run this test on servers of these backends only, or on all but those excluded",
    "infserver(*names, exclusive=False): run this test on servers with these names only (* and ? match), or alone",
    "infserver_needs(*names): give this test these servers together, in the fixture inference_servers",
    "infserver_profile(tool=None): profile the servers of this test; without a tool with the configured one",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hooks of this plugin."""
    from pytest_infserver import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    if runs_conformance(config):
        from pytest_infserver.conformance.plugin import ConformancePlugin

        config.pluginmanager.register(ConformancePlugin(config), "infserver-conformance")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Print the commands and stop, if that is what was asked for."""
    if not config.getoption("infserver_dry_run"):
        return None
    from pytest_infserver.compat import configure
    from pytest_infserver.errors import InferenceServerError
    from pytest_infserver.reporting.dry_run import print_commands

    # As for --help: a conftest.py may bring its backends in pytest_configure.
    configure(config)
    try:
        print_commands(_load(config), sys.stdout)
    except InferenceServerError as error:
        raise pytest.UsageError(str(error)) from None
    return 0


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Read the configuration, before anything is collected or started."""
    config = session.config
    if is_used(config) and not _only_shows(config):
        try:
            run = _run(config)
        except pytest.UsageError as error:
            if not hasattr(config, "workerinput"):
                raise
            # xdist would start another worker in its place, which would end here, too, and so on: the
            # tests that need a server say it.
            config.stash[REFUSED] = str(error)
            return
        if config.pluginmanager.hasplugin("dsession") and run.choice.candidates:
            from pytest_infserver.setup import open_broker

            config.stash[BROKER] = open_broker(config, run)
        elif run.choice.candidates and not config.option.collectonly:
            run.begin()


def _only_shows(config: pytest.Config) -> bool:
    """Return whether pytest runs no tests but shows something, which helps also where the configuration is broken."""
    return any(config.getoption(option, None) for option in ("showfixtures", "show_fixtures_per_test", "cacheshow"))


def _run(config: pytest.Config) -> Run:
    """Return this session's run; one without any of our options has none until a test asks for one.

    Raises:
        pytest.UsageError: Something is wrong with the configuration, or code of the user's has raised something.
    """
    if REFUSED in config.stash:
        raise pytest.UsageError(config.stash[REFUSED])
    if RUN not in config.stash:
        _import_early()
        from pytest_infserver.reporting.record.run_report import RunReport

        run = config.stash[RUN] = _load(config)
        config.stash[REPORT] = RunReport(config, run)
        if run.settings.save_durations and not hasattr(config, "workerinput"):
            from pytest_infserver.reporting.record.measured import Measured

            config.stash[MEASURED] = Measured()
            config.pluginmanager.register(config.stash[MEASURED])
        if not hasattr(config, "workerinput"):
            from pytest_infserver.reporting.terminal.ci_services import CiServices

            config.pluginmanager.register(CiServices(config, lambda: _problems(config)))
        if TEST in config.stash:
            config.stash[TEST].belongs_to(run)
    return config.stash[RUN]


def _problems(config: pytest.Config) -> tuple[list[str], list[str]]:
    """Return what went wrong and belongs to no test, and what is worth a word."""
    notes = config.stash.get(NOTES, None)
    return ([], []) if notes is None else (notes.errors, notes.incidents)


def _run_of_test(config: pytest.Config) -> Run:
    """Return the run for a fixture: what keeps it from being made is said without this plugin's own lines."""
    try:
        run = _run(config)
    except pytest.UsageError as error:
        pytest.fail(str(error), pytrace=False)
    if TEST in config.stash:
        config.stash[TEST].belongs_to(run)
    return run


def _import_early() -> None:
    """Import what a file of the project may be in the way of later."""
    from pytest_infserver.system.imports import NEEDED_LATER, import_early

    import_early((*NEEDED_LATER, "pytest_infserver.setup"), _SITE_PACKAGES)


def _load(config: pytest.Config) -> Run:
    _import_early()
    from pytest_infserver.errors import InferenceServerError
    from pytest_infserver.reporting.terminal.start_times import StartTimes
    from pytest_infserver.reporting.terminal.terminal import visible_terminal, write_line
    from pytest_infserver.reporting.terminal.waiting import Waiting
    from pytest_infserver.settings import read_settings
    from pytest_infserver.setup import load_run

    def progress(text: str) -> None:
        with visible_terminal(config) as terminal:
            if terminal is not None:
                write_line(terminal, text)

    times = config.stash[START_TIMES] = StartTimes(config)
    try:
        settings = read_settings(config)
        waiting = config.stash[WAITING] = Waiting(config, times, plain=settings.log == "live")
        return load_run(config, settings, progress, waiting)
    except InferenceServerError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Show the servers."""
    if RUN not in config.stash:
        return []
    from pytest_infserver.reporting.terminal.header import header_lines

    run = config.stash[RUN]
    debug = any(server.debug_mode for server in run.choice.configs.values())
    return header_lines(run.settings, run.choice.candidates, debug)


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that takes our fixture once on every server that its marks allow."""
    if not _OUR_FIXTURES.intersection(metafunc.fixturenames):
        return
    for client in _CLIENTS.intersection(metafunc.fixturenames):
        from pytest_infserver.compat import follow_scope

        follow_scope(metafunc, client, "inference_server")
    if _only_shows(metafunc.config):
        return
    from pytest_infserver.compat import definitions_of, is_parametrized_by
    from pytest_infserver.pool.collection.items import FIXTURE, SEVERAL, markers, needs, reaches_ours
    from pytest_infserver.pool.collection.selection import MarkerError

    try:
        run = _run(metafunc.config)
        if SEVERAL in metafunc.fixturenames:
            run.choice.check(needs(metafunc.definition))
    except pytest.UsageError as error:
        raise pytest.Collector.CollectError(str(error)) from None
    except MarkerError as error:
        raise pytest.Collector.CollectError(f"{metafunc.definition.nodeid}: {error}") from None
    if FIXTURE not in metafunc.fixturenames or not reaches_ours(definitions_of(metafunc, FIXTURE)):
        return
    marks = markers(metafunc.definition)
    # A test that is parametrised already has chosen its servers itself.
    if not (run.choice.candidates or run.choice.declares_server(marks)) or is_parametrized_by(metafunc, FIXTURE):
        return
    path, line, _ = metafunc.definition.location
    try:
        parameters = run.choice.parameters(marks, path if line is None else f"{path}:{line + 1}")
    except MarkerError as error:
        raise pytest.Collector.CollectError(f"{metafunc.definition.nodeid}: {error}") from None
    metafunc.parametrize(FIXTURE, parameters, indirect=True)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> Generator[None, object, object]:
    """Put the tests of each server together, before anybody else orders them; leave out and skip what marks say."""
    if RUN not in session.config.stash:
        return (yield)
    with session.config.stash[RUN].collecting(session.config, items) as left_out:
        result = yield
    if left_out:
        session.config.hook.pytest_deselected(items=left_out)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Start what the tests need, in their order."""
    option = session.config.option
    # Where something cannot be collected pytest is about to give up; xdist's workers go on.
    goes_on = option.continue_on_collection_errors or hasattr(session.config, "workerinput")
    gives_up = session.testsfailed and not goes_on
    if RUN in session.config.stash and not option.collectonly and not gives_up:
        session.config.stash[RUN].plan(session.config, session.items)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Give the test's servers back outside of everything that repeats the test."""
    run = item.config.stash.get(RUN, None)
    passes_by = run is not None and run.passes_by(item, nextitem)
    with Test(item, nextitem) as test:
        item.config.stash[TEST] = test
        if run is not None and not passes_by:
            test.belongs_to(run)
        with contextlib.nullcontext() if run is None else run.member.test():
            result = yield
    if run is not None and passes_by:
        run.tell_problems()
    return result


class Test:
    """The test that runs, which may become one of a run while it runs, as by ``getfixturevalue``."""

    __test__ = False

    def __init__(self, item: pytest.Item, following: pytest.Item | None) -> None:
        self._item = item
        self._following = following
        self._in_run: AbstractContextManager[None] | None = None
        self._is_over = False

    def belongs_to(self, run: Run) -> None:
        """Let it be one of a run, to its end."""
        if self._in_run is None and not self._is_over:
            self._in_run = run.test(self._item, self._following)
            self._in_run.__enter__()

    def __enter__(self) -> Test:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over = True
        if self._in_run is not None:
            self._in_run.__exit__(kind, error, traceback)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Lease the test's servers when nobody has skipped it; called again when a test is repeated."""
    run = item.config.stash.get(RUN, None)
    if run is None or run.item is not item:
        return (yield)
    from pytest_infserver.pool.collection.setup_phase import before_fixtures

    def lease() -> None:
        run.before_fixtures(item)
        item.config.stash[REPORT].begin_test()

    with before_fixtures(item, lease):
        return (yield)


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """Note how pytest-timeout limits a test: the wait for a server does not count."""
    from pytest_infserver.pool.collection.setup_phase import note_timer

    note_timer(item, settings)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Profile a test that asks for it; not its fixtures."""
    __tracebackhide__ = True
    run = item.config.stash.get(RUN, None)
    if run is None or run.item is not item:
        return (yield)
    with run.profiled(item):
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Finish what depends on a server before its stop; innermost, so that it counts as the test's own teardown."""
    __tracebackhide__ = True
    try:
        return (yield)
    finally:
        run = item.config.stash.get(RUN, None)
        if run is not None and run.item is item:
            run.after_teardown()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show in a failed test what its server wrote, and fail a test whose server died."""
    report = yield
    run = item.config.stash.get(RUN, None)
    if run is None or run.item is not item:
        return report
    if call.when == "setup":
        from pytest_infserver.pool.collection.setup_phase import waited
        from pytest_infserver.reporting.record.records_of_tests import WAIT

        wait = waited(item)
        report.duration = max(0.0, report.duration - wait)
        setattr(report, WAIT, wait)
    if not run.servers_in_use() and not (report.failed and run.holds.left_behind(item)):
        return report
    from pytest_infserver.reporting.profiles import add_profiles
    from pytest_infserver.reporting.sections import add_server_sections

    add_profiles(report, item, run.new_profiles())
    report = add_server_sections(report, run)
    item.config.stash[REPORT].note_uses(report, item)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Remember how the fixtures that depend on a server are finished before its stop, and which one is being made."""
    if RUN not in request.config.stash or fixturedef.argname in _OUR_FIXTURES:
        _note_dependents(fixturedef, request)
        return (yield)
    with request.config.stash[RUN].making(fixturedef):
        return (yield)


def _note_dependents(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    if fixturedef.argname != "inference_server":
        return
    from pytest_infserver.pool.collection.items import is_ours

    if is_ours(fixturedef):
        run = _run_of_test(request.config)
        parameter = getattr(request, "param", None)
        run.remember_dependents(parameter, lambda: fixturedef.finish(request))  # type: ignore[arg-type]


def pytest_enter_pdb(config: pytest.Config) -> None:
    """Let no server be taken for hung while somebody debugs."""
    if RUN in config.stash:
        config.stash[RESUME] = config.stash[RUN].pause()


def pytest_leave_pdb(config: pytest.Config) -> None:
    """Let time pass again."""
    config.stash.get(RESUME, lambda: None)()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of xdist where it gets its servers, and where it leaves what the summary is to show."""
    from pytest_infserver.errors import InferenceServerError
    from pytest_infserver.pool.broker.broker import INPUT as POOL
    from pytest_infserver.reporting.record.worker_notes import INPUT, WorkerNotes

    if WORKER_NOTES not in node.config.stash:
        node.config.stash[WORKER_NOTES] = WorkerNotes()
    node.workerinput[INPUT] = node.config.stash[WORKER_NOTES].folder
    if BROKER not in node.config.stash:
        # Nobody knows yet whether the tests want servers.
        node.workerinput[POOL] = _pool_requests(node.config).key
        return
    try:
        node.workerinput[POOL] = node.config.stash[BROKER].key
    except InferenceServerError as error:
        raise pytest.UsageError(str(error)) from None


def _pool_requests(config: pytest.Config) -> PoolRequests:
    from pytest_infserver.pool.broker.pool_requests import PoolRequests

    def open_pool() -> Mapping[str, Any]:
        if BROKER not in config.stash:
            from pytest_infserver.setup import open_broker

            config.stash[BROKER] = open_broker(config, _run(config))
        return config.stash[BROKER].key

    if POOL_REQUESTS not in config.stash:
        config.stash[POOL_REQUESTS] = PoolRequests(open_pool)
    return config.stash[POOL_REQUESTS]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give the tests of one server to the workers together, where xdist leaves the order to its scheduler."""
    if BROKER not in config.stash or config.getoption("dist") not in ("load", "worksteal"):
        return None
    from pytest_infserver.pool.broker.affinity import ServerAffinity

    broker = config.stash[BROKER]
    return ServerAffinity(config, log, broker.servers_of, broker.is_ready, broker.in_order)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any) -> None:
    """End a run that wants more than there is; in a worker it would be an internal error."""
    if BROKER not in node.config.stash:
        return
    from pytest_infserver.errors import InferenceServerError

    try:
        refusal = node.config.stash[BROKER].refusal
    except InferenceServerError as error:
        refusal = str(error)
    if refusal is not None:
        raise pytest.UsageError(refusal)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take back what a worker had that has ended."""
    if BROKER in node.config.stash:
        node.config.stash[BROKER].leave(node.gateway.id)
        if error == "keyboard-interrupt":
            node.config.stash[BROKER].wind_up()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> Generator[None, object, object]:
    """Remember the tests of xdist's workers, for what turns up after them; end a run that has to end."""
    node = getattr(report, "node", None)
    if node is None or BROKER not in node.config.stash:
        return (yield)
    node.config.stash[RUN].know(report)
    session = node.config.pluginmanager.getplugin("session")
    if session is not None and (session.shouldfail or session.shouldstop):
        # The other workers would first wait for all servers of the tests that they have got already.
        node.config.stash[BROKER].wind_up()
    result = yield
    node.config.stash[BROKER].raise_exit()
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Stop the servers of xdist's controller while an error can still make the run fail."""
    result = yield
    if BROKER in session.config.stash:
        session.config.stash[RUN].close()
    return result


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """Stop what still runs, after the fixtures that use it are finished and before the summary is shown."""
    if BROKER in session.config.stash:
        # A worker that waits for a server would not end.
        session.config.stash[BROKER].refuse()
    try:
        return (yield)
    finally:
        # Without anything to close nothing is imported for it.
        if any(key in session.config.stash for key in _CLOSED):
            _finish(session)


def _finish(session: pytest.Session) -> None:
    """Stop what still runs, and let the run end as that went."""
    notes = session.config.stash[NOTES] = _close(session.config)
    failed = notes.errors or (RUN in session.config.stash and session.config.stash[RUN].late.count)
    if notes.elsewhere and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK
    if failed and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if REPORT in session.config.stash:
        session.config.stash[REPORT].write(session, notes)


def _close(config: pytest.Config) -> Notes:
    """Stop what still runs; return what belongs to no test."""
    from pytest_infserver.reporting.record.worker_notes import INPUT, Notes, leave_notes

    notes = Notes()
    if POOL_REQUESTS in config.stash:
        config.stash[POOL_REQUESTS].close()
    try:
        if RUN in config.stash:
            run = config.stash[RUN]
            config.stash[WAITING].close()
            run.close()
            config.stash[REPORT].end_log()
            if MEASURED in config.stash:
                config.stash[MEASURED].save(run)
            notes.add(Notes(run.member.incidents, run.errors, run.profiles(), elsewhere=run.elsewhere))
            config.stash[REPORT].add_servers(notes)
        elif REFUSED in config.stash:
            notes.errors.append(config.stash[REFUSED])
    finally:
        if BROKER in config.stash:
            config.stash[BROKER].close()
    worker = getattr(config, "workerinput", None)
    if RUN in config.stash and worker is None:
        config.stash[START_TIMES].remember(config.stash[RUN].servers())
    if WORKER_NOTES in config.stash:
        notes.add(config.stash[WORKER_NOTES].collect())
    if REPORT in config.stash:
        config.stash[REPORT].clean(notes)
    if worker is not None:
        leave_notes(worker[INPUT], worker["workerid"], notes)
    return notes


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Show the servers, where the traces are, and what belongs to no test."""
    notes = config.stash.get(NOTES, None)
    if notes is None:
        return
    from pytest_infserver.reporting.profiles import show_profiles

    show_profiles(terminalreporter, notes.profiles)
    lines = config.stash[REPORT].summary() if REPORT in config.stash else []
    lines += [*notes.incidents, *notes.errors]
    if lines:
        terminalreporter.ensure_newline()
        terminalreporter.section("infserver")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def inference_server(request: pytest.FixtureRequest) -> InferenceServer:
    """A running inference server; the test runs once on each configured one that its marks allow.

    The value stays the same object, with the same name, port and URL, when the server is started again.
    """
    run = _run_of_test(request.config)
    return run.handle(run.choice.named(getattr(request, "param", None), run.item))


@pytest.fixture
def inference_servers(request: pytest.FixtureRequest) -> Mapping[str, InferenceServer]:
    """The running servers that ``@pytest.mark.infserver_needs("a", "b")`` names, by name; all of them or none."""
    return _run_of_test(request.config).needed(request.node)


@pytest.fixture(scope="session")
def inference_server_factory(request: pytest.FixtureRequest) -> Callable[..., InferenceServer]:
    """Starts more servers: ``factory("name")`` or ``factory(backend=..., model=...)``, stopped with their scope.

    ``scope`` is function (default), class, module, package or session. Keywords beside a name replace its settings.
    """
    from pytest_infserver.pool.factory import ServerFactory

    return ServerFactory(_run_of_test(request.config), request.session)


@pytest.fixture(scope="session")
def inference_client(inference_server: InferenceServer) -> Iterator[openai.OpenAI]:
    """An ``openai.OpenAI`` for the current server, without retries (extra ``openai``)."""
    client = _client_of(inference_server.client)
    yield client
    client.close()


@pytest.fixture(scope="session")
def inference_async_client(inference_server: InferenceServer) -> openai.AsyncOpenAI:
    """An ``openai.AsyncOpenAI`` for the current server, good in every event loop (extra ``openai``)."""
    # Nothing to close: it keeps no connection.
    return _client_of(inference_server.async_client)


@pytest.fixture(scope="session")
def inference_session(inference_server: InferenceServer) -> Iterator[requests.Session]:
    """A ``requests.Session`` for the current server: with its key and certificates, and without proxies."""
    from pytest_infserver.launcher.clients.openai_clients import make_session

    with _client_of(lambda: make_session(inference_server)) as session:
        yield session


@pytest.fixture
def response_snapshot(request: pytest.FixtureRequest) -> ResponseSnapshot:
    """Compares answers with stored ones: ``response_snapshot(answer, rtol=0.2, ignore=["usage"])``; extra ``snapshot``.

    Texts are compared exactly, log probabilities within the tolerance. ``--snapshot-update`` stores them.
    """
    if not request.config.pluginmanager.hasplugin("syrupy"):
        pytest.fail("response_snapshot needs syrupy: pip install 'pytest-infserver[snapshot]'", pytrace=False)
    from pytest_infserver.snapshots.response_snapshot import ResponseSnapshot

    has_server = "inference_server" in request.fixturenames
    server = request.getfixturevalue("inference_server") if has_server else None
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    return ResponseSnapshot(request.getfixturevalue("snapshot"), server, is_in_id="inference_server" in parameters)


def _client_of(make: Callable[[], _Client]) -> _Client:
    from pytest_infserver.errors import InferenceServerError

    try:
        return make()
    except InferenceServerError as error:
        pytest.fail(str(error), pytrace=False)
