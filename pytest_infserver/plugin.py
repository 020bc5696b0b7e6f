"""The pytest plugin: hooks and fixtures. What they do lies in the other modules, imported when needed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_infserver.options import add_options, is_used

if TYPE_CHECKING:
    import openai

    from pytest_infserver.launcher.server import InferenceServer
    from pytest_infserver.pool.desk import Desk
    from pytest_infserver.pool.run import Run
    from pytest_infserver.reporting.run_report import RunReport
    from pytest_infserver.reporting.start_times import StartTimes
    from pytest_infserver.reporting.waiting import Waiting
    from pytest_infserver.reporting.worker_notes import Notes, WorkerNotes

RUN: pytest.StashKey[Run] = pytest.StashKey()
DESK: pytest.StashKey[Desk] = pytest.StashKey()
WORKER_NOTES: pytest.StashKey[WorkerNotes] = pytest.StashKey()
NOTES: pytest.StashKey[Notes] = pytest.StashKey()
REPORT: pytest.StashKey[RunReport] = pytest.StashKey()
WAITING: pytest.StashKey[Waiting] = pytest.StashKey()
START_TIMES: pytest.StashKey[StartTimes] = pytest.StashKey()
REFUSED: pytest.StashKey[str] = pytest.StashKey()
"""Why a worker of xdist has no run."""
TEST: pytest.StashKey[Test] = pytest.StashKey()
RESUME: pytest.StashKey[Callable[[], None]] = pytest.StashKey()
_OUR_FIXTURES = {"inference_server", "inference_servers", "inference_server_factory"}
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


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Print the commands and stop, if that is what was asked for."""
    if not config.getoption("infserver_dry_run"):
        return None
    from pytest_infserver.errors import InferenceServerError
    from pytest_infserver.reporting.dry_run import print_commands

    # As for --help: a conftest.py may bring its backends in pytest_configure.
    config._do_configure()
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
            from pytest_infserver.pool.setup import open_desk

            config.stash[DESK] = open_desk(config, run)


def _only_shows(config: pytest.Config) -> bool:
    """Tell whether pytest runs no tests but shows something, which helps also where the configuration is broken."""
    return any(config.getoption(option, None) for option in ("showfixtures", "show_fixtures_per_test", "cacheshow"))


def _run(config: pytest.Config) -> Run:
    """Return this session's run; one without any of our options has none until a test asks for one.

    Raises:
        pytest.UsageError: Something is wrong with the configuration, or code of the user's has raised something.
    """
    if REFUSED in config.stash:
        raise pytest.UsageError(config.stash[REFUSED])
    if RUN not in config.stash:
        from pytest_infserver.reporting.run_report import RunReport

        run = config.stash[RUN] = _load(config)
        config.stash[REPORT] = RunReport(config, run)
        if TEST in config.stash:
            config.stash[TEST].belongs_to(run)
    return config.stash[RUN]


def _run_of_test(config: pytest.Config) -> Run:
    """Return the run for a fixture: what keeps it from being made is said without this plugin's own lines."""
    try:
        return _run(config)
    except pytest.UsageError as error:
        pytest.fail(str(error), pytrace=False)


def _load(config: pytest.Config) -> Run:
    from pytest_infserver.errors import InferenceServerError
    from pytest_infserver.pool.setup import load_run
    from pytest_infserver.reporting.start_times import StartTimes
    from pytest_infserver.reporting.terminal import visible_terminal, write_line
    from pytest_infserver.reporting.waiting import Waiting
    from pytest_infserver.settings import read_settings

    def progress(text: str) -> None:
        with visible_terminal(config) as terminal:
            if terminal is not None:
                write_line(terminal, text)

    times = config.stash[START_TIMES] = StartTimes(config)
    waiting = config.stash[WAITING] = Waiting(config, times)
    try:
        return load_run(config, read_settings(config), progress, waiting)
    except InferenceServerError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Show the servers."""
    if RUN not in config.stash:
        return []
    from pytest_infserver.reporting.header import header_lines

    run = config.stash[RUN]
    debug = any(server.debug_mode for server in run.choice.configs.values())
    return header_lines(run.settings, run.choice.candidates, debug)


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that takes our fixture once on every server that its marks allow."""
    if not _OUR_FIXTURES.intersection(metafunc.fixturenames):
        return
    if _only_shows(metafunc.config):
        return
    from pytest_infserver.pool.items import FIXTURE, markers, reaches_ours
    from pytest_infserver.selection import MarkerError

    try:
        run = _run(metafunc.config)
    except pytest.UsageError as error:
        raise pytest.Collector.CollectError(str(error)) from None
    if FIXTURE not in metafunc.fixturenames or not reaches_ours(metafunc._arg2fixturedefs.get(FIXTURE)):
        return
    # A test that is parametrised already has chosen its servers itself.
    if not run.choice.candidates or any(FIXTURE in call.params for call in metafunc._calls):
        return
    try:
        parameters = run.choice.parameters(markers(metafunc.definition))
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
    """Lease the test's server outside of everything that limits or repeats the test."""
    stash = item.config.stash
    with Test(item, nextitem) as stash[TEST]:
        if RUN in stash:
            stash[TEST].belongs_to(stash[RUN])
        return (yield)


