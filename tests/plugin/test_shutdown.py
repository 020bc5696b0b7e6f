"""The end of a server and of a run: nothing is left, and nobody else is hit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from isolation import HARD_LIMIT

SHM = Path("/dev/shm")

LEAKY = ["--children", "1", "--stubborn-children", "--forget-children"]


@pytest.mark.promise
def test_stop_of_a_shared_server_is_refused(inline_project, servers_yaml) -> None:
    servers_yaml(a=[])
    inline_project.files(
        test_1="""
        import pytest
        from pytest_infserver import InferenceServerError
        def test_1(inference_server):
            with pytest.raises(InferenceServerError, match="shared with other tests.*inference_server_factory"):
                inference_server.stop()
            with pytest.raises(InferenceServerError), inference_server: pass
        def test_2(inference_server): assert inference_server.start() is inference_server and inference_server.running
        """
    )
    inline_project.run().assert_outcomes(passed=2)
    assert inline_project.events("started", "stopped") == ["started a", "stopped a gone"]


@pytest.mark.parametrize("reruns", [(), ("--reruns=2",)])
def test_a_leak_is_an_extra_error_of_the_last_test_and_of_no_other(inline_project, servers_yaml, quiet, reruns) -> None:
    if reruns:
        pytest.importorskip("pytest_rerunfailures")
    servers_yaml({"debug_mode": True, "stop_timeout": 1}, leaky=LEAKY, tidy=[])
    inline_project.files(
        test_1="""
        import pytest
        def test_1(inference_server): pass
        def test_2(inference_server): pass
        @pytest.mark.skip
        def test_3(inference_server): pass
        def test_4(): pass
        """
    )
    result = inline_project.run("-v", *reruns, plugins=("pytest_rerunfailures",) if reruns else ())
    result.assert_outcomes(passed=5, errors=1, skipped=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_2[[]leaky]*", "leaky (command) left behind a process:*"])
    assert "rerun" not in result.stdout.str().splitlines()[-1]
    quiet(result)
    assert inline_project.events().count("started leaky") == 1


@pytest.mark.promise
def test_a_leak_at_an_early_end_is_shown_and_a_leak_without_debug_mode_is_none(inline_project, servers_yaml) -> None:
    servers_yaml({"stop_timeout": 1}, leaky=LEAKY)
    inline_project.files(
        test_1="""
        import pytest
        def test_1(inference_server): pass
        def test_2(inference_server): pytest.exit("enough", returncode=0)
        def test_3(inference_server): pass
        """
    )
    result = inline_project.run("--infserver-debug")
    assert result.ret != 0
    result.stdout.fnmatch_lines(["leaky (command) left behind a process:"])
    assert inline_project.run("-k", "test_1").ret == 0


def test_the_end_of_a_run_leaves_nothing_however_it_comes(inline_project, servers_yaml) -> None:
    servers_yaml({"stop_timeout": 2}, a=["--children", "1"])
    hook = 'raise RuntimeError("another plugin")'
    for body, extra in (
        ("assert 0", ""),
        ("pytest.exit('enough')", ""),
        ("raise KeyboardInterrupt", ""),
        ("raise SystemExit(3)", ""),
        ("pass", f"def pytest_runtest_logreport(report): {hook}"),
        ("pass", f"def pytest_sessionfinish(): {hook}"),
        ("pass", f"def pytest_runtest_logfinish(): {hook}"),
    ):
        (inline_project.path / "events.txt").unlink(missing_ok=True)
        inline_project.conftest(f"\n{extra}\n")
        inline_project.files(
            test_1=f"import pytest\ndef test_1(inference_server): {body}\ndef test_2(inference_server): pass\n"
        )
        result = inline_project.run("-x")
        if "logfinish" not in extra and "sessionfinish" not in extra:
            assert result.ret != 0
        assert inline_project.events("started") == ["started a"], body
        assert inline_project.events("stopped") == ["stopped a gone"], (body, extra)


@pytest.mark.promise
def test_the_sudden_end_of_a_run_leaves_nothing(project, servers_yaml) -> None:
    servers_yaml({"stop_timeout": 2}, a=["--children", "1"])
    project.files(test_1="import os\ndef test_1(inference_server): os._exit(3)\ndef test_2(inference_server): pass\n")
    assert project.run("-x").ret == 3
    assert project.events("started") == ["started a"]


STOP_TIMEOUT = 2


@pytest.fixture
def shm_name() -> Iterator[str]:
    name = f"infserver-test-{os.getpid()}-{time.monotonic_ns()}"
    yield name
    SHM.joinpath(name).unlink(missing_ok=True)


def family(shm_name: str, *arguments: str) -> list[str]:
    """Return the arguments of an engine that leaves processes and an object behind."""
    return ["--children=2", "--forget-children", "--leak-shm", shm_name, "--say-when-held=here", *arguments]


def wait_until(condition: Callable[[], object], limit: float) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


# Much longer than anybody here waits.
MOMENTS = {"start": ["--delay=600"], "test": [], "stop": ["--stop-delay=600"]}
SIGNALS = {"SIGINT twice": signal.SIGINT, **{signal.Signals(one).name: signal.Signals(one) for one in (1, 2, 9, 15)}}


@pytest.mark.skipif(sys.platform != "linux", reason="leaks are best effort elsewhere")
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=pytest.mark.promise if how == "SIGKILL" else ()) for how in SIGNALS]
)
def test_signals_to_pytest_leave_nothing(project, servers_yaml, nothing_left, shm_name, moment, how) -> None:
    settings = {"stop_timeout": STOP_TIMEOUT, "startup_timeout": 600, "debug_mode": True}
    servers_yaml(settings, a=family(shm_name, *MOMENTS[moment]))
    project.files(
        test_1=f"""
        import time
        from helpers import note
        def test_1(inference_server):
            note("sleeping")
            time.sleep({600 if moment == "test" else 0})
        """
    )
    argv = [sys.executable, "-m", "pytest", "-p", "pytest_infserver.plugin", "-p", "no:cacheprovider"]
    process = subprocess.Popen(
        [*argv, "--infserver-config", "servers.yaml"], cwd=project.path, stdout=subprocess.PIPE, start_new_session=True
    )
    log = project.path / "server_logs" / "a" / "server.log"
    event = {"start": [], "test": ["sleeping"], "stop": ["stopping"]}[moment]
    try:
        wait_until(lambda: log.exists() and "here" in log.read_text() and (not event or project.events(*event)), 60)
        # A stop has only begun with that event.
        time.sleep(0.3)
        number = SIGNALS[how]
        # As a terminal does it: the whole group.
        os.killpg(process.pid, number)
        if how == "SIGINT twice":
            time.sleep(0.1)
            os.killpg(process.pid, number)
        wait_until(lambda: not SHM.joinpath(shm_name).exists(), 60)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    if how == "SIGINT":
        assert process.returncode == pytest.ExitCode.INTERRUPTED
        assert b"KeyboardInterrupt" in output
    elif number is not signal.SIGINT:
        assert process.returncode == -number


@pytest.mark.skipif(sys.platform != "linux", reason="leaks are best effort elsewhere")
@pytest.mark.parametrize(
    "how",
    ["os._exit(3)", pytest.param("os.kill(os.getpid(), 9)", marks=pytest.mark.promise), "os.kill(os.getpid(), 15)"],
)
def test_the_end_of_an_xdist_worker_leaves_nothing(project, servers_yaml, nothing_left, shm_name, how) -> None:
    pytest.importorskip("xdist")
    servers_yaml({"stop_timeout": STOP_TIMEOUT, "debug_mode": True}, a=family(shm_name))
    project.files(
        test_1=f"""
        import os
        def test_1(inference_server):
            assert os.path.exists("/dev/shm/{shm_name}")
            {how}
        """
    )
    result = project.run("-n1", "--max-worker-restart=0", plugins=("xdist.plugin",))
    # The controller stops the server in order, and finds what it has left.
    result.assert_outcomes(failed=1, errors=1)
    result.stdout.fnmatch_lines(["*worker 'gw0' crashed while running*test_1*"])
    wait_until(lambda: not SHM.joinpath(shm_name).exists(), 60)


def test_time_stands_still_for_servers_in_the_debugger(project, servers_yaml, pytester) -> None:
    servers_yaml({"heartbeat_interval": 0.05, "hang_timeout": 2}, a=[])
    project.files(
        test_1="""
        import time
        from helpers import get
        def test_1(inference_server, inference_server_factory):
            mine = inference_server_factory("a")
            breakpoint()
            time.sleep(0.1)
            assert inference_server.running and mine.running
            assert inference_server.wait_death(30) and mine.wait_death(30)
        def test_2(inference_server): raise ValueError
        """
    )
    argv = [sys.executable, "-m", "pytest", "-p", "pytest_infserver.plugin", "-p", "no:cacheprovider", "--pdb"]
    script = "get(inference_server, '/sick'), get(mine, '/sick')\ntime.sleep(3)\ncontinue\nq\n"
    result = subprocess.run(
        [*argv, "--infserver-config", "servers.yaml"],
        cwd=project.path,
        input=script,
        capture_output=True,
        text=True,
        timeout=HARD_LIMIT,
        check=False,
    )
    # The death that the test waited for is what fails it, not an assertion about the time in the debugger.
    assert "hung and was killed" in result.stdout, result.stdout
    assert "AssertionError" not in result.stdout, result.stdout
    assert project.events("stopped") == ["stopped a gone"]


ENDINGS = {
    "hook": """
import pytest
@pytest.hookimpl(specname="pytest_infserver_server_started")
def pytest_end(server):
    pytest.exit("this is enough")
""",
}


@pytest.mark.parametrize("what", ENDINGS)
def test_what_ends_the_run_in_a_thread_of_the_pool_ends_it_soon(project, servers_yaml, run, what) -> None:
    servers_yaml(a=[])
    project.conftest(ENDINGS[what])
    project.files(
        test_it="""
        import time, pytest
        @pytest.mark.parametrize("n", range(300))
        def test_it(inference_server, n): pass
        @pytest.mark.parametrize("n", range(300))
        def test_other(n): time.sleep(0.1)
        """
    )
    result = run()
    text = result.stdout.str() + result.stderr.str()
    assert "this is enough" in text
    assert result.ret != 0
    assert len(project.events("test")) < 300
    assert len(project.events("started")) == len(project.events("stopped"))
