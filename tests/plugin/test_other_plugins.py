"""Other plugins, and pytest's own options, beside this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET

import pytest
from fake_servers import fake_block
from installed import installed

TESTS = """
import pytest
from helpers import get
@pytest.mark.parametrize("n", range(4))
def test_it(inference_server, n): get(inference_server, "/health")
class TestClass:
    def test_it(self, inference_server): get(inference_server, "/health")
"""
LEAKY = fake_block("--children", "1", "--stubborn-children", "--forget-children", debug_mode=True, stop_timeout=1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--dist=load",),
        pytest.param(("--dist=each",), marks=pytest.mark.promise),
        ("--dist=loadscope", "-x"),
    ],
)
def test_xdist(project, arguments) -> None:
    pytest.importorskip("xdist")
    project.servers({"stop_timeout": 5}, a=[], b=[])
    project.files(test_1=TESTS, test_2=TESTS)
    result = project.run("-n2", *arguments, plugins=("xdist.plugin",))
    assert result.ret == 0
    result.assert_outcomes(passed=40 if "each" in arguments[0] else 20)
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    assert len(project.events("started")) == len(project.events("stopped"))


def test_xdist_and_what_goes_wrong(project) -> None:
    pytest.importorskip("xdist")
    project.servers(a=LEAKY)
    project.files(
        test_1="""
        import pytest
        from helpers import get, kill
        def test_1(inference_server): kill(inference_server)
        def test_2(inference_server): get(inference_server, "/say?text=some-words") or 1 / 0
        """
    )
    result = project.run("-n1", plugins=("xdist.plugin",))
    result.assert_outcomes(failed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_2*", "*left behind a process*"])
    assert "some-words" in result.stdout.str()


def test_xdist_and_a_marker_that_is_wrong(project, quiet) -> None:
    pytest.importorskip("xdist")
    project.servers(a=[])
    project.files(test_2="import pytest\n@pytest.mark.infserver(7)\ndef test_bad(inference_server): pass\n")
    assert "infserver(7): names must be texts" in quiet(project.run("-n2", plugins=("xdist.plugin",)))


def test_xdist_and_a_configuration_that_is_wrong(inline_project, quiet) -> None:
    pytest.importorskip("xdist")
    (inline_project.path / "servers.yaml").write_text("servers: {a: {backend: nosuch}}\n")
    # No worker is started for it.
    result = inline_project.run("-n2", plugins=("xdist.plugin",))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "unknown backend 'nosuch'" in quiet(result)


@pytest.mark.promise
def test_randomly_shuffles_and_each_server_starts_once(inline_project) -> None:
    pytest.importorskip("pytest_randomly")
    inline_project.servers(a=[], b=[])
    inline_project.files(test_1=TESTS, test_2=TESTS)
    result = inline_project.run("--infserver-max-servers=2", plugins=("pytest_randomly",))
    result.assert_outcomes(passed=20)
    assert len(inline_project.events("started")) == len(inline_project.events("stopped")) == 2


@pytest.fixture(scope="module")
def beside(shared_project):
    """A project that uses many other plugins, each in a file of tests with servers of its own; and what it showed."""
    project = shared_project()
    plugins = installed("pytest_rerunfailures", "pytest_timeout", "pytest_asyncio.plugin")
    plugins += installed("pytest_html.plugin", "pytest_metadata.plugin")
    project.servers(
        rerun_a=[],
        rerun_b=[],
        boots=["--delay", "1.5", "--stop-delay", "1.5"],
        async_a=[],
        async_b=[],
        wrong=LEAKY,
    )
    project.files(test_wrong=WRONG)
    arguments = ["-v", "--junitxml=junit.xml", "-o", "junit_logging=all"]
    if "pytest_rerunfailures" in plugins:
        project.files(test_rerun=RERUN)
    if "pytest_timeout" in plugins:
        project.files(test_timeout=TIMEOUT)
    if "pytest_asyncio.plugin" in plugins:
        project.files(test_asyncio=ASYNCIO)
        arguments += ["-o", "asyncio_default_fixture_loop_scope=function"]
    if "pytest_html.plugin" in plugins:
        arguments += ["--html=report.html", "--self-contained-html"]
    return project, project.run(*arguments, plugins=plugins)


RERUN = """
import pytest
from helpers import get, kill
pytestmark = [pytest.mark.infserver("rerun_a", "rerun_b"), pytest.mark.flaky(reruns=2)]
runs = []
@pytest.fixture(scope="session")
def dependent(inference_server):
    yield inference_server
    get(inference_server, "/health")