class Test(contextlib.ExitStack):
    """The test that runs, which may become one of a run that is made while it runs, as by ``getfixturevalue``."""

    __test__ = False

    def __init__(self, item: pytest.Item, following: pytest.Item | None) -> None:
        super().__init__()
        self._item = item
        self._following = following

    def belongs_to(self, run: Run) -> None:
        """Let it be one of a run, to its end."""
        self.enter_context(run.test(self._item, self._following))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test whose server could not be had; called again when a test is repeated."""
    if RUN in item.config.stash:
        item.config.stash[RUN].before_setup(item)
        item.config.stash[REPORT].begin_test()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Profile a test that asks for it; not its fixtures."""
    __tracebackhide__ = True
    run = item.config.stash.get(RUN, None)
    if run is None:
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
        if RUN in item.config.stash:
            item.config.stash[RUN].after_teardown()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show in a failed test what its server wrote, and fail a test whose server died."""
    report = yield
    run = item.config.stash.get(RUN, None)
    if run is None or not run.servers_in_use():
        return report
    from pytest_infserver.reporting.profiles import add_profiles
    from pytest_infserver.reporting.sections import add_server_sections

    add_profiles(report, item, run.new_profiles())
    report = add_server_sections(report, run)
    item.config.stash[REPORT].note_uses(report, item)
    return report


def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    """Remember how the fixtures that depend on a server are finished before its stop."""
    if fixturedef.argname != "inference_server":
        return
    from pytest_infserver.pool.items import is_ours

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
    from pytest_infserver.pool.desk import INPUT as POOL
    from pytest_infserver.reporting.worker_notes import INPUT, WorkerNotes

    if WORKER_NOTES not in node.config.stash:
        node.config.stash[WORKER_NOTES] = WorkerNotes()
    node.workerinput[INPUT] = node.config.stash[WORKER_NOTES].folder
    if DESK in node.config.stash:
        node.workerinput[POOL] = node.config.stash[DESK].key


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give the tests of one server to the workers together, where xdist leaves the order to its scheduler."""
    if DESK not in config.stash or config.getoption("dist") not in ("load", "worksteal"):
        return None
    from pytest_infserver.pool.affinity import ServerAffinity

    desk = config.stash[DESK]
    return ServerAffinity(config, log, desk.servers_of, desk.is_ready, desk.in_order)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any) -> None:
    """End a run that wants more than there is; in a worker it would be an internal error."""
    if DESK in node.config.stash and node.config.stash[DESK].refusal is not None:
        raise pytest.UsageError(node.config.stash[DESK].refusal)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take back what a worker had that has ended."""
    if DESK in node.config.stash:
        node.config.stash[DESK].leave(node.gateway.id)
        if error == "keyboard-interrupt":
            node.config.stash[DESK].wind_up()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> Generator[None, object, object]:
    """Remember the tests of xdist's workers, for what turns up after them; end a run that has to end."""
    node = getattr(report, "node", None)
    if node is None or DESK not in node.config.stash:
        return (yield)
    node.config.stash[RUN].know(report)
    session = node.config.pluginmanager.getplugin("session")
    if session is not None and (session.shouldfail or session.shouldstop):
        # The other workers would first wait for all servers of the tests that they have got already.
        node.config.stash[DESK].wind_up()
    result = yield
    node.config.stash[DESK].raise_exit()
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Stop the servers of xdist's controller while an error can still make the run fail."""
    result = yield
    if DESK in session.config.stash:
        session.config.stash[RUN].close()
    return result


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """Stop what still runs, after the fixtures that use it are finished and before the summary is shown."""
    if DESK in session.config.stash:
        # A worker that waits for a server would not end.
        session.config.stash[DESK].refuse()
    try:
        return (yield)
    finally:
        notes = session.config.stash[NOTES] = _close(session.config)
        failed = notes.errors or (RUN in session.config.stash and session.config.stash[RUN].late.count)
        if failed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if REPORT in session.config.stash:
            session.config.stash[REPORT].write(session, notes)


def _close(config: pytest.Config) -> Notes:
    """Stop what still runs; return what belongs to no test."""
    from pytest_infserver.reporting.worker_notes import INPUT, Notes, leave_notes

    notes = Notes()
    try:
        if RUN in config.stash:
            run = config.stash[RUN]
            config.stash[WAITING].close()
            run.close()
            notes.add(Notes(run.member.incidents, run.errors, run.profiles()))
            config.stash[REPORT].add_servers(notes)
        elif REFUSED in config.stash:
            notes.errors.append(config.stash[REFUSED])
    finally:
        if DESK in config.stash:
            config.stash[DESK].close()
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
    from pytest_infserver.client import make_client
    from pytest_infserver.errors import UserCodeError

    try:
        client = make_client(inference_server)
    except UserCodeError as error:
        pytest.fail(str(error), pytrace=False)
    yield client
    client.close()
