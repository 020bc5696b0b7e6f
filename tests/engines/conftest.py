"""Engines for real. Without `python -m tests.engines.provision` these tests are skipped, and say so.

A start takes long: tests that only ask use `inference_server`, one server of each engine for all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from pytest_infserver import InferenceServer, load_server_config
from pytest_infserver.launcher.factory import create_from_config
from pytest_infserver.launcher.startup.phases import newest_phase
from pytest_infserver.reporting.terminal.terminal import visible_terminal

from .provision import missing

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(__file__).parent
SERVERS = HERE / "servers.yaml"
NAMES = {"vllm": "vllm", "sglang": "sglang-with-stubbed-kernels", "transformers": "transformers"}
"""Backend to name in servers.yaml."""
ON_ONE_RANK: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "vllm": ({"tensor-parallel-size": 1}, {}),
    "sglang": ({"tp": 1}, {"SGLANG_CPU_OMP_THREADS_BIND": "all"}),
    "transformers": ({}, {}),
}
"""Arguments and environment of a server of a test's own, without those of the shared one."""
HARD_LIMIT = 1800
"""Seconds after which a test counts as hung."""
GONE = 60.0
"""Seconds in which processes that have been ended must be gone; as a rule they take less than 1."""
TITLES = ("VLLM::", "sglang::", "vllm serve", "sglang.launch_server", "transformers serve")
"""By which the engines' processes are known."""

OBJECTS = ("psm_", "sem.mp-", "sgl_", "sglang_", "vllm")
"""With which the names of the engines' shared objects begin."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Look at the tests of this folder."""
    require_engines(config, [item for item in items if HERE in item.path.parents])


def require_engines(config: pytest.Config, items: Iterable[pytest.Item]) -> None:
    """Skip what needs an engine that is not there, or fail it with --require-engines."""
    for item in items:
        engines = _engines(item)
        problem = missing(*engines) if engines else None
        if problem is None:
            continue
        reason = f"not provisioned: {' '.join(engines)}; {problem}"
        if config.getoption("require_engines"):
            raise pytest.UsageError(f"--require-engines: {item.nodeid}: {reason}")
        item.add_marker(pytest.mark.skip(reason=reason))


def _engines(item: pytest.Item) -> list[str]:
    """Return the engines that a test uses: by the mark `engine`, or the one it is parametrised with."""
    names = [name for mark in item.iter_markers("engine") for name in mark.args]
    return names + [backend for backend, name in NAMES.items() if name == _shared(item)]


def _shared(item: pytest.Item) -> str | None:
    """Return the server that a test shares with others."""
    callspec = getattr(item, "callspec", None)
    return callspec and callspec.params.get("inference_server")


def _tell(text: str, config: pytest.Config) -> None:
    with visible_terminal(config) as terminal:
        if terminal is not None:
            terminal.ensure_newline()
            terminal.write_line(f"tests/engines: {text}")


def pytest_infserver_server_started(config: pytest.Config, server: InferenceServer) -> None:
    """Say in CI's log which engine has really run."""
    mode = "debug mode" if server.debug_mode else "no debug mode"
    seconds = 0 if server.start_seconds is None else server.start_seconds
    _tell(f"{server} started in {seconds:.1f} s, {mode}, pid {server.pid}: {' '.join(server.command().argv)}", config)


def pytest_infserver_server_stopped(config: pytest.Config, server: InferenceServer) -> None:
    """Say what it has left behind."""
    report = server.leak_report
    found = [] if report is None else report.findings
    kinds = ", ".join(f"{finding.kind} {'LEAKED' if finding.fails else 'known'}" for finding in found)
    _tell(f"{server} stopped; left behind: {kinds or 'nothing'}", config)


@pytest.fixture
def hard_limit_seconds() -> int:
    """Give engines more time than other tests have."""
    return HARD_LIMIT


@pytest.fixture(autouse=True)
def engine_limit(hard_limit: None) -> None:
    """Interrupt every test here that hangs."""


def engine_processes() -> set[int]:
    """Return the ids of the engines' processes that are ours, or nobody's; setproctitle hides their environment."""
    return {process.pid for process in ours_or_nobodys(TITLES)}


