"""Backends and hooks of the project that raise: one run, alone and on two workers, that is looked at by many tests."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_infserver.launcher.backends import registry

HARD_LIMIT = 120.0
ENGINE = str(Path(__file__).parent.parent / "fake_engine.py")
COMMAND = [sys.executable, "-S", ENGINE, "--host", "{host}", "--port", "{port}"]

BACKENDS = """
import os
import pytest
from pytest_infserver import CommandServer

IN_WORKER = "PYTEST_XDIST_WORKER" in os.environ


class Base(CommandServer):
    def get_backend_name(self): return type(self).__name__.lower()


class Command(Base):
    def get_launch_command(self): raise KeyError("users bug: command")


class Exits(Base):
    def get_binary_path(self): raise SystemExit("users bug: binary")


class Health(Base):
    def get_health_endpoint(self): pytest.skip("users bug: health")


class Sick(Base):
    def get_health_endpoint(self):
        if self.running: raise ConnectionError("users bug: sick")
        return super().get_health_endpoint()


class Ports(Base):
    def derived_ports(self, port): raise OSError(5, "users bug: ports")


class Cause(Base):
    @property
    def cause_patterns(self): raise KeyError("users bug: cause")


class Key(Base):
    @property
    def api_key_variables(self):
        if self.running: raise KeyError("users bug: key")
        return ()


class Leftovers(Base):
    @property
    def known_leftovers(self): raise KeyError("users bug: leftovers")


class Endpoints(Base):
    def list_endpoints(self): raise LookupError("users bug: endpoints")
"""
CONFTEST = """
import pytest

def pytest_infserver_server_started(server):
    if server.name == "started": raise SystemExit("users bug: started")

def pytest_infserver_server_stopping(server):
    if server.name == "stopping": raise OSError(5, "users bug: stopping")

def pytest_infserver_server_stopped(server):
    if server.name == "stopped": pytest.skip("users bug: stopped")
"""
TESTS = """
import os, signal, pytest
server = pytest.mark.infserver

@server("command")
def test_command(inference_server): pass

@server("exits")
def test_exits(inference_server): pass

@server("health")
def test_health(inference_server): pass

@server("sick")
def test_sick(inference_server): assert 0, "it fails"

@server("sick")
def test_sick_asked(inference_server): inference_server.check_health()

@server("ports")
def test_ports(inference_server): pass

@server("cause")
def test_cause(inference_server):
    os.kill(inference_server.pid, signal.SIGKILL)
    inference_server.wait_death(20)

@server("key")
def test_key(inference_server): assert 0, "it fails"

@server("key")
def test_client(inference_client): pass

@server("leftovers")
def test_leftovers(inference_server): pass

@server("endpoints")
def test_endpoints(inference_server):
    with pytest.raises(LookupError): inference_server.list_endpoints()

@server("started")
def test_started(inference_server): pass

@server("stopping")
def test_stopping(inference_server): pass

@server("stopped")
def test_stopped(inference_server): pass

@server("fine")
def test_fine(inference_server): assert inference_server.check_health()

def test_factory(inference_server_factory): inference_server_factory("command")

