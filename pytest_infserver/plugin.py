"""The pytest plugin: its hooks. What they do lies in the other modules, imported when needed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator
from typing import Any

import pytest

from pytest_infserver.options import add_options, is_used, runs_conformance
from pytest_infserver.session.current_run import (
    BROKER,
    CLOSED,
    NOTES,
    REFUSED,
    REPORT,
    RUN,
    TEST,
    CurrentTest,
    finish,
    load,
    note_surroundings,
    run_for_fixture,
    run_of,
)
from pytest_infserver.session.fixtures import (
    inference_async_client,
    inference_client,
    inference_load,
    inference_score,
    inference_server,
    inference_server_factory,
    inference_servers,
    inference_session,
    response_snapshot,
)

__all__ = [
    "inference_async_client",
    "inference_client",
    "inference_load",
    "inference_score",
    "inference_server",
    "inference_server_factory",
    "inference_servers",
    "inference_session",
    "response_snapshot",
]

RESUME: pytest.StashKey[Callable[[], None]] = pytest.StashKey()
COLLECTED: pytest.StashKey[bool] = pytest.StashKey()
_OUR_FIXTURES = {"inference_server", "inference_servers", "inference_server_factory"}
_CLIENTS = {"inference_client", "inference_async_client"}
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
        print_commands(load(config), sys.stdout)
    except InferenceServerError as error:
        raise pytest.UsageError(str(error)) from None
    return 0


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Read the configuration, before anything is collected or started."""
    config = session.config
    if config.pluginmanager.hasplugin("dsession"):
        from pytest_infserver.session import controller_hooks

        config.pluginmanager.register(controller_hooks, "infserver-xdist")
    if is_used(config) and not _only_shows(config):
        try:
            run = run_of(config)
        except pytest.UsageError as error:
            if not hasattr(config, "workerinput"):
                raise
            # xdist would start another worker in its place, which would end here, too, and so on: the
            # tests that need a server say it.
            config.stash[REFUSED] = str(error)
            return
        if run.choice.candidates and not config.option.collectonly:
            run.begin()
        if config.pluginmanager.hasplugin("dsession") and run.choice.candidates:
            from pytest_infserver.setup import open_broker

            config.stash[BROKER] = open_broker(config, run)


def _only_shows(config: pytest.Config) -> bool:
    """Return whether pytest runs no tests but shows something, which helps also where the configuration is broken."""
    return any(config.getoption(option, None) for option in ("showfixtures", "show_fixtures_per_test", "cacheshow"))


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
        run = run_of(metafunc.config)
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
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Let what servers have of the user's code wait, which start meanwhile: it may be what is imported."""
    run = session.config.stash.get(RUN, None)
    with contextlib.nullcontext() if run is None else run.member.test():
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> Generator[None, object, object]:
    """Put the tests of each server together, before anybody else orders them; leave out and skip what marks say."""
    if RUN not in session.config.stash:
        return (yield)
    with session.config.stash[RUN].collecting(session.config, items) as left_out:
        result = yield
    session.config.stash[COLLECTED] = True
    if left_out:
        session.config.hook.pytest_deselected(items=left_out)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Start what the tests need, in their order."""
    note_surroundings(session.config)
    option = session.config.option
    # Where something cannot be collected pytest is about to give up; xdist's workers go on.
    goes_on = option.continue_on_collection_errors or hasattr(session.config, "workerinput")
    gives_up = session.testsfailed and not goes_on
    # It is also called where collection was interrupted, or what it looked for was not found.
    has_ended = RUN in session.config.stash and session.config.stash.get(COLLECTED, False)
    if has_ended and not option.collectonly and not gives_up:
        session.config.stash[RUN].plan(session.config, session.items)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Give the test's servers back outside of everything that repeats the test."""
    run = item.config.stash.get(RUN, None)
    passes_by = run is not None and run.passes_by(item, nextitem)
    with CurrentTest(item, nextitem) as test:
        item.config.stash[TEST] = test
        if run is not None and not passes_by:
            test.belongs_to(run)
        with contextlib.nullcontext() if run is None else run.member.test():
            result = yield
    if run is not None and passes_by:
        run.tell_problems()
    return result


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
    # Not by the names of its fixtures: items of other plugins have none, and a test may ask for one while it runs.
    if "pytest_infserver.reporting.record.measures" in sys.modules:
        from pytest_infserver.reporting.record.measures import attach

        attach(report, item)
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
        run = run_for_fixture(request.config)
        parameter = getattr(request, "param", None)
        run.remember_dependents(parameter, lambda: fixturedef.finish(request))  # type: ignore[arg-type]


def pytest_enter_pdb(config: pytest.Config) -> None:
    """Let no server be taken for hung while somebody debugs."""
    if RUN in config.stash:
        config.stash[RESUME] = config.stash[RUN].pause()


def pytest_leave_pdb(config: pytest.Config) -> None:
    """Let time pass again."""
    config.stash.get(RESUME, lambda: None)()


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
        if any(key in session.config.stash for key in CLOSED):
            finish(session)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Show the servers, what tests have measured, where the traces are, and what belongs to no test."""
    if "pytest_infserver.reporting" in sys.modules:
        from pytest_infserver.reporting.terminal.measures import show_measures

        show_measures(terminalreporter, config)
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
