"""The run of this session of pytest: made when it is first needed, closed at the end; and the keys of the stash."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_infserver.pool.broker.pool_requests import PoolRequests
    from pytest_infserver.pool.process.controller import Controller
    from pytest_infserver.pool.run import Run
    from pytest_infserver.reporting.record.measured import Measured
    from pytest_infserver.reporting.record.run_report import RunReport
    from pytest_infserver.reporting.record.worker_notes import Notes, WorkerNotes
    from pytest_infserver.reporting.terminal.start_times import StartTimes
    from pytest_infserver.reporting.terminal.waiting import Waiting
    from pytest_infserver.system.environment import Surroundings

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
TEST: pytest.StashKey[CurrentTest] = pytest.StashKey()
BEFORE_TESTS: pytest.StashKey[Surroundings] = pytest.StashKey()
"""What servers inherit that a test asks for, unless it changes that."""
CLOSED: tuple[pytest.StashKey[Any], ...] = (RUN, REFUSED, BROKER, WORKER_NOTES)
"""What the end of a session closes, or tells."""
_SITE_PACKAGES = os.path.dirname(os.path.dirname(pytest.__file__))  # noqa: PTH120


def run_of(config: pytest.Config) -> Run:
    """Return this session's run; one without any of our options has none until a test asks for one.

    Raises:
        pytest.UsageError: Something is wrong with the configuration, or code of the user's has raised something.
    """
    if REFUSED in config.stash:
        raise pytest.UsageError(config.stash[REFUSED])
    if RUN not in config.stash:
        _import_early()
        from pytest_infserver.reporting.record.run_report import RunReport

        run = config.stash[RUN] = load(config)
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


def run_for_fixture(config: pytest.Config) -> Run:
    """Return the run for a fixture: what keeps it from being made is said without this plugin's own lines."""
    try:
        run = run_of(config)
    except pytest.UsageError as error:
        pytest.fail(str(error), pytrace=False)
    if TEST in config.stash:
        config.stash[TEST].belongs_to(run)
    return run


def _import_early() -> None:
    """Import what a file of the project may be in the way of later."""
    from pytest_infserver.system.imports import NEEDED_LATER, import_early

    import_early((*NEEDED_LATER, "pytest_infserver.setup"), _SITE_PACKAGES)


def note_surroundings(config: pytest.Config) -> None:
    """Remember what this process has before tests and their fixtures change it."""
    from pytest_infserver.system.environment import surroundings

    config.stash[BEFORE_TESTS] = surroundings()


def load(config: pytest.Config) -> Run:
    """Read the configuration, and join the pool of this run, or make it.

    Raises:
        pytest.UsageError: Something is wrong with the configuration, or code of the user's has raised something.
    """
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
        return load_run(config, settings, progress, waiting, config.stash.get(BEFORE_TESTS, None))
    except InferenceServerError as error:
        raise pytest.UsageError(str(error)) from None


class CurrentTest:
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

    def __enter__(self) -> CurrentTest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over = True
        if self._in_run is not None:
            self._in_run.__exit__(kind, error, traceback)


def finish(session: pytest.Session) -> None:
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
