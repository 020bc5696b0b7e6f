"""What pytest does with the suite: its fixture, its verdicts, and the grid at the end.

`pytest_infserver.plugin` registers it where the suite is among what is to run, in xdist's controller, too.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.engines import engine_and_version
from pytest_infserver.conformance.asking.target import NotAsked, NotOffered, Target, Unclear
from pytest_infserver.conformance.report.grid import Grid, grid_lines
from pytest_infserver.conformance.report.grid_files import write_grid
from pytest_infserver.conformance.verdicts.verdict import (
    ATTRIBUTE,
    FAILS,
    KNOWN,
    NOT_ASKED,
    NOT_OFFERED,
    PASSES,
    Difference,
    Verdict,
    judged,
    read_differences,
    shipped_differences,
    statement_of,
)
from pytest_infserver.errors import InferenceServerError
from pytest_infserver.launcher.server import InferenceServer
from pytest_infserver.options import OPTIONS, raw_ini
from pytest_infserver.settings import read_settings
from pytest_infserver.system.http.fetch import Limits
from pytest_infserver.system.text import clean

STATEMENTS = Path(__file__).parent / "areas"
_MAX_BYTES = 16 << 20
_MAX_REASON = 1000
_ASKS: pytest.StashKey[Ask] = pytest.StashKey()


class ConformancePlugin:
    """The suite's hooks and fixtures for one run of pytest."""

    def __init__(self, config: pytest.Config) -> None:
        """Read the options.

        Args:
            config: pytest's configuration.

        Raises:
            pytest.UsageError: One of them is wrong.
        """
        self._config = config
        self._full = config.getoption("conformance_level") == "full"
        self._grid = Grid()
        self._targets: dict[str, Target] = {}
        try:
            self._known = _known(config)
        except ValueError as error:
            raise pytest.UsageError(f"--conformance-known: {error}") from None
        # Whatever the project calls its own.
        config.addinivalue_line("python_files", f"{STATEMENTS}/*/test_*.py")
        config.addinivalue_line("python_functions", "test_")
        config.addinivalue_line("markers", "conformance_full: a statement of --conformance-level full")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Take an attached server that has no health endpoint, too, as most do."""
        settings = read_settings(self._config)
        if settings.config_files or not (settings.url or settings.urls):
            return
        option = next(one for one in OPTIONS if one.name == "set")
        given = self._config.getoption(option.ini) or os.environ.get(option.variable) or raw_ini(self._config, option)
        lines = given.splitlines() if isinstance(given, str) else list(given or ())
        if not any(line.startswith(("ready", "health_endpoint")) for line in lines):
            setattr(self._config.option, option.ini, [*lines, "ready=[{tcp: true}]"])

    @pytest.hookimpl(wrapper=True)
    def pytest_pycollect_makeitem(self, name: str, obj: object) -> Generator[None, Any, Any]:
        """Leave out what belongs to another level."""
        found = yield
        return found if self._full or not _is_full(obj) else []

    @pytest.fixture
    def ask(self, request: pytest.FixtureRequest, inference_server: InferenceServer) -> Ask:
        """Ask the server of this test."""
        target = self._target(inference_server)
        target.look()
        asked = request.node.stash[_ASKS] = Ask(target)
        return asked

    def _target(self, server: InferenceServer) -> Target:
        if server.name not in self._targets:
            limits = Limits(float(self._config.getoption("conformance_timeout")), _MAX_BYTES)
            # What is attached says itself what its model is called.
            model = server.settings.model or "" if server.attached else str(server.api_model)
            version = engine_and_version(server, limits.seconds)
            self._targets[server.name] = Target(server.name, server.address, model, limits, version)
        return self._targets[server.name]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Make a verdict of what a test has found."""
        report = yield
        if not isinstance(item, pytest.Function) or STATEMENTS not in item.path.parents:
            return report
        if call.when == "call" or (call.when == "setup" and (report.failed or report.skipped)):
            self._judge(report, item, call)
        return report

    def _judge(self, report: pytest.TestReport, item: pytest.Function, call: pytest.CallInfo[None]) -> None:
        error = None if call.excinfo is None else call.excinfo.value
        if error is not None and not isinstance(error, (Exception, pytest.fail.Exception, pytest.skip.Exception)):
            return
        asked = item.stash.get(_ASKS, None)
        word, reason = _word(error, call.when)
        verdict = self._verdict(item, asked, word, reason)
        verdict = judged(verdict, self._known)
        setattr(report, ATTRIBUTE, verdict.as_data())
        where = (str(item.path), item.location[1] or 0)
        if verdict.verdict == NOT_OFFERED:
            report.outcome, report.longrepr = "skipped", (*where, f"not offered: {verdict.reason}")
        elif verdict.verdict == KNOWN:
            report.outcome, report.longrepr, report.wasxfail = "skipped", (*where, verdict.reason), verdict.reason
        elif isinstance(error, Unclear):
            report.outcome, report.longrepr = "skipped", (*where, f"not asked: {verdict.reason}")
        elif verdict.verdict in (FAILS, NOT_ASKED) and not isinstance(error, InferenceServerError):
            report.outcome, report.longrepr = "failed", _told(verdict)

    def _verdict(self, item: pytest.Function, asked: Ask | None, word: str, reason: str) -> Verdict:
        statement, source = statement_of(item.function)
        server = str(item.callspec.params.get("inference_server", "")) if hasattr(item, "callspec") else ""
        target = self._targets.get(server) if asked is None else asked.target
        curl = ""
        if word == FAILS and asked is not None and asked.asked:
            curl = asked.asked[-1].curl(asked.target.address)
        secrets = frozenset() if target is None or not target.address.api_key else frozenset({target.address.api_key})
        return Verdict(
            area=item.path.stem.removeprefix("test_"),
            name=item.originalname.removeprefix("test_"),
            statement=statement,
            source=source,
            level="full" if _is_full(item.function) else "core",
            server=server if target is None else target.name,
            version="" if target is None else target.version,
            verdict=word,
            reason=clean(reason, secrets)[:_MAX_REASON],
            curl=clean(curl, secrets),
            case=_case(item),
        )

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a verdict into the grid; in xdist's controller those of its workers."""
        found = getattr(report, ATTRIBUTE, None)
        if found is not None:
            self._grid.add(Verdict(**found))

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Show the grid, and write it."""
        if not self._grid.verdicts:
            return
        terminalreporter.section("conformance")
        for line in grid_lines(self._grid):
            terminalreporter.write_line(line)
        folder = self._config.getoption("conformance_output") or _default_folder(self._config)
        try:
            files = write_grid(self._grid, Path(folder), self._config.getoption("conformance_level"))
        except OSError as error:
            terminalreporter.write_line(f"the grid cannot be written: {error}")
        else:
            terminalreporter.write_line(f"written: {', '.join(files)}")


def _case(item: pytest.Function) -> str:
    """Return which of a test's own values it has."""
    parameters = dict(item.callspec.params) if hasattr(item, "callspec") else {}
    parameters.pop("inference_server", None)
    return ", ".join(str(value) for value in parameters.values())


