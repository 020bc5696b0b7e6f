"""A small project with the fake engine in which pytest runs with this plugin, and nothing else unless asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

HELPERS = """
import http.client
import json
import os
import pathlib
import urllib.request

EVENTS = pathlib.Path(__file__).parent / "events.txt"
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
from helpers import alive, note

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
"""


class Project:
    """A folder with servers.yaml, a conftest.py that notes what happens, and tests."""

    def __init__(self, pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
        self.pytester = pytester
        self.path: Path = pytester.path
        self._run = run
        pytester.makepyfile(helpers=HELPERS)
        pytester.makeconftest(CONFTEST)

    def conftest(self, text: str) -> None:
        """Add to the conftest.py."""
        self.pytester.makeconftest(CONFTEST + text)

    def files(self, **texts: str) -> None:
        """Write Python files."""
        self.pytester.makepyfile(**texts)

    def run(self, *arguments: str, plugins: tuple[str, ...] = ()) -> pytest.RunResult:
        """Run pytest on the project, with its servers.yaml if there is one."""
        config = ["--infserver-config", "servers.yaml"] if (self.path / "servers.yaml").exists() else []
        return self.bare(*config, *arguments, plugins=plugins)

    def bare(self, *arguments: str, plugins: tuple[str, ...] = ()) -> pytest.RunResult:
        """Run pytest without a configuration."""
        chosen = [word for name in ("pytest_infserver.plugin", *plugins) for word in ("-p", name)]
        return self._run(*chosen, *arguments)

    def events(self, *kinds: str) -> list[str]:
        """Return what has happened, in order."""
        file = self.path / "events.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line for line in lines if not kinds or line.split()[0] in kinds]


@pytest.fixture
def project(
    pytester: pytest.Pytester, run_pytest: Callable[..., pytest.RunResult], monkeypatch: pytest.MonkeyPatch
) -> Project:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return Project(pytester, run_pytest)


@pytest.fixture(params=[(), ("-n2",)], ids=["alone", "n2"])
def run(request: pytest.FixtureRequest, project: Project) -> Callable[..., pytest.RunResult]:
    """Run the project, alone or on two workers."""
    if request.param:
        pytest.importorskip("xdist")
    plugins = ("xdist",) if request.param else ()
    return lambda *arguments: project.run(*request.param, *arguments, plugins=plugins)


def quiet(result: pytest.RunResult) -> str:
    """Return what a run showed; it must not show the inside of the plugin or of pytest."""
    text = result.stdout.str() + result.stderr.str()
    for sign in ("INTERNALERROR", "Traceback (most recent call last)", "pytest_infserver/", "_pytest/", "pluggy"):
        assert sign not in text.replace("pluggy-", ""), text
    return text


@pytest.fixture(name="quiet")
def quiet_fixture() -> Callable[[pytest.RunResult], str]:
    return quiet