def test_dies_twice(inference_server):
    runs.append(inference_server.name)
    if runs.count(inference_server.name) < 3: kill(inference_server)
    get(inference_server, "/health")
def test_fails_once(dependent):
    get(dependent, "/health")
    runs.append("fails " + dependent.name)
    assert runs.count("fails " + dependent.name) == 2
"""


def test_rerunfailures_gets_a_living_server(beside) -> None:
    pytest.importorskip("pytest_rerunfailures")
    project, _ = beside
    assert project.outcomes("test_rerun") == {"passed": 4, "rerun": 6}
    assert [project.events().count(f"{word} rerun_a") for word in ("started", "stopping")] == [3, 1]


TIMEOUT = """
import pytest, time
pytestmark = [pytest.mark.infserver("boots"), pytest.mark.timeout(1)]
def test_before_the_limit(inference_server): pass
def test_too_long(inference_server): time.sleep(60)
def test_after_the_limit(inference_server): pass
"""


@pytest.mark.promise
def test_a_boot_is_no_business_of_pytest_timeout(beside) -> None:
    pytest.importorskip("pytest_timeout")
    project, _ = beside
    assert project.outcomes("test_timeout") == {"passed": 2, "failed": 1}
    assert project.events("started", "stopped", of=["boots"]) == ["started boots", "stopped boots gone"]


ASYNCIO = """
import asyncio, pytest, pytest_asyncio
from helpers import get, note
pytestmark = pytest.mark.infserver("async_*")
@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def dependent(inference_server):
    yield inference_server
    await asyncio.to_thread(get, inference_server, "/health")
    note("finished", inference_server.name)
@pytest.mark.asyncio
async def test_loop(inference_server): await asyncio.to_thread(get, inference_server, "/health")
@pytest.mark.asyncio(loop_scope="session")
async def test_dependent(dependent): await asyncio.to_thread(get, dependent, "/health")
"""


@pytest.mark.promise
def test_asyncio(beside) -> None:
    pytest.importorskip("pytest_asyncio")
    project, _ = beside
    assert project.outcomes("test_asyncio") == {"passed": 4}
    for name in ("async_a", "async_b"):
        assert project.events("finished", "stopped", of=[name]) == [f"finished {name}", f"stopped {name} gone"]


WRONG = """
import pytest
from helpers import get, kill
pytestmark = pytest.mark.infserver("wrong")
def test_says_and_fails(inference_server): get(inference_server, "/say?text=%1b[31m<red>%00") or 1 / 0
def test_dies(inference_server): kill(inference_server)
def test_leaks(inference_server): pass
"""


@pytest.mark.promise
def test_reports_in_files_are_well_formed(beside) -> None:
    project, _ = beside
    assert project.outcomes("test_wrong") == {"passed": 1, "failed": 2, "errors": 1}
    suite = ET.parse(project.path / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    cases = [case for case in suite.iter("testcase") if case.get("classname") == "test_wrong"]
    assert [sum(case.find(word) is not None for case in cases) for word in ("failure", "error")] == [2, 1]
    # That of the test that was too long is the only one of the other files.
    failures = 3 if (project.path / "test_timeout.py").exists() else 2
    assert (suite.get("failures"), suite.get("errors")) == (str(failures), "1")
    assert "left behind a process" in (suite.findtext(".//error") or "")
    if installed("pytest_html"):
        html = (project.path / "report.html").read_text()
        assert "test_leaks[wrong]" in html
        assert "log during this test" in html
        assert "left behind a process" in html


BESIDE_NOTHING = """
def test_1(inference_server): assert inference_server.check_health()
def test_2(inference_server, inference_server_factory): inference_server_factory("a")
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["-p", "no:terminal"],
        ["-p", "no:junitxml", "-p", "no:unittest", "-p", "no:doctest", "-q"],
        ["-s", "-p", "no:skipping"],
    ],
    ids=["no-terminal", "quiet", "no-capture"],
)
def test_without_some_of_pytests_own_plugins_and_with_warnings_as_errors(project, arguments) -> None:
    project.servers(a=["--children", "1"], b=[])
    project.files(test_1=BESIDE_NOTHING)
    assert project.run("-W", "error", *arguments).ret == 0


