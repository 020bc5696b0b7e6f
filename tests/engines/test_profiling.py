"""Real profilers on real engines; each profile is opened and read. One more of a kind is left to .ci/nightly."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_infserver import InferenceServer, ProfileError, ServerDiedError, create_server
from pytest_infserver.launcher.profiling.profilers import nsys as nsys_module

from .answers import post
from .conftest import all_gone, ours_or_nobodys, title, tree, wait_until_empty
from .profiles import NSYS as NSYS_BINARY
from .profiles import frames_of_flamegraph, frames_of_speedscope, has, operators, read_report, summary

Make = Callable[..., InferenceServer]
NSYS = {"tool": "nsys", "binary_path": NSYS_BINARY, "args": ["--trace=osrt,nvtx"]}
WITHOUT_STACKS = "torch_profiler_with_stack=false"
"""With them vLLM needs half a minute to sum up one request."""
PORTS = {"py-spy on vLLM": 8985, "nsys on vLLM": 8986, "pytorch": 8987, "nsys": 8988}
"""Ones that nobody else takes meanwhile: a second launch would have a report of its own."""
TOOLS = (str(Path(NSYS_BINARY).parent.parent), "py-spy record")
"""By which the profilers' processes are known."""


@pytest.fixture(autouse=True)
def no_profiler_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_engine_left: None) -> Iterator[None]:
    """Fail if a test leaves a profiler's process or its private folder behind."""
    # A short one: the sockets of nsys have long names.
    folder = Path(tempfile.mkdtemp(prefix="p-", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = _profilers()
    yield
    # The daemon of nsys lives for a moment longer than what has started it.
    wait_until_empty(lambda: _profilers() - before)
    places = [path.name for path in folder.iterdir() if path.name.startswith("infserver-")]
    shutil.rmtree(folder, ignore_errors=True)
    assert not places


def _profilers() -> set[tuple[int, str]]:
    found = set()
    for process in ours_or_nobodys(TOOLS):
        with contextlib.suppress(psutil.Error):
            found.add((process.pid, title(process)))
    return found


@pytest.fixture
def llama(tmp_path: Path) -> Iterator[Callable[..., InferenceServer]]:
    """Make llama.cpp servers with a profile: ``llama(tool="nsys")``."""
    made: list[InferenceServer] = []

    def make(**profile: Any) -> InferenceServer:
        server = create_server(
            "llamacpp",
            model="builtin:tiny",
            debug_mode=True,
            output_dir=str(tmp_path / "logs"),
            profile={"output_dir": str(tmp_path / "profiles"), **profile},
        )
        made.append(server)
        return server

    yield make
    for server in made:
        server.stop()


def complete(server: InferenceServer, requests: int = 1, tokens: int = 4) -> None:
    for _ in range(requests):
        assert post(server, "/v1/completions", prompt="Hello", max_tokens=tokens).ok


def only(files: list[Path], name: str) -> Path:
    assert [path.name for path in files] == [name]
    return files[0]


def pids_of(server: InferenceServer, *names: str) -> dict[str, int]:
    """Return the processes of a server by what they call themselves."""
    titles = {process.pid: title(process) for process in tree(server)}
    found = {name: [pid for pid, text in titles.items() if name in text] for name in names}
    assert all(len(pids) == 1 for pids in found.values()), titles
    return {name: pids[0] for name, pids in found.items()}


def die_in_a_block(server: InferenceServer, pid: int) -> None:
    with server.profiling("block"):
        complete(server)
        os.kill(pid, signal.SIGKILL)
        assert server.wait_death(60)
        server.raise_if_dead()


def no_leaks(server: InferenceServer) -> None:
    """Make sure that debug mode has found nothing of the server's or of the profiler's."""
    assert server.leak_report is not None
    assert not server.leak_report.failed
    assert {finding.kind for finding in server.leak_report.findings} <= {"socket", "file", "shm"}


# llama.cpp


@pytest.mark.parametrize(
    ("args", "name", "read"),
    [
        ([], "block.svg", frames_of_flamegraph),
        pytest.param(
            ["--format", "speedscope"], "block.speedscope.json", frames_of_speedscope, marks=pytest.mark.nightly
        ),
    ],
)
def test_py_spy_on_llamacpp(
    llama: Callable[..., InferenceServer], args: list[str], name: str, read: Callable[[Path], str]
) -> None:
    with llama(tool="py-spy", on_demand=True, args=args) as server:
        with server.profiling("block") as files:
            complete(server, 20)
        assert has(read(only(files, name)), "main", "pytest_infserver/embedded_llamacpp/server.py")
    no_leaks(server)


@pytest.mark.engine("nsys")
def test_nsys_on_llamacpp_whole_life_and_block(llama: Callable[..., InferenceServer]) -> None:
    with llama(**NSYS) as server:
        engine = server.pid
        assert engine is not None
        complete(server)
        with server.profiling("block") as files:
            complete(server, 5)
        block = only(files, "block.nsys-rep")
        complete(server)
    no_leaks(server)
    names = [path.name for path in server.profiles]
    assert names == ["server.nsys-rep", "block.nsys-rep", "server-2.nsys-rep"]
    for path in server.profiles:
        report = read_report(path)
        assert report.calls[engine] > 0, path
    text = summary(block)
    assert "Num Calls" in text
    assert any(function in text for function in ("poll", "epoll_wait", "recv", "send")), text


@pytest.mark.engine("nsys")
def test_a_server_that_is_killed_under_nsys_in_a_block(llama: Callable[..., InferenceServer]) -> None:
    server = llama(**NSYS, on_demand=True)
    server.start()
    processes = tree(server)
    engine = server.pid
    assert engine is not None
    with pytest.raises(ServerDiedError, match="killed by SIGKILL"):
        die_in_a_block(server, engine)
    # nsys has written what it had seen until then.
    assert read_report(only(server.profiles, "block.nsys-rep")).calls[engine] > 0
    server.stop()
    assert all_gone(processes)


@pytest.mark.nightly
@pytest.mark.engine("nsys")
def test_nsys_may_be_told_to_sample_where_that_is_permitted(llama: Callable[..., InferenceServer]) -> None:
    server = llama(**{**NSYS, "args": ["--trace=osrt", "--sample=cpu"]}, on_demand=True)
    level = Path("/proc/sys/kernel/perf_event_paranoid").read_text().strip()
    if os.geteuid() != 0 and int(level) > 2:
        with pytest.raises(ProfileError, match=f"not permitted: kernel.perf_event_paranoid is {level}"):
            server.start()
        assert server.launches == 0
        return
    # Not more: on a machine without hardware counters nsys 2022.4.2 may hang at the end of such a profile.
    with server:
        complete(server)
        assert server.profiler is not None
        assert "--sample=cpu" in server.profiler.settings.args
    no_leaks(server)


@pytest.mark.engine("nsys")
def test_nsys_is_not_started_to_sample_where_that_is_not_permitted(
    llama: Callable[..., InferenceServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = tmp_path / "perf_event_paranoid"
    level.write_text("3\n")
    monkeypatch.setattr(nsys_module, "_PARANOID", str(level))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    server = llama(**{**NSYS, "args": ["--sample=cpu"]})
    with pytest.raises(ProfileError, match=r"--sample=cpu is not permitted: kernel\.perf_event_paranoid is 3"):
        server.start()
    assert server.launches == 0


# Engines that answer the tests of other files, too.


@pytest.mark.backend("vllm", "sglang")
def test_pytorch_and_py_spy(inference_server: InferenceServer) -> None:
    server, backend = inference_server, inference_server.get_backend_name()
    totals, folders = [], set()
    for requests in (1, 3):
        with server.profiling("block") as files:
            complete(server, requests)
        assert backend != "vllm" or any(path.name.startswith("rank0.") for path in files), files
        totals.append(operators(files).total())
        folders |= {path.parent for path in files}
    # One after the other, and each has its own requests alone.
    assert 0 < totals[0] < totals[1], totals
    assert len(folders) == 2

    asked = server.log_path.read_text().count("POST /stop_profile")
    with pytest.raises(ProfileError, match="no profile is running"):
        server.stop_profile()
    assert server.log_path.read_text().count("POST /stop_profile") == asked
    assert server.check_health()

    with server.profiling("stacks", "py-spy") as files:
        complete(server, 3, tokens=16)
    frames = frames_of_flamegraph(files[0])
    assert [path.suffix for path in files] == [".svg"]
    for function, file in BUSY[backend].items():
        assert has(frames, function, file), function
    assert backend != "vllm" or "VLLM::EngineCore" in frames
    complete(server)


BUSY = {
    "vllm": {"run_busy_loop": "vllm/v1/engine/core.py", "execute_model": "vllm/v1/worker/"},
    # Its kernels are stubs (see stubs/sgl_kernel), its scheduler and its profiler are the real ones.
    "sglang": {"event_loop_normal": "scheduler.py", "forward": "model_runner.py"},
}
"""Functions to their files in which each engine spends its time."""


# vLLM


@pytest.mark.nightly
@pytest.mark.engine("vllm")
def test_py_spy_on_vllms_whole_life(make_server: Make, tmp_path: Path) -> None:
    profile = {"tool": "py-spy", "args": ["--format=speedscope"], "output_dir": str(tmp_path / "out")}
    with make_server("vllm", port=PORTS["py-spy on vLLM"], profile=profile) as server:
        complete(server, 3, tokens=16)
    no_leaks(server)
    frames = frames_of_speedscope(only(server.profiles, "server.speedscope.json"))
    assert has(frames, "run_busy_loop", "vllm/v1/engine/core.py")
    assert has(frames, "execute_model", "vllm/v1/worker/")


@pytest.mark.engine("vllm", "nsys")
def test_nsys_on_vllm_whole_life_and_block(make_server: Make, tmp_path: Path) -> None:
    profile = {**NSYS, "output_dir": str(tmp_path / "out")}
    with make_server("vllm", port=PORTS["nsys on vLLM"], profile=profile) as server:
        processes = tree(server)
        pids = pids_of(server, "VLLM::EngineCore", "VLLM::Worker")
        assert server.pid is not None
        pids["vllm serve"] = server.pid
        with server.profiling("block"):
            complete(server, 3)
    no_leaks(server)
    assert all_gone(processes)
    assert [path.name for path in server.profiles] == ["server.nsys-rep", "block.nsys-rep", "server-2.nsys-rep"]
    for path in server.profiles[:2]:
        report = read_report(path)
        calls = {name: report.calls.get(pid, 0) for name, pid in pids.items()}
        assert all(calls.values()), (path.name, calls, report.calls)
    assert "Num Calls" in summary(server.profiles[1])


PROJECT = """
    import os, signal, psutil, pytest, requests

    def complete(server):
        body = {"model": server.model, "prompt": "Hello", "max_tokens": 4}
        assert requests.post(server.url_for("/v1/completions"), json=body, timeout=300).ok

    def test_plain(inference_server):
        complete(inference_server)

    @pytest.mark.infserver_profile("TOOL")
    @pytest.mark.parametrize("prompts", [1, 2])
    def test_profiled(inference_server, prompts):
        for _ in range(prompts):
            complete(inference_server)

    @pytest.mark.infserver_profile("py-spy")
    def test_stacks(inference_server):
        complete(inference_server)
"""


KILLED = """
    @pytest.mark.infserver_profile("nsys")
    def test_killed(inference_server):
        complete(inference_server)
        os.kill(inference_server.pid, signal.SIGKILL)
        assert inference_server.wait_death(60)
"""
ENGINE_KILLED = """
    def test_engine_killed(inference_server):
        processes = psutil.Process(inference_server.pid).children(recursive=True)
        [engine] = [one for one in processes if "VLLM::EngineCore" in one.cmdline()]
        os.kill(engine.pid, signal.SIGKILL)
        complete(inference_server)
"""


@pytest.fixture
def run_marked(
    run_project: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> Callable[..., tuple[pytest.RunResult, Path]]:
    """Run a project's tests on vLLM with a profiler; return the result and the folder of the traces."""

    def run(tests: str, tool: str, **settings: str) -> tuple[pytest.RunResult, Path]:
        settings = {"tool": tool, "on_demand": "true", **settings}
        sets = [f"--infserver-set=profile.{name}={value}" for name, value in settings.items()]
        sets += [f"--infserver-set=port={PORTS[tool]}"]
        result = run_project("vllm", tests.replace("TOOL", tool), *sets)
        # One server for all tests: there is no log of an earlier one.
        assert [path.name for path in (pytester.path / "logs" / "vllm").glob("*.log")] == ["server.log"]
        return result, pytester.path / "profiles" / "vllm"

    return run


Marked = Callable[..., tuple[pytest.RunResult, Path]]
STEMS = ("test_project.test_profiled-1-vllm", "test_project.test_profiled-2-vllm")
"""What the traces of the profiled tests are called."""


@pytest.mark.engine("vllm")
def test_tests_that_are_marked_for_pytorch_and_one_that_kills_the_engine(run_marked: Marked) -> None:
    result, folder = run_marked(PROJECT + ENGINE_KILLED, "pytorch", args=f'["{WITHOUT_STACKS}"]')
    result.assert_outcomes(passed=4, failed=1)
    text = result.stdout.str()
    # vLLM 0.32 ends with code 0 some 5 s after its engine.
    reason = (
        r"vllm exited with code 0 after its process \d+ \(VLLM::EngineCore\) was killed by SIGKILL, while it was in use"
    )
    assert re.search(reason, text), text
    [cause] = {line for line in text.splitlines() if line.startswith("  cause:")}
    assert "EngineCore" in cause or "Engine core" in cause, cause
    assert sorted(path.name for path in folder.iterdir()) == [*STEMS, "test_project.test_stacks-vllm.svg"]
    _, _, shown = result.stdout.str().partition("infserver profiles")
    for stem, test in zip(STEMS, ("test_profiled[1-vllm]", "test_profiled[2-vllm]"), strict=True):
        assert f"test_project.py::{test}: profiles/vllm/{stem}/rank0." in shown
    assert "test_project.py::test_stacks[vllm]: profiles/vllm/test_project.test_stacks-vllm.svg (opens in" in shown
    one, two = (operators((folder / stem).iterdir()).total() for stem in STEMS)
    assert 0 < one < two


@pytest.mark.nightly
@pytest.mark.engine("vllm", "nsys")
def test_tests_that_are_marked_for_nsys_and_one_that_kills_the_server(run_marked: Marked) -> None:
    """Its workers outlive it, and nsys must not wait for them."""
    result, folder = run_marked(PROJECT + KILLED, "nsys", args='["--trace=osrt,nvtx"]', binary_path=NSYS_BINARY)
    result.assert_outcomes(passed=4, failed=1)
    text, _, shown = result.stdout.str().partition("infserver profiles")
    assert "vllm was killed by SIGKILL, while it was in use" in text
    names = [*STEMS, "test_project.test_killed-vllm"]
    for name, test in zip(names, ("test_profiled[1-vllm]", "test_profiled[2-vllm]", "test_killed[vllm]"), strict=True):
        assert f"test_project.py::{test}: profiles/vllm/{name}.nsys-rep (opens in Nsight Systems" in shown
        report = read_report(folder / f"{name}.nsys-rep")
        assert {"VLLM::EngineCor", "VLLM::Worker"} <= {report.names[pid] for pid in report.calls}