def _is_full(test: object) -> bool:
    marks = getattr(test, "pytestmark", ())
    return any(getattr(mark, "name", "") == "conformance_full" for mark in marks)


def _known(config: pytest.Config) -> list[Difference]:
    own = config.getoption("conformance_known")
    # The user's own come first: they may say something else of the same.
    return [*(read_differences(Path(own)) if own else ()), *shipped_differences()]


def _default_folder(config: pytest.Config) -> Path:
    return config.rootpath / "server_logs"


def _word(error: BaseException | None, when: str) -> tuple[str, str]:
    """Return the verdict that a test's end stands for, and why."""
    if error is None:
        return PASSES, ""
    text = str(error).strip()
    if isinstance(error, NotOffered):
        return NOT_OFFERED, text
    if isinstance(error, (NotAsked, pytest.skip.Exception)) or when == "setup":
        return NOT_ASKED, text or type(error).__name__
    if isinstance(error, AssertionError):
        # pytest adds how it has come to that.
        return FAILS, text.split("\nassert ", 1)[0].strip()
    # A test that trips over an answer's shape has found one that it does not know.
    return FAILS, f"the answer has another shape than expected: {type(error).__name__}: {text}"


def _told(verdict: Verdict) -> str:
    lines = [f"{verdict.key}: {verdict.verdict}: {verdict.reason}", "", f"statement: {verdict.statement}"]
    lines.append(f"source: {verdict.source}")
    if verdict.curl:
        lines.append(f"ask it yourself: {verdict.curl}")
    return "\n".join(lines)
