"""What all tests share: the fake engine, a clean environment, and proof that nothing is left running."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from engines.provision import environment, models_dir
from engines.recipes import ENGINES
from fake_servers import FAKE_ENGINE, fake_command, write_servers
from in_process import load_all, without_a_trace
from isolation import HARD_LIMIT, cleaned_environment, no_process_left
from left_to_nightly import is_left_out
from tiers import CHOICES, TIERS, SpawnWatch, tier_of

from pytest_infserver import CommandServer
from pytest_infserver.system.processes.own_cgroup import make_cgroup, remove_cgroup

pytest_plugins = ["pytester"]

# The tests in engines/ use this plugin as a user does. That an engine is there is checked before a test needs it.
os.environ.setdefault("INFSERVER_CONFIG", str(Path(__file__).parent / "engines" / "servers.yaml"))
os.environ.update({f"ENGINE_{name.upper()}": str(environment(name)) for name in ENGINES})
os.environ["ENGINE_MODELS"] = str(models_dir())

# What this process ignores, as under nohup or as a shell's background job, its children would ignore too.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options for `tests/engines`, `tests/gpu` and `tests/faults/test_random_lives.py`."""
    group = parser.getgroup("tests of pytest-infserver")
    group.addoption("--require-engines", action="store_true", help="an engine that is not provisioned is an error")
    group.addoption("--require-gpu", action="store_true", help="a machine without a GPU is an error")
    group.addoption("--gpu-results", help="folder in which tests/gpu leaves what its runs wrote, and its figures")
    group.addoption("--lives", type=int, default=60, help="how many lives of servers the random test has")
    seed = os.environ.get("INFSERVER_TEST_SEED")
    group.addoption("--lives-seed", default=seed, help="repeats a random test (default: INFSERVER_TEST_SEED)")


SPAWNS = SpawnWatch()


def pytest_configure(config: pytest.Config) -> None:
    """Register the tiers' marks."""
    for name, meaning in {**TIERS, **CHOICES}.items():
        config.addinivalue_line("markers", meaning if meaning.startswith(f"{name}(") else f"{name}: {meaning}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier, and what is left to .ci/nightly."""
    for item in items:
        item.add_marker(tier_of(item))
        if is_left_out(item):
            item.add_marker("nightly")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Keep what stays until the end out of each garbage collection: a run of pytest in this process ends with five."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return 6 workers on two cores, since tests wait more than they compute; none for single files."""
    if config.args and all(".py" in argument for argument in config.args):
        return 0
    return 3 * len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep tests together that share a fixture of their module."""
    if config.getoption("dist") != "loadscope":
        return None
    from together import Together

    return Together(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Forget what was started before: while the tests were collected, say."""
    SPAWNS.taken()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Hold tests to their tier: the pure ones start no process."""
    yield
    seen = SPAWNS.taken()
    if item.get_closest_marker("pure") is not None:
        assert not seen, f"a test that starts a process asks for the fixture nothing_left: {seen[0]}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show the seed of each random test, also where it passed."""
    for report in (one for reports in terminalreporter.stats.values() for one in reports):
        for name, value in getattr(report, "user_properties", ()):
            if name == "seed" and report.when == "call":
                terminalreporter.write_line(f"{report.nodeid}: seed {value}")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the developer's own settings and other runs' locks on devices out of the tests."""
    clean = cleaned_environment()
    for name in set(os.environ) - set(clean):
        monkeypatch.delenv(name)
    for name, value in clean.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def hard_limit_seconds() -> int:
    """How long a test may take; a folder may say something else."""
    return int(HARD_LIMIT)


@pytest.fixture
def hard_limit(hard_limit_seconds: int) -> Iterator[None]:
    """Interrupt a test that hangs; every test that starts a process has this limit."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"the test took longer than {hard_limit_seconds} s")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(hard_limit_seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def nothing_left(hard_limit: None) -> Iterator[None]:
    """Fail if the test leaves a process behind that its parents have forgotten or that is still their child."""
    with no_process_left() as token:
        os.environ["INFSERVER_TEST_TOKEN"] = token
        yield
        del os.environ["INFSERVER_TEST_TOKEN"]


@pytest.fixture
def needs_cgroup() -> None:
    """Skip where this user can make no cgroup."""
    folder = make_cgroup()
    if folder is None:
        pytest.skip("this user can make no cgroup with cgroup.kill here")
    assert remove_cgroup(folder)


@pytest.fixture
def fake_server(tmp_path: Path, nothing_left: None) -> Iterator[Callable[..., CommandServer]]:
    """Make servers that run the fake engine: ``fake_server("--delay", "1", startup_timeout=5)``."""
    made: list[CommandServer] = []

    def make(*arguments: str, **settings: Any) -> CommandServer:
        settings.setdefault("output_dir", tmp_path / "server_logs")
        settings.setdefault("startup_timeout", 30)
        settings.setdefault("name", "fake")
        server = CommandServer(launch_command=fake_command(*arguments), **settings)
        made.append(server)
        return server

    yield make
    for server in made:
        server.runtime.stop_refusal = None
        server.stop()


@pytest.fixture
def memory_cgroup() -> Iterator[Path]:
    """A cgroup whose processes may use 64 MB of memory together; what is still in it at the end is killed."""
    folder = _make_memory_cgroup(64 * 1024 * 1024)
    yield folder
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for line in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line), signal.SIGKILL)
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.05)
    raise AssertionError(f"{folder} cannot be removed")


