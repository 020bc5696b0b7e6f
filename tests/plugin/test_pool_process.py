"""The pool lives in a process of its own: what tests do to theirs does not reach its servers."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from pytest_infserver.system.imports import NEEDED_LATER

ENGINE = str(Path(__file__).parents[1] / "fake_engine.py")
ENDED = """
import os, signal, time, psutil, pytest

def pool_process():
    here = psutil.Process()
    while here.ppid() and not any("pool_process" in " ".join(one.cmdline()) for one in here.children()):
        here = here.parent()
    (found,) = [one for one in here.children() if "pool_process" in " ".join(one.cmdline())]
    return found
"""

PATCHES = {
    "clock": "for name in ('time', 'monotonic', 'sleep', 'perf_counter'): patch.setattr(time, name, lambda *_: 0.0)",
    "random": "random.seed(1); patch.setattr(random, 'random', lambda: 0.0); patch.setattr(os, 'urandom', bytes)",
    "locale": "patch.setattr(locale, 'getpreferredencoding', lambda *_: 'utf-16'); patch.setenv('LC_ALL', 'tr_TR')",
    "paths": "patch.setattr(sys, 'path', []); patch.setattr(sys, 'meta_path', [])",
    "modules": "[patch.setitem(sys.modules, name, None) for name in ('json', 'psutil', 'requests', 'yaml', 'secrets')]",
    "logging": "logging.disable(logging.CRITICAL); patch.setattr(logging, 'getLogger', lambda *_: 1 / 0)",
    "signals": "[signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGCHLD)]",
    "umask": "os.umask(0o777)",
    "limits": "resource.setrlimit(resource.RLIMIT_NOFILE, (8, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))",
    "environment": "os.environ.clear()",
    "folder": "os.chdir('/')",
    "streams": "[patch.setattr(sys, name, None) for name in ('stdin', 'stdout', 'stderr', '__stdout__', '__stderr__')]",
    "descriptors": "os.close(0)",
    "sockets": "patch.setattr(socket, 'socket', lambda *_: 1 / 0); socket.setdefaulttimeout(0.000001)",
    "files": "patch.setattr('builtins.open', lambda *_: 1 / 0); patch.setattr(os, 'open', lambda *_: 1 / 0)",
    "processes": "[patch.setattr(os, name, lambda *_: 1 / 0) for name in ('kill', 'fork', 'waitpid', 'getpid')]",
    "popen": "patch.setattr(subprocess, 'Popen', lambda *_: 1 / 0)",
    "threads": "patch.setattr(threading.Thread, 'start', lambda self: 1 / 0)",
    "json": "patch.setattr(json, 'loads', lambda *_: 1 / 0); patch.setattr(json, 'dumps', lambda *_: 1 / 0)",
    "http": "patch.setattr('http.client.HTTPConnection.request', lambda *_: 1 / 0)",
    "proxy": "[patch.setenv(name, 'http://127.0.0.1:9') for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy')]",
    "recursion": "sys.setrecursionlimit(200)",
    "warnings": "warnings.simplefilter('error')",
}

CHANGES = """
import json, locale, logging, os, random, resource, signal, socket, subprocess, sys, threading, time, warnings
from time import monotonic, sleep
import pytest
from helpers import get

PATCHES = {patches}

@pytest.fixture
def whole():
    "Undo what monkeypatch does not."
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGCHLD)]
    depth, folder, environ, stdin = sys.getrecursionlimit(), os.getcwd(), dict(os.environ), os.dup(0)
    mask = os.umask(0)
    os.umask(mask)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    [signal.signal(*one) for one in handlers]
    sys.setrecursionlimit(depth)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    os.dup2(stdin, 0)
    os.close(stdin)
    os.umask(mask)
    logging.disable(logging.NOTSET)
    socket.setdefaulttimeout(None)

@pytest.mark.parametrize("what", PATCHES)
def test_unit(what, whole):
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        exec(PATCHES[what], {{**globals(), "patch": patch}})
        end = monotonic() + 0.25
        while monotonic() < end:
            sleep(0.02)

@pytest.mark.infserver("first")
def test_first(inference_server):
    assert get(inference_server, "/argv")["env"].get("KEPT") == "yes"

@pytest.mark.parametrize("what", PATCHES)
@pytest.mark.infserver("second")
def test_beside_a_running_server(inference_server, what, whole):
    test_unit(what, whole)

