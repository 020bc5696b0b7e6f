"""One pool for all workers of xdist: whatever way the tests are spread, and whatever becomes of a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("xdist")

ENDS = """
import os
import pytest

@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    note("end", item.name, os.environ.get("PYTEST_XDIST_WORKER", "main"))

def pytest_unconfigure(config):
    note("over", getattr(config, "workerinput", {}).get("workerid", "controller"))
"""

SHARED = """
import os, time
import pytest
from helpers import get, note
@pytest.mark.infserver("%s")
class TestIt:
    @pytest.mark.parametrize("n", range(%d))
    def test_it(self, inference_server, n):
        answer = get(inference_server, "/argv")
        assert answer["pid"] == inference_server.pid
        note("pid", inference_server.name, answer["pid"], inference_server.port)
        time.sleep(%s)
"""


@pytest.fixture
def run(project: Any) -> Callable[..., Any]:
    """Run the project on two workers."""
    return lambda *arguments, plugins=(): project.run("-n2", *arguments, plugins=("xdist", *plugins))


@pytest.mark.parametrize(
    ("mode", "random"),
    [
        pytest.param("load", False, marks=pytest.mark.promise),
        ("load", True),
        ("worksteal", True),
        ("loadscope", False),
        ("loadfile", True),
        ("each", False),
        ("each", True),
    ],
)
def test_a_server_starts_once_for_all_workers_and_ends_after_its_last_test(
    project, servers_yaml, run, mode, random
) -> None:
    if random:
        pytest.importorskip("pytest_randomly")
    servers_yaml(a=[], b=[])
    project.conftest(ENDS)
    project.files(test_1=SHARED % ("a", 4, 0.2), test_2=SHARED % ("b", 8, 0.2))
    plugins = ("pytest_randomly",) if random else ()
    result = run(f"--dist={mode}", "--infserver-max-servers=2", plugins=plugins)
    result.assert_outcomes(passed=24 if mode == "each" else 12)
    events = project.events("started", "stopping", "stopped", "end", "over")
    assert sorted(project.events("started")) == ["started a", "started b"]
    assert sorted(project.events("stopped")) == ["stopped a gone", "stopped b gone"]
    assert len(set(project.events("pid"))) == 2
    assert {line.split()[2] for line in project.events("end")} == {"gw0", "gw1"}
    last = {}
    for name in "ab":
        (last[name],) = [max(at for at, line in enumerate(events) if line.startswith("end") and f"-{name}]" in line)]
        assert last[name] < events.index(f"stopping {name}")
    # Not only at the end of the run.
    first = min(last, key=lambda name: last[name])
    assert events.index(f"stopping {first}") < max(last.values())
    assert events[-1] == "over controller"


@pytest.mark.parametrize("mode", ["load", "worksteal"])
def test_with_room_for_one_each_server_starts_once(project, servers_yaml, run, mode) -> None:
    servers_yaml(a=[], b=[], c=[])
    test = """
        import time
        import pytest
        @pytest.mark.parametrize("n", range(3))
        def test_it(inference_server, n): time.sleep(0.05 * n)
        """
    project.files(test_1=test, test_2=test)
    result = run(f"--dist={mode}", "--infserver-max-servers=1")
    result.assert_outcomes(passed=18)
    assert sorted(project.events("started")) == ["started a", "started b", "started c"]
    assert "to make room" not in result.stdout.str()


def test_an_idle_server_is_evicted_rather_than_a_test_blocked(project, servers_yaml, run) -> None:
    servers_yaml(a=[], b=[])
    scope = """
        import pytest
        @pytest.mark.parametrize("n", range({}))
        def test_it(inference_server, n): pass
        """
    # Each worker gets a whole file at a time, which wants both, one after the other.
    project.files(**{f"test_{n}": scope.format(n) for n in (1, 3, 5, 2)})
    result = run("--dist=loadscope", "--infserver-max-servers=1")
    result.assert_outcomes(passed=22)
    starts = len(project.events("started"))
    assert 2 < starts == len(project.events("stopped"))
    result.stdout.fnmatch_lines(["b was stopped * time* to make room for a"])
    words = [line.split() for line in result.stdout.lines if "to make room for" in line]
    assert sum(int(line[line.index("stopped") + 1]) for line in words) == starts - 2


CRASHES = {
    "holding": "os._exit(3)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "fork": """
    if os.fork() == 0:
        # xdist itself waits for the end of its pipes.
        for fd in range(3, 256):
            try:
                if not stat.S_ISSOCK(os.fstat(fd).st_mode): os.close(fd)
            except OSError: pass
        for fd in range(3): os.close(fd)
        time.sleep(5)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