def _make_memory_cgroup(size: int) -> Path:
    name = f"infserver-test-{os.getpid()}-{time.monotonic_ns()}"
    files = {"memory": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), "": ("memory.max", "memory.swap.max")}
    for top, (limit, swap) in files.items():
        folder = Path("/sys/fs/cgroup", top, name)
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / limit).exists() and (folder / "cgroup.procs").exists():
            (folder / limit).write_text(str(size))
            with contextlib.suppress(OSError):
                # With swap it would only become slow.
                (folder / swap).write_text(str(0 if swap == "memory.swap.max" else size))
            return folder
        folder.rmdir()
    pytest.skip("needs a cgroup of memory that it may make: Linux, and usually root")


@pytest.fixture
def installed_vllm(tmp_path: Path, nothing_left: None) -> Path:
    """An environment in which vLLM 0.32.0 is installed, as far as its metadata tells; the command is a fake engine."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    # Not the package itself: it must not be imported.
    info = tmp_path / "lib" / "python3.12" / "site-packages" / "vllm-0.32.0+cpu.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    (tmp_path / "pyvenv.cfg").write_text("version = 3.12.1\n")
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    command = tmp_path / "bin" / "vllm"
    run = f"sys.argv.remove('serve')\nrunpy.run_path({str(FAKE_ENGINE)!r}, run_name='__main__')"
    command.write_text(f"#!{python}\nimport runpy, sys\n{run}\n")
    command.chmod(0o755)
    return command


@pytest.fixture(scope="session")
def all_loaded() -> None:
    """Load what runs of pytest in this process need."""
    load_all()


@pytest.fixture
def pytester(all_loaded: None, pytester: pytest.Pytester) -> pytest.Pytester:
    """Return pytest's own fixture: what it makes this process forget at its end was loaded before."""
    return pytester


@pytest.fixture
def run_pytest(
    pytester: pytest.Pytester, nothing_left: None, hard_limit_seconds: int
) -> Callable[..., pytest.RunResult]:
    """Run pytest with the plugin in a subprocess, in an empty folder, with a hard time limit."""
    pytester.makeini("[pytest]\n")

    def run(*arguments: str | Path) -> pytest.RunResult:
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments, timeout=hard_limit_seconds)

    return run


@pytest.fixture
def run_inline(
    pytester: pytest.Pytester, nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pytest.RunResult]:
    """Run pytest with the plugin in this process, in an empty folder, without a trace in this process: quick."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini("[pytest]\n")

    def run(*arguments: str | Path) -> pytest.RunResult:
        # pytest 8.4 warns of a plugin that this process has imported already.
        quiet = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
        chosen = ("-p", "pytest_infserver.plugin", "-p", "no:cacheprovider", "-W", quiet)
        with without_a_trace():
            return pytester.runpytest_inprocess(*chosen, *arguments, no_reraise_ctrlc=True)

    return run


@pytest.fixture
def servers_yaml(pytester: pytest.Pytester) -> Callable[..., Path]:
    """Write a servers.yaml of fake servers: ``servers_yaml(a=["--delay", "1"], b=[])``."""

    return partial(write_servers, pytester.path)