@pytest.mark.infserver("second")
def test_after_all_that(inference_server): assert inference_server.check_health()
"""


@pytest.mark.promise
def test_what_tests_change_in_their_process_reaches_no_server(project, servers_yaml, run, monkeypatch) -> None:
    monkeypatch.setenv("KEPT", "yes")
    # Each starts slowly enough to meet some of the changes, and is asked all the time for its health.
    quick = {"heartbeat_interval": 0.05, "heartbeat_timeout": 2, "hang_timeout": 4}
    servers_yaml(quick, first=["--delay", "2"], second=["--delay", "4"])
    project.files(test_1=CHANGES.format(patches=PATCHES))
    result = run("--infserver-order=source")
    result.assert_outcomes(passed=2 * len(PATCHES) + 2)
    assert sorted(project.events("stopped")) == ["stopped first gone", "stopped second gone"]
    assert "between two tests" not in result.stdout.str()


SHADOWED = (*NEEDED_LATER, "json", "socket", "subprocess", "threading", "requests", "supervisor", "pool_process")


def test_files_of_the_project_that_are_called_as_modules_reach_no_server(project, servers_yaml) -> None:
    servers_yaml({"debug_mode": True}, a=[])
    # They come when pytest itself has what it needs, and lie first in its path as test files do.
    project.conftest(
        f"""
import pathlib, sys
folder = pathlib.Path(__file__).with_name("more")
folder.mkdir()
for name in {SHADOWED}:
    (folder / (name.partition(".")[0] + ".py")).write_text("raise ImportError('a module of the project')")
sys.path.insert(0, str(folder))
"""
    )
    project.files(test_1="def test_1(inference_server): assert inference_server.check_health()")
    project.run().assert_outcomes(passed=1)
    assert project.events("stopped") == ["stopped a gone"]


def test_an_environment_that_a_conftest_sets_is_the_servers(project, servers_yaml, run) -> None:
    servers_yaml(a=[])
    project.conftest("import os; os.environ['FROM_CONFTEST'] = 'yes'")
    project.files(
        test_1="""
        from helpers import get
        def test_1(inference_server):
            assert get(inference_server, "/argv")["env"]["FROM_CONFTEST"] == "yes"
        """
    )
    run().assert_outcomes(passed=1)


@pytest.mark.parametrize("moment", ["start", "test", "between"])
def test_when_the_process_is_killed_its_servers_end_and_the_tests_say_so(project, servers_yaml, run, moment) -> None:
    servers_yaml(a=["--delay", "1"])
    when = {
        "start": "def test_0(): time.sleep(0.5); pool_process().kill()",
        "test": "",
        "between": "def test_1a(): pool_process().kill(); time.sleep(0.5)",
    }[moment]
    body = "pool_process().kill(); inference_server.wait_death(10)" if moment == "test" else "pass"
    project.files(
        test_1=ENDED
        + f"""
{when if moment == "start" else ""}
def test_1(inference_server):
    {body}
{when if moment == "between" else ""}
def test_2(inference_server): pass
def test_3(): pass
"""
    )
    result = run("--infserver-order=source")
    text = result.stdout.str()
    assert "INTERNALERROR" not in text
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    # A worker may ask for it for the first time when it is gone.
    assert re.search(r"the process of the pool (\(pid \d+\)|is gone|has not come up: it )", text), text
    outcomes = project.outcomes("test_1")
    assert outcomes["passed"] >= 1
    assert outcomes.get("errors", 0) + outcomes.get("failed", 0) >= 1


def test_pytest_that_is_killed_takes_the_process_and_its_servers_along(project, servers_yaml, run) -> None:
    servers_yaml(a=[])
    project.files(test_1="import os\ndef test_1(inference_server): os.kill(os.getpid(), 9)")
    run()
    events = [json.loads(line) for line in Path(project.path, "server_logs/a/events.jsonl").open()]
    assert events[-1]["event"] in ("stopping", "stopped")


def test_a_command_that_reads_what_a_test_has_changed_is_made_between_tests(project, servers_yaml, run) -> None:
    """A backend of the user's is asked in pytest's process, and never in the middle of a test."""
    project.conftest(
        f"""
import os, sys
from pytest_infserver import CommandServer
class Mine(CommandServer):
    def get_backend_name(self): return "mine"
    def get_launch_command(self):
        assert "IN_A_TEST" not in os.environ, "asked in the middle of a test"
        return [{sys.executable!r}, "-S", {ENGINE!r}, "--port", str(self.port)]
    def _check_settings(self): pass