""",
}
CRASHING = """
import os, signal, stat, time
import pytest
from helpers import get, note
""" + "\n".join(f"def test_{name}(inference_server):\n    {body.strip()}\n" for name, body in CRASHES.items())


FINE = """
import time
import pytest
from helpers import get
@pytest.mark.parametrize("n", range(3))
def test_fine(inference_server, n): get(inference_server, "/health")
@pytest.mark.infserver("b", exclusive=True)
@pytest.mark.parametrize("n", range(3))
def test_last(inference_server, n): time.sleep(0.3)
"""


def check_the_ends(project: Any) -> None:
    assert sorted(project.events("started")) == ["started a", "started b"]
    assert sorted(project.events("stopped")) == ["stopped a gone", "stopped b gone"]
    events = project.events("end", "stopping")
    # What was running in the workers that have crashed counts as over.
    last = max(at for at, line in enumerate(events) if line.startswith("end"))
    assert min(events.index(f"stopping {name}") for name in "ab") < last


@pytest.mark.promise
def test_a_crash_of_a_worker_costs_one_test(project, servers_yaml, run) -> None:
    servers_yaml({"startup_timeout": 600}, a=[], b=[])
    project.conftest(ENDS)
    project.files(test_1=CRASHING, test_2=FINE)
    result = run("--infserver-max-servers=2")
    result.assert_outcomes(failed=6, passed=9)
    assert "cannot be had" not in result.stdout.str()
    check_the_ends(project)


def test_a_crash_where_each_worker_runs_each_test(project, servers_yaml, run) -> None:
    servers_yaml(a=[], b=[])
    project.conftest(ENDS)
    crash = "if os.environ['PYTEST_XDIST_WORKER'] == 'gw0': os.kill(os.getpid(), 9)"
    test = f"import os\ndef test_crash(inference_server):\n    {crash}\n"
    # xdist gives up on the tests of a worker whose replacement crashes, too.
    project.files(test_1=test, test_2=FINE)
    result = run("--dist=each", "--infserver-max-servers=2")
    result.assert_outcomes(failed=1, passed=21)
    check_the_ends(project)


def test_a_crash_while_waiting_for_a_server_loses_nothing(project, servers_yaml, run) -> None:
    servers_yaml({"startup_timeout": 600}, slow=["--delay=600"], slower=["--delay=2"])
    project.conftest(
        ENDS
        + """
import signal, threading

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    if "waits" in item.name:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return (yield)
"""
    )
    project.files(
        test_1="""
        import time
        import pytest
        from helpers import get
        @pytest.mark.infserver("slow")
        def test_waits(inference_server): pass
        @pytest.mark.infserver("slow", exclusive=True)
        def test_waits_too(inference_server): pass
        @pytest.mark.infserver("slower")
        @pytest.mark.parametrize("n", range(4))
        def test_slower(inference_server, n): time.sleep(0.5)
        """
    )
    result = run("--infserver-max-servers=2")
    result.assert_outcomes(failed=2, passed=4)
    for name in ("waits", "waits_too"):
        result.stdout.fnmatch_lines_random([f"worker 'gw?' crashed while running 'test_1.py::test_{name}[[]slow]'"])
    # Nobody waits for it any more.
    assert project.events("started", "stopped") == ["started slower", "stopped slower gone"]


def test_a_wait_that_pytest_timeout_ends_loses_no_lease(project, servers_yaml) -> None:
    pytest.importorskip("pytest_timeout")
    servers_yaml(a=["--delay=3"])
    project.files(
        test_1="""
        import pytest
        @pytest.mark.timeout(1)
        def test_1(request): request.getfixturevalue("inference_server")
        """,
        test_2="""
        import pytest
        @pytest.mark.infserver(exclusive=True)
        def test_2(inference_server): inference_server.stop()
        """,
    )
    result = project.run("-n1", "--no-infserver-prelaunch", plugins=("xdist", "pytest_timeout"))
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*Timeout*1.0s*"])
    assert project.events("started", "stopped")[0] == "started a"


@pytest.mark.parametrize("arguments", [("-x",), ("--maxfail=1", "--dist=loadscope"), ("-x", "--dist=each")])
def test_the_first_failure_ends_the_run_while_servers_boot(project, servers_yaml, run, arguments) -> None:
    # Whoever waits for the slow one is ended by the hard limit of the run.
    servers_yaml({"startup_timeout": 600}, slow=["--delay=600"], quick=[])
    project.files(
        test_1="""
        import pytest
        @pytest.mark.infserver("slow")
        @pytest.mark.parametrize("n", range(4))
        def test_slow(inference_server, n): pass
        """,
        test_2="""
        import pytest
        @pytest.mark.infserver("quick")
        @pytest.mark.parametrize("n", range(4))
        def test_quick(inference_server, n): assert 0
        """,
        test_0="def test_0(): assert 0\n",
    )
    result = run(*arguments)
    assert result.parseoutcomes()["failed"] >= 1
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    assert sorted(project.events("started")) in ([], ["started quick"])
    assert len(project.events("started")) == len(project.events("stopped"))


@pytest.mark.parametrize("moment", ["boot", "test"])
@pytest.mark.parametrize("whom", ["group", "controller"])
def test_ctrl_c_ends_all(project, servers_yaml, nothing_left, moment, whom) -> None:
    servers_yaml({"startup_timeout": 600}, a=["--delay=600"] if moment == "boot" else [])
    project.files(
        test_1="""
        import time
        import pytest
        from helpers import note
        @pytest.mark.parametrize("n", range(4))
        def test_it(inference_server, n):
            note("sleeping")
            time.sleep(1)
            time.sleep(600)
        """
    )
    argv = [sys.executable, "-m", "pytest", "-p", "pytest_infserver.plugin", "-p", "xdist", "-n2"]
    process = subprocess.Popen(
        [*argv, "--infserver-config", "servers.yaml"],
        cwd=project.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    log = project.path / "server_logs" / "a" / "server.log"
    try:
        wait_until(lambda: log.exists() and (moment == "boot" or len(project.events("sleeping")) == 2), 60)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT) if whom == "group" else os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output.decode()
    assert b"INTERNALERROR" not in output, output.decode()
    if moment == "test":
        assert project.events("stopped") == ["stopped a gone"]


def wait_until(condition: Callable[[], object], limit: float) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