def test_plain(): pass
"""
NAMES = ["command", "exits", "health", "sick", "ports", "cause", "key", "leftovers", "endpoints"]
HOOKED = ["started", "stopping", "stopped", "fine"]


@dataclasses.dataclass
class Looked:
    """A run that is over.

    Attributes:
        text: What it has shown.
        status: Its exit status.
        tests: Of each test what its reports say: kind and text.
    """

    text: str
    status: int
    tests: dict[str, list[tuple[str, str]]]


def run_project(folder: Path, *arguments: str) -> Looked:
    """Run pytest in a folder; nothing may be left of it."""
    token = f"infserver-test-{os.getpid()}-{folder.name}"
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "pytest_infserver.plugin", "-v"]
    words += ["--junitxml", "junit.xml", *arguments]
    variables = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "INFSERVER_TEST_TOKEN": token, "INFSERVER_DEVICE_LOCKS": "0"}
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("INFSERVER_", "PYTEST_"))}
    done = subprocess.run(
        words, cwd=folder, env={**ours, **variables}, capture_output=True, text=True, timeout=HARD_LIMIT, check=False
    )
    tests: dict[str, list[tuple[str, str]]] = {}
    for case in ET.parse(folder / "junit.xml").iter("testcase"):
        found = tests.setdefault(str(case.get("name")).partition("[")[0], [])
        found += [
            (part.tag, f"{part.get('message')}\n{part.text}") for part in case if part.tag in ("failure", "error")
        ]
    return Looked(done.stdout + done.stderr, done.returncode, tests)


def write_project(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)


@pytest.fixture(
    scope="module",
    params=[(), pytest.param(("-p", "xdist", "-n2"), marks=pytest.mark.nightly)],
    ids=["alone", "n2"],
)
def looked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shared_project: object) -> Looked:
    if request.param:
        pytest.importorskip("xdist")
    folder = tmp_path_factory.mktemp("project")
    write_project(folder, mine=BACKENDS, conftest=CONFTEST, test_1=TESTS)
    servers: dict[str, Any] = {name: {"backend": f"mine:{name.capitalize()}"} for name in NAMES}
    servers |= {name: {"backend": "command"} for name in HOOKED}
    servers["leftovers"]["debug_mode"] = True
    defaults = {"launch_command": COMMAND, "startup_timeout": 30, "heartbeat_interval": 0.2}
    (folder / "servers.yaml").write_text(yaml.safe_dump({"defaults": defaults, "servers": servers}))
    # Room for all: one that makes way on a slow machine would be stopped, and fail, twice.
    words = ["--infserver-config", "servers.yaml", "--infserver-max-servers=20"]
    return run_project(folder, *words, *request.param)


def test_the_run_goes_to_its_end_and_shows_nothing_of_the_inside(looked) -> None:
    assert "INTERNALERROR" not in looked.text
    assert "pytest_infserver/" not in looked.text
    assert "PytestUnhandledThreadExceptionWarning" not in looked.text
    assert looked.status == 1
    assert {"test_fine", "test_plain", "test_endpoints"} <= {name for name, found in looked.tests.items() if not found}


@pytest.mark.parametrize(
    ("name", "method", "error"),
    [
        ("command", "Command.get_launch_command()", "KeyError: 'users bug: command'"),
        ("exits", "Exits.get_binary_path()", "SystemExit: users bug: binary"),
        ("health", "Health.get_health_endpoint()", "Skipped: users bug: health"),
        ("ports", "Ports.derived_ports()", "OSError: [Errno 5] users bug: ports"),
        ("started", "the hook pytest_infserver_server_started", "SystemExit: users bug: started"),
    ],
)
def test_at_the_start_the_test_has_an_error_with_the_users_traceback(looked, name, method, error) -> None:
    found = looked.tests[f"test_{name}"]
    assert len(found) == 1, found
    ((kind, text),) = found
    assert kind == "error"
    assert f"{method} raised {error}" in text
    # The same server fails in the factory's test, too: all of it is shown once.
    assert (
        "all of it is shown with test_1.py::test_factory" in text
        or ("conftest.py" if name == "started" else "mine.py") in text
    )


@pytest.mark.parametrize("name", ["stopping", "stopped", "leftovers"])
def test_at_the_stop_the_last_test_has_an_error_with_the_users_traceback(looked, name) -> None:
    found = looked.tests[f"test_{name}"]
    assert len(found) == 1, found
    ((kind, text),) = found
    assert kind == "error"
    assert f"users bug: {name}" in text
    assert "Traceback" in text


def test_in_the_report_of_a_failed_test_it_is_shown_beside_the_failure(looked) -> None:
    ((kind, text),) = looked.tests["test_sick"]
    assert (kind, "it fails" in text) == ("failure", True)
    assert "sick: its backend failed while this was reported" in looked.text
    assert "ConnectionError: users bug: sick" in looked.text
    ((kind, text),) = looked.tests["test_sick_asked"]
    assert kind == "failure"
    assert "Sick.get_health_endpoint() raised ConnectionError" in text


def test_in_what_the_report_needs_of_the_backend_it_is_shown_beside_the_failure(looked) -> None:
    ((kind, text),) = looked.tests["test_key"]
    assert (kind, "it fails" in text) == ("failure", True)


def test_at_a_death_the_cause_is_that_nobody_can_tell(looked) -> None:
    ((kind, text),) = looked.tests["test_cause"]
    assert kind == "failure"
    assert "was killed by SIGKILL" in text or "was killed by SIGKILL" in looked.text
    assert "Cause.cause_patterns raised KeyError: 'users bug: cause'" in looked.text


def test_of_the_factory_the_test_fails_with_the_users_traceback(looked) -> None:
    ((kind, text),) = looked.tests["test_factory"]
    assert kind == "failure"
    assert "Command.get_launch_command() raised KeyError: 'users bug: command'" in text
    # The same server fails in another test, too: all of it is shown once.
    assert "all of it is shown with test_1.py::test_command" in text or "mine.py" in text


def test_of_a_client_the_test_has_an_error_with_the_users_traceback(looked) -> None:
    pytest.importorskip("openai")
    ((kind, text),) = looked.tests["test_client"]
    assert kind == "error"
    assert "Key.api_key" in text
    assert "KeyError: 'users bug: key'" in text


# Whole runs that end otherwise.


@pytest.mark.parametrize("workers", [(), ("-p", "xdist", "-n2")], ids=["alone", "n2"])
@pytest.mark.parametrize("moment", ["started", "stopped"])
@pytest.mark.run
@pytest.mark.usefixtures("nothing_left")
def test_pytest_exit_in_a_hook_ends_the_run_in_order(tmp_path: Path, moment: str, workers: tuple[str, ...]) -> None:
    if workers:
        pytest.importorskip("xdist")
    hook = f"import pytest\ndef pytest_infserver_server_{moment}(server): pytest.exit('users wish', returncode=7)\n"
    write_project(tmp_path, conftest=hook, test_1="def test_1(inference_server): pass\n")
    (tmp_path / "servers.yaml").write_text(yaml.safe_dump({"backend": "command", "launch_command": COMMAND}))
    done = run_project(tmp_path, "--infserver-config", "servers.yaml", *workers)
    assert "INTERNALERROR" not in done.text
    assert "users wish" in done.text
    assert done.status == 7


@pytest.mark.parametrize("config", [(), ("--infserver-config", "servers.yaml")], ids=["lazily", "configured"])
@pytest.mark.run
@pytest.mark.usefixtures("nothing_left")
def test_a_hook_that_raises_only_in_workers_costs_the_tests_that_want_servers(tmp_path: Path, config) -> None:
    pytest.importorskip("xdist")
    hook = """