def pytest_infserver_backends(config): return [Mine]
"""
    )
    servers_yaml(a={"backend": "mine"}, b={"backend": "mine"}, c={"backend": "mine"})
    project.files(
        test_1="""
        import os, time, pytest
        @pytest.fixture(autouse=True)
        def changed(monkeypatch, request):
            if "inference_server" not in request.fixturenames:
                monkeypatch.setenv("IN_A_TEST", "1")
        @pytest.mark.parametrize("n", range(10))
        def test_unit(changed, n): time.sleep(0.1)
        def test_server(inference_server): assert inference_server.check_health()
        """
    )
    run("--infserver-order=source", "--infserver-max-servers=1").assert_outcomes(passed=13)


def test_a_backend_that_starts_its_servers_itself_is_run_by_pytest(project, servers_yaml, run) -> None:
    project.conftest(
        """
from pytest_infserver import CommandServer
class Mine(CommandServer):
    def get_backend_name(self): return "mine"
    def start(self):
        note("mine starts")
        return super().start()
def pytest_infserver_backends(config): return [Mine]
"""
    )
    servers_yaml(a={"backend": "mine", "launch_command": [sys.executable, "-S", ENGINE, "--port", "{port}"]})
    project.files(test_1="def test_1(inference_server): assert inference_server.check_health()")
    run().assert_outcomes(passed=1)
    assert project.events("mine") == ["mine starts"]


def test_a_child_that_outlives_pytest_keeps_no_server(project, servers_yaml) -> None:
    """It holds the connection open, and is asked nothing."""
    servers_yaml(a=[])
    project.files(
        test_1="""
        import os, time
        def test_1(inference_server):
            child = os.fork()
            if child == 0:
                os.dup2(os.open(os.devnull, os.O_RDWR), 1)
                os.dup2(1, 2)
                time.sleep(60)
                os._exit(0)
            with open("child.txt", "w") as file:
                file.write(str(child))
            os.kill(os.getpid(), 9)
        """
    )
    project.run()
    deadline = time.monotonic() + 30
    while not (events := server_events(project)) or events[-1] != "stopped":
        assert time.monotonic() < deadline, events
        time.sleep(0.1)
    os.kill(int((project.path / "child.txt").read_text()), signal.SIGKILL)


def server_events(project) -> list[str]:  # type: ignore[no-untyped-def]
    return [json.loads(line)["event"] for line in Path(project.path, "server_logs/a/events.jsonl").open()]


def test_a_hook_may_pause_the_heartbeat_of_the_server_that_is_waited_for(project, servers_yaml) -> None:
    project.conftest("def pytest_infserver_server_started(server): server.pause_heartbeat(); server.resume_heartbeat()")
    servers_yaml(a=[])
    project.files(test_1="def test_1(inference_server): assert inference_server.check_health()")
    project.run().assert_outcomes(passed=1)


def test_paths_that_are_no_text_are_left_out(project, servers_yaml, run) -> None:
    servers_yaml(a=[])
    project.conftest("import pathlib, sys; sys.path.insert(0, pathlib.Path(__file__).parent / 'src')")
    project.files(test_1="def test_1(inference_server): assert inference_server.check_health()")
    run().assert_outcomes(passed=1)


def test_a_start_that_a_test_has_asked_for_ends_with_the_test(project, servers_yaml) -> None:
    """With the interrupt the run ends, and does not wait until the engine is up."""
    engine = project.path / "slow_engine.py"
    engine.write_text(
        f"""
import os, sys, time
if os.path.exists("again"):
    time.sleep(290)
open("again", "w").close()
os.execv(sys.executable, [sys.executable, "-S", {ENGINE!r}, *sys.argv[1:]])
"""
    )
    command = [sys.executable, str(engine), "--port", "{port}"]
    servers_yaml(a={"backend": "command", "launch_command": command, "startup_timeout": 300})
    project.conftest("")
    project.files(
        test_1="""
        import os, pytest, signal, threading
        @pytest.mark.infserver(exclusive=True)
        def test_1(inference_server):
            inference_server.stop()
            threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            inference_server.start()
        """
    )
    begin = time.monotonic()
    assert project.run().ret == pytest.ExitCode.INTERRUPTED
    assert (project.path / "again").exists()
    assert time.monotonic() - begin < 60


def test_a_server_is_ready_while_a_test_lets_no_thread_start(project, servers_yaml) -> None:
    """Its hooks are called in a thread of pytest's process."""
    servers_yaml(a=["--delay", "1"])
    project.files(
        test_1="""
        import threading
        from time import sleep
        def test_1(monkeypatch):
            monkeypatch.setattr(threading.Thread, "start", lambda self: 1 / 0)
            sleep(3)
        def test_2(inference_server): assert inference_server.check_health()
        """
    )
    project.run("--infserver-order=source").assert_outcomes(passed=2)
    assert project.events("started") == ["started a"]
