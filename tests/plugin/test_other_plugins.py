"""Other plugins, and pytest's own options, beside this one."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

TESTS = """
import pytest
from helpers import get
@pytest.mark.parametrize("n", range(4))
def test_it(inference_server, n): get(inference_server, "/health")
class TestClass:
    def test_it(self, inference_server): get(inference_server, "/health")
"""


@pytest.mark.parametrize("arguments", [("--dist=load",), ("--dist=each",), ("--dist=loadscope", "-x")])
def test_xdist(project, servers_yaml, arguments) -> None:
    pytest.importorskip("xdist")
    servers_yaml({"stop_timeout": 5}, a=[], b=[])
    project.files(test_1=TESTS, test_2=TESTS)
    result = project.run("-n2", *arguments, plugins=("xdist.plugin",))
    assert result.ret == 0
    result.assert_outcomes(passed=40 if "each" in arguments[0] else 20)
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    assert len(project.events("started")) == len(project.events("stopped"))


def test_xdist_and_what_goes_wrong(project, servers_yaml, quiet) -> None:
    pytest.importorskip("xdist")
    servers_yaml(
        {"debug_mode": True, "stop_timeout": 1}, a=["--children", "1", "--stubborn-children", "--forget-children"]
    )
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
    project.files(test_2="import pytest\n@pytest.mark.infserver(7)\ndef test_bad(inference_server): pass\n")
    assert "infserver(7): names must be texts" in quiet(project.run("-n2", plugins=("xdist.plugin",)))
    (project.path / "servers.yaml").write_text("servers: {a: {backend: nosuch}}\n")
    result = project.run("-n2", plugins=("xdist.plugin",))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "unknown backend 'nosuch'" in quiet(result)


def test_randomly_keeps_the_tests_of_a_server_together(project, servers_yaml) -> None:
    pytest.importorskip("pytest_randomly")
    servers_yaml(a=[], b=[])
    project.files(test_1=TESTS, test_2=TESTS)
    result = project.run(plugins=("pytest_randomly",))
    result.assert_outcomes(passed=20)
    assert len(project.events("started")) == len(project.events("stopped")) == 2


def test_rerunfailures_gets_a_living_server(project, servers_yaml) -> None:
    pytest.importorskip("pytest_rerunfailures")
    servers_yaml(a=[], b=[])
    project.files(
        test_1="""
        import pytest
        from helpers import get, kill
        runs = []
        @pytest.fixture(scope="session")
        def dependent(inference_server):
            yield inference_server
            get(inference_server, "/health")
        def test_dies(inference_server):
            runs.append(inference_server.name)
            if runs.count(inference_server.name) < 3: kill(inference_server)
            get(inference_server, "/health")
        def test_fails(dependent):
            get(dependent, "/health")
            runs.append("fails " + dependent.name)
            assert runs.count("fails " + dependent.name) == 2
        """
    )
    result = project.run("--reruns=2", "-v", plugins=("pytest_rerunfailures",))
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["*4 passed, 6 rerun*"])
    assert [project.events().count(f"{word} a") for word in ("started", "stopping")] == [3, 1]


def test_a_boot_is_no_business_of_pytest_timeout(project, servers_yaml) -> None:
    pytest.importorskip("pytest_timeout")
    servers_yaml(a=["--delay", "1.5", "--stop-delay", "1.5"])
    project.files(
        test_1="""
        import time
        def test_1(inference_server): pass
        def test_2(inference_server): time.sleep(60)
        def test_3(inference_server): pass
        """
    )
    result = project.run("--timeout=1", plugins=("pytest_timeout",))
    result.assert_outcomes(passed=2, failed=1)
    assert project.events("started", "stopped") == ["started a", "stopped a gone"]


def test_asyncio(project, servers_yaml) -> None:
    pytest.importorskip("pytest_asyncio")
    servers_yaml(a=[], b=[])
    project.files(
        test_1="""
        import asyncio, pytest, pytest_asyncio
        from helpers import get, note
        @pytest_asyncio.fixture(loop_scope="session", scope="session")
        async def dependent(inference_server):
            yield inference_server
            await asyncio.to_thread(get, inference_server, "/health")
            note("finished", inference_server.name)
        @pytest.mark.asyncio
        async def test_1(inference_server): await asyncio.to_thread(get, inference_server, "/health")
        @pytest.mark.asyncio(loop_scope="session")
        async def test_2(dependent): await asyncio.to_thread(get, dependent, "/health")
        """
    )
    result = project.run("-o", "asyncio_default_fixture_loop_scope=function", plugins=("pytest_asyncio.plugin",))
    result.assert_outcomes(passed=4)
    for name in "ab":
        assert [line for line in project.events("finished", "stopped") if line.split()[1] == name] == [
            f"finished {name}",
            f"stopped {name} gone",
        ]


WRONG = """
import pytest
from helpers import get, kill
def test_fails(inference_server): get(inference_server, "/say?text=%1b[31m<red>%00") or 1 / 0
def test_dies(inference_server): kill(inference_server)
def test_leaks(inference_server): pass
"""


def test_reports_in_files_are_well_formed(project, servers_yaml) -> None:
    servers_yaml(
        {"debug_mode": True, "stop_timeout": 1}, a=["--children", "1", "--stubborn-children", "--forget-children"]
    )
    project.files(test_1=WRONG)
    plugins: tuple[str, ...] = ()
    arguments = ["--junitxml=junit.xml", "-o", "junit_logging=all"]
    try:
        import pytest_html  # noqa: F401
    except ImportError:
        pass
    else:
        plugins = ("pytest_html.plugin", "pytest_metadata.plugin")
        arguments += ["--html=report.html", "--self-contained-html"]
    result = project.run(*arguments, plugins=plugins)
    result.assert_outcomes(passed=1, failed=2, errors=1)
    suite = ET.parse(project.path / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("failures"), suite.get("errors")) == ("2", "1")
    assert "left behind a process" in (suite.findtext(".//error") or "")
    if plugins:
        html = (project.path / "report.html").read_text()
        assert "test_leaks[a]" in html
        assert "log during this test" in html
        assert "left behind a process" in html


def test_without_some_of_pytests_own_plugins_and_with_warnings_as_errors(project, servers_yaml) -> None:
    servers_yaml(a=["--children", "1"], b=[])
    project.files(
        test_1="""
        def test_1(inference_server): assert inference_server.check_health()
        def test_2(inference_server, inference_server_factory): inference_server_factory("a")
        """
    )
    for arguments in (
        ["-p", "no:terminal"],
        ["-p", "no:junitxml", "-p", "no:unittest", "-p", "no:doctest", "-q"],
        ["-s"],
    ):
        assert project.run("-W", "error", *arguments).ret == 0, arguments
    (project.path / "conftest.py").unlink()
    (project.path / "helpers.py").unlink()
    assert project.run("--import-mode=importlib", "-vv").ret == 0
    result = project.run("-p", "no:terminal", "--infserver-dry-run")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["a: *"])
    assert project.run("-p", "no:skipping").ret == 0


LATE = ("requests", "yaml", "psutil", "openai")


def test_the_plugin_loads_without_what_it_needs_later() -> None:
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