def ours_or_nobodys(signs: Iterable[str]) -> list[psutil.Process]:
    """Return the living processes with one of these signs in their titles that belong to no other run or worker."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if _has(process, signs) and process.status() != psutil.STATUS_ZOMBIE:
                parents = process.parents()
                # Those of another run on this machine have a living parent of another kind.
                if os.getpid() in {one.pid for one in parents} or all(
                    one.pid == 1 or _has(one, signs) for one in parents
                ):
                    found.append(process)
    return found


def _has(process: psutil.Process, signs: Iterable[str]) -> bool:
    return any(sign in title(process) for sign in signs)


def shared_objects() -> set[str]:
    """Return the names in /dev/shm that are like those of engines and that no process holds."""
    found: dict[str, str] = {}
    for name in os.listdir("/dev/shm") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError):
            place = os.stat(f"/dev/shm/{name}")
            # By device and inode: whoever has made a semaphore has it mapped by a name of before.
            key = f" {os.major(place.st_dev):02x}:{os.minor(place.st_dev):02x} {place.st_ino} "
            found |= {key: name} if name.startswith(OBJECTS) else {}
    for maps in Path("/proc").glob("[0-9]*/maps") if found else ():
        with contextlib.suppress(OSError):
            held = maps.read_text()
            found = {key: name for key, name in found.items() if key not in held}
    return set(found.values())


@pytest.fixture
def no_engine_left() -> Iterator[None]:
    """Fail if a test leaves processes of an engine or shared memory behind."""
    processes, objects = engine_processes(), shared_objects()
    yield
    wait_until_empty(lambda: engine_processes() - processes)
    # Those of another worker's engines, too, until they are mapped or removed.
    wait_until_empty(lambda: shared_objects() - objects)


def wait_until_empty(left: Callable[[], Collection[object]]) -> None:
    """Wait until nothing is left; fail if something stays."""
    deadline = time.monotonic() + GONE
    while (found := left()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not found


@pytest.fixture
def make_server(tmp_path: Path, no_engine_left: None) -> Iterator[Callable[..., InferenceServer]]:
    """Make servers of servers.yaml: ``make_server("vllm", {"no-such-flag": True}, port=8100)``; nothing is started.

    They have one rank and no profiler, unless told otherwise.
    """
    made: list[InferenceServer] = []

    def make(engine: str, arguments: Mapping[str, Any] | None = None, **overrides: Any) -> InferenceServer:
        key = "api_server_args" if engine == "vllm" else "server_args"
        one_rank, variables = ON_ONE_RANK[engine]
        values: dict[str, Any] = {"output_dir": str(tmp_path / "server_logs"), **overrides}
        values["config"] = {key: {**one_rank, **(arguments or {})}}
        values["env_vars"] = {**variables, **overrides.get("env_vars", {})}
        if "profile" in overrides:
            values["profile"] = {"on_demand": False, "args": [], **overrides["profile"]}
        config = load_server_config(SERVERS, NAMES[engine], overrides=values)
        server = create_from_config(config if "profile" in overrides else dataclasses.replace(config, profile=None))
        made.append(server)
        return server

    yield make
    for server in made:
        server.stop()


def tree(server: InferenceServer) -> list[psutil.Process]:
    """Return all processes of a running server, its root first."""
    root = psutil.Process(server.pid)
    return [root, *root.children(recursive=True)]


def terminate_when(server: InferenceServer, moment: Callable[[InferenceServer], bool]) -> list[psutil.Process]:
    """Send a server SIGTERM at a moment of its start; return a list that gets the processes it has then."""
    seen: list[psutil.Process] = []

    def look(one: InferenceServer) -> None:
        if one.pid is not None and not seen and moment(one):
            seen.extend(tree(one))
            os.kill(one.pid, signal.SIGTERM)

    server.on_wait = look
    return seen


def title(process: psutil.Process) -> str:
    """Return what a process calls itself."""
    return " ".join(process.cmdline()) or process.name()


def phases_in_the_log(server: InferenceServer) -> set[str | None]:
    """Return the phases of which a server's log tells; a quick one is over before anybody looks."""
    return {newest_phase([line], server.phases) for line in re.split(rb"[\r\n]+", server.log_path.read_bytes())}


def all_gone(processes: Iterable[psutil.Process]) -> bool:
    """Wait until none of these processes is left."""
    deadline = time.monotonic() + GONE
    while left := [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]:
        if time.monotonic() > deadline:
            print("left:", left)
            return False
        time.sleep(0.05)
    return True


@contextlib.contextmanager
def occupied_while_booting(server: InferenceServer) -> Iterator[list[socket.socket]]:
    """Take a server's port as soon as it is launched, before the engine binds it."""
    taken: list[socket.socket] = []
    over = threading.Event()

    def occupy() -> None:
        while server.pid is None and not over.wait(0.005):
            pass
        if server.pid is not None:
            taken.append(socket.create_server(("127.0.0.1", server.port)))

    thread = threading.Thread(target=occupy)
    thread.start()
    try:
        yield taken
    finally:
        over.set()
        thread.join()
        for one in taken:
            one.close()


@pytest.fixture
def run_project(
    pytester: pytest.Pytester, no_engine_left: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pytest.RunResult]:
    """Run a test file in a pytest of its own, with the plugin and one of servers.yaml's servers, on one rank."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini("[pytest]\n")

    def run(engine: str, tests: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(test_project=tests)
        # With "=": pytest looks for its ini file beside paths behind options that it does not know yet.
        options = ["-p", "pytest_infserver.plugin", "-p", "no:cacheprovider", f"--infserver-config={SERVERS}"]
        options += [f"--infserver-server={NAMES[engine]}", f"--infserver-output-dir={pytester.path / 'logs'}"]
        key = "api_server_args" if engine == "vllm" else "server_args"
        arguments_of_one, variables = ON_ONE_RANK[engine]
        options += [f"--infserver-set=config.{key}.{name}={value}" for name, value in arguments_of_one.items()]
        options += [f"--infserver-set=env_vars.{name}={value}" for name, value in variables.items()]
        return pytester.runpytest_subprocess(*options, *arguments, timeout=HARD_LIMIT)

    return run


@pytest.fixture(scope="package")
def running() -> Iterator[Browser]:
    """A browser for all tests here; each opens pages of its own."""
    from .browser import browser

    with browser() as one:
        yield one
