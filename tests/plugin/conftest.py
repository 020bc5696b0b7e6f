"""A small project with the fake engine in which pytest runs with this plugin, and nothing else unless asked for."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_servers import write_servers
from isolation import HARD_LIMIT, cleaned_environment, no_process_left

HELPERS = """
import http.client
import json
import os
import pathlib
import urllib.request

EVENTS = pathlib.Path(__file__).parent / "events.txt"
OUTCOMES = pathlib.Path(__file__).parent / "outcomes.txt"
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def note(*words):
    with EVENTS.open("a") as file:
        file.write(" ".join(map(str, words)) + "\\n")


def get(server, path):
    with opener.open(server.url_for(path), timeout=20) as answer:
        return json.load(answer)


def kill(server, how="/exit?code=3"):
    try:
        get(server, how)
    except (OSError, http.client.HTTPException):
        pass


def alive(pid):
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
"""

CONFTEST = """
from helpers import OUTCOMES, alive, note

pids = {}


def pytest_infserver_server_started(server):
    pids[server.name] = server.pid
    note("started", server.name)


def pytest_infserver_server_stopping(server):
    note("stopping", server.name)


def pytest_infserver_server_stopped(server):
    pid = pids.get(server.name)
    note("stopped", server.name, "attached" if pid is None else "alive" if alive(pid) else "gone")


def pytest_runtest_call(item):
    note("test", item.name)


def pytest_terminal_summary(terminalreporter):
    stats = terminalreporter.stats.items()
    reports = [(word, report) for word, reports in stats for report in reports if hasattr(report, "when")]
    OUTCOMES.write_text("".join(f"{word}\\t{report.nodeid}\\n" for word, report in reports if word))
"""


class Project:
    """A folder with servers.yaml, a conftest.py that notes what happens, and tests."""

    def __init__(self, path: Path, run: Callable[..., pytest.RunResult]) -> None:
        """Write what every project has.

        Args:
            path: An empty folder.
            run: Runs pytest there, with these arguments.
        """
        self.path = path
        self.on_workers = False
        self._run = run
        self.files(helpers=HELPERS, conftest=CONFTEST)

    def conftest(self, text: str) -> None:
        """Add to the conftest.py."""
        self.files(conftest=CONFTEST + text)

    def files(self, **texts: str) -> None:
        """Write Python files."""
        for name, text in texts.items():
            (self.path / f"{name}.py").write_text(textwrap.dedent(text))

    def servers(self, defaults: dict[str, Any] | None = None, **servers: list[str] | dict[str, Any]) -> None:
        """Write a servers.yaml of fake servers, each with these arguments, or of servers with these blocks."""
        write_servers(self.path, defaults, **servers)

    def run(self, *arguments: str, plugins: tuple[str, ...] = ()) -> pytest.RunResult:
        """Run pytest on the project, with its servers.yaml if there is one."""
        config = ["--infserver-config", "servers.yaml"] if (self.path / "servers.yaml").exists() else []
        return self.bare(*config, *arguments, plugins=plugins)

    def bare(self, *arguments: str, plugins: tuple[str, ...] = ()) -> pytest.RunResult:
        """Run pytest without a configuration."""
        if self.on_workers:
            plugins, arguments = ("xdist", *plugins), ("-n2", *arguments)
        chosen = [word for name in ("pytest_infserver.plugin", *plugins) for word in ("-p", name)]
        return self._run(*chosen, *arguments)

    def events(self, *kinds: str, of: Collection[str] = ()) -> list[str]:
        """Return what has happened, in order; if names are given, only what has happened to them."""
        file = self.path / "events.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        found = [line for line in lines if not kinds or line.split()[0] in kinds]
        return [line for line in found if not of or line.split()[1] in of]

    def outcomes(self, file: str) -> dict[str, int]:
        """Return what has become of the tests of one file in the last run, as ``RunResult.parseoutcomes`` does."""
        lines = (line.split("\t") for line in (self.path / "outcomes.txt").read_text().splitlines())
        words = [word for word, test in lines if test.partition("::")[0] == f"{file}.py"]
        return {"errors" if word == "error" else word: words.count(word) for word in words}


@pytest.fixture
def project(
    pytester: pytest.Pytester, run_pytest: Callable[..., pytest.RunResult], monkeypatch: pytest.MonkeyPatch
) -> Project:
    """A project whose runs are processes of their own, as a user's are."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return Project(pytester.path, run_pytest)


@pytest.fixture
def inline_project(pytester: pytest.Pytester, run_inline: Callable[..., pytest.RunResult]) -> Project:
    """A project whose runs happen in this process and leave no trace in it: quick.

    For what a run reads, refuses, chooses, collects and prints, and for what it does with servers in the right order;
    not for what happens to its process.
    """
    pytester.syspathinsert()
    return Project(pytester.path, run_inline)


@pytest.fixture(params=[pytest.param("alone", marks=pytest.mark.promise), "n2"], ids=str)
def twin_project(request: pytest.FixtureRequest) -> Project:
    """A project whose runs are in this process, and in a second test processes of their own, on two workers."""
    if request.param == "alone":
        return request.getfixturevalue("inline_project")
    pytest.importorskip("xdist")
    project = request.getfixturevalue("project")
    project.on_workers = True
    return project


@pytest.fixture(scope="module")
def shared_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Project]]:
    """Make projects for runs that many tests of a module look at: their results are fixtures of the module."""
    with no_process_left() as token:
        environment = {**cleaned_environment(), "INFSERVER_TEST_TOKEN": token, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

        def make(**variables: str) -> Project:
            path = tmp_path_factory.mktemp("project")
            (path / "pytest.ini").write_text("[pytest]\n")
            return Project(path, partial(run_in, path, {**environment, **variables}))

        yield make


SHARED_LIMIT = 3 * HARD_LIMIT
"""Seconds after which a run of many tests counts as hung."""


def run_in(folder: Path, environment: Mapping[str, str], *arguments: str) -> pytest.RunResult:
    """Run pytest in a subprocess, in a folder, with a hard time limit."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={folder}-temp", *arguments]
    begin = time.monotonic()
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environment, "PYTHONPATH": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SHARED_LIMIT,
        check=False,
    )
    print(done.stdout, done.stderr, sep="\n")
    return pytest.RunResult(
        done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), time.monotonic() - begin
    )


@pytest.fixture(params=[(), ("-n2",)], ids=["alone", "n2"])
def run(request: pytest.FixtureRequest, project: Project) -> Callable[..., pytest.RunResult]:
    """Run the project, alone or on two workers."""
    plugins = ("xdist",) if request.param else ()
    return lambda *arguments: project.run(*request.param, *arguments, plugins=plugins)


def quiet(result: pytest.RunResult) -> str:
    """Return what a run showed; it must not show the inside of the plugin or of pytest."""
    text = result.stdout.str() + result.stderr.str()
    # The state of a server names its command, which may be one of the package's own programs.
    shown = re.sub(r"^command: .*$", "", text.replace("pluggy-", ""), flags=re.M)
    for sign in ("INTERNALERROR", "Traceback (most recent call last)", "pytest_infserver/", "_pytest/", "pluggy"):
        assert sign not in shown, text
    return text


@pytest.fixture(name="quiet")
def quiet_fixture() -> Callable[[pytest.RunResult], str]:
    return quiet