import os
def pytest_infserver_backends(config):
    if "PYTEST_XDIST_WORKER" in os.environ: raise KeyError("users bug")
    return []
"""
    tests = "def test_1(inference_server_factory): pass\n"
    write_project(tmp_path, conftest=hook, test_1=tests, test_2="def test_2(): pass\n")
    (tmp_path / "servers.yaml").write_text(yaml.safe_dump({"backend": "command", "launch_command": COMMAND}))
    done = run_project(tmp_path, *config, "-p", "xdist", "-n2")
    assert "INTERNALERROR" not in done.text
    assert "node down" not in done.text
    assert done.status == 1
    assert "the hook pytest_infserver_backends raised KeyError: 'users bug'" in done.text
    assert "ERROR test_1.py" in done.text
    assert "pytest_infserver/" not in done.text


# Before the tests.


@pytest.fixture
def in_process(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.RunResult]:
    """Run pytest with the plugin in this process."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr(registry, "_registered", {})
    pytester.makeini("[pytest]\n")
    return lambda *words: pytester.runpytest_inprocess(
        "-p", "no:cacheprovider", "-p", "pytest_infserver.plugin", *words
    )


BROKEN = {
    "hook": "def pytest_infserver_backends(config): raise {error}",
    "get_backend_name": "class Mine(Base):\n    def get_backend_name(self): raise {error}",
    "__init__": "class Mine(Base):\n    def __init__(self, **settings): raise {error}",
    "config_keys": "class Mine(Base):\n    @property\n    def config_keys(self): raise {error}",
    "requires_model": "class Mine(Base):\n    @property\n    def requires_model(self): raise {error}",
    "uses_gpus": "class Mine(Base):\n    @property\n    def uses_gpus(self): raise {error}",
    "changed_options": "class Mine(Base):\n    @property\n    def changed_options(self): raise {error}",
}


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("error", ["KeyError('users bug')", "SystemExit('users bug')", "pytest.skip('users bug')"])
@pytest.mark.parametrize("what", BROKEN)
def test_in_the_configuration_it_is_exit_status_4(pytester, in_process, what: str, error: str) -> None:
    body = BROKEN[what].format(error=error).replace("raise pytest.skip", "pytest.skip")
    hook = "" if what == "hook" else "\ndef pytest_infserver_backends(config): return [Mine]\n"
    pytester.makeconftest(
        "import pytest\nfrom pytest_infserver import InferenceServer\n"
        "class Base(InferenceServer):\n    def get_backend_name(self): return 'mine'\n"
        f"Mine = Base\n{body}\n{hook}"
    )
    pytester.makepyfile("def test_1(inference_server): pass")
    result = in_process("--infserver-backend=mine", "--infserver-model=m")
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == pytest.ExitCode.USAGE_ERROR, text
    assert "users bug" in text
    assert "conftest.py" in text
    assert "INTERNALERROR" not in text
    assert "pytest_infserver/" not in text


def test_without_our_options_it_is_an_error_of_those_who_ask(pytester, in_process) -> None:
    pytester.makeconftest("def pytest_infserver_backends(config): raise KeyError('users bug')")
    pytester.makepyfile(
        test_1="def test_1(inference_server_factory): pass",
        test_2="""
        def test_2(request): request.getfixturevalue("inference_server_factory")
        def test_3(): pass
        """,
    )
    result = in_process("--continue-on-collection-errors")
    result.assert_outcomes(passed=1, failed=1, errors=1)
    text = result.stdout.str()
    assert text.count("the hook pytest_infserver_backends raised KeyError: 'users bug'") >= 2
    assert "pytest_infserver/" not in text


@pytest.mark.parametrize("what", ["get_launch_command", "list_endpoints"])
def test_a_dry_run_tells_it_too(pytester, in_process, what: str) -> None:
    pytester.makeconftest(
        "from pytest_infserver import InferenceServer\n"
        "class Mine(InferenceServer):\n"
        "    def get_backend_name(self): return 'mine'\n"
        "    def get_binary_path(self): return 'x'\n"
        "    def get_launch_command(self): return ['x']\n"
        f"    def {what}(self): raise KeyError('users bug')\n"
        "def pytest_infserver_backends(config): return [Mine]\n"
    )
    result = in_process("--infserver-backend=mine", "--infserver-model=m", "--infserver-dry-run")
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == (4 if what == "get_launch_command" else 0)
    assert ("users bug" in text) == (what == "get_launch_command")
    assert "pytest_infserver/" not in text