def test_without_some_of_pytests_own_plugins_and_with_other_imports(inline_project) -> None:
    inline_project.servers(a=["--children", "1"], b=[])
    inline_project.files(test_1=BESIDE_NOTHING)
    (inline_project.path / "conftest.py").unlink()
    (inline_project.path / "helpers.py").unlink()
    assert inline_project.run("--import-mode=importlib", "-vv").ret == 0
    result = inline_project.run("-p", "no:terminal", "--infserver-dry-run")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["a: *"])
    assert inline_project.run("-p", "no:skipping").ret == 0


LATE = ("requests", "yaml", "psutil", "openai")


WAYS = ["", "-p infserver", "-p pytest_infserver", "-p pytest_infserver.plugin", "conftest", "its package", "variable"]


@pytest.mark.parametrize("autoload", [True, False], ids=["autoload", "by hand"])
@pytest.mark.parametrize("way", WAYS)
def test_however_often_it_is_loaded_it_is_one_plugin(project, monkeypatch, way, autoload) -> None:
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    words = way.split() if way.startswith("-p") else []
    if not autoload:
        words += ["--disable-plugin-autoload", *(() if way else ("-p", "infserver"))]
    if way == "variable":
        monkeypatch.setenv("PYTEST_PLUGINS", "pytest_infserver.plugin")
    named = {"conftest": "pytest_infserver.plugin", "its package": "pytest_infserver"}.get(way)
    (project.path / "conftest.py").write_text(f"pytest_plugins = [{named!r}]\n" if named else "")
    project.servers(a=[])
    project.files(test_1="def test_1(inference_server): assert inference_server.check_health()\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:asyncio", *words, "--infserver-config=servers.yaml"]
    done = subprocess.run(command, cwd=project.path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_it_can_be_left_out(project, monkeypatch) -> None:
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    project.files(test_1="def test_1(): pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:infserver", "-p", "no:asyncio", "--help"]
    done = subprocess.run(command, cwd=project.path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0
    assert "--infserver" not in done.stdout


def test_the_plugin_loads_without_what_it_needs_later(nothing_left) -> None:
    code = f"import sys, pytest_infserver.plugin; print(*[name for name in {LATE} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


def test_an_empty_run_loads_none_of_it_either(project) -> None:
    project.conftest(
        f"""
import sys

LATE = {LATE}

def pytest_unconfigure():
    note("loaded", *(name for name in LATE if name in sys.modules))
"""
    )
    project.files(test_1="def test_1(): pass")
    assert project.bare().ret == 0
    assert project.events("loaded") == ["loaded"]


def test_looponfail_waits_for_a_change_of_the_user(project, nothing_left) -> None:
    pytest.importorskip("xdist")
    project.servers(a=[])
    # The project notes in files of its own what happens, which would be changes.
    project.files(test_1="def test_1(inference_server): assert 0\n", conftest="")
    output = project.path.with_name(f"{project.path.name}-output")
    words = ["-p", "pytest_infserver.plugin", "-p", "xdist.looponfail", "-p", "xdist", "-p", "no:cacheprovider", "-f"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with output.open("w") as file:
        command = [sys.executable, "-m", "pytest", *words, "--infserver-config=servers.yaml"]
        run = subprocess.Popen(
            command,
            cwd=project.path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 60
        while "waiting for changes" not in output.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        # It looks every two seconds.
        time.sleep(5)
        assert output.read_text().count("waiting for changes") == 1, output.read_text()
        assert (project.path / ".server_logs" / "a" / "server.log").exists()
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
