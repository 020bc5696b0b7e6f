"""`transformers serve` with models made here, through the whole plugin."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import ON_GPU
from .machine import HERE, MIB, Keeper, Machine, Watcher, transformers_command

# Its start takes a minute of a CPU.
ON_CPU = pytest.param("cpu", marks=[pytest.mark.engine("transformers"), pytest.mark.nightly], id="cpu")
SMALL, LARGE = (1024, 3), (4096, 8)
"""Width and layers: 100 MB and 4.3 GB."""
pytestmark = pytest.mark.usefixtures("nothing_left")
ANSWERS = """
import pathlib
from helpers import ask
from pytest_infserver.system.gpus import NoTelemetry, read_gpus
import requests

def post(server, path, **body):
    answer = requests.post(server.url_for(path), json={"model": server.model, "max_tokens": 4, **body}, timeout=120)
    assert answer.ok, answer.text
    return answer.json()

def test_completion(inference_server):
    try:
        used = sum(gpu.used or 0 for gpu in read_gpus())
    except NoTelemetry:
        used = 0
    with (pathlib.Path(__file__).parent / "used.txt").open("a") as file:
        file.write(f"{inference_server.name} {used}\\n")
    assert 1 <= post(inference_server, "/v1/completions", prompt="Hello")["usage"]["completion_tokens"] <= 4

def test_chat(inference_server):
    answer = post(inference_server, "/v1/chat/completions", messages=[{"role": "user", "content": "Hello"}])
    assert answer["choices"][0]["message"]["role"] == "assistant"
"""
FAILS = """
def test_fails(inference_server):
    requests.get(inference_server.url_for("/no-such-path"), timeout=60)
    assert False
"""


@pytest.fixture(scope="module")
def make_model(machine: Machine, make_folder: Callable[[str], Path]) -> Callable[[tuple[int, int]], Path]:
    """Return what makes a model, each one once."""
    made: dict[tuple[int, int], Path] = {}

    def make(size: tuple[int, int]) -> Path:
        if size not in made:
            folder = make_folder(f"model{size[0]}")
            words = [machine.python, HERE / "make_model.py", folder, *map(str, size), machine.device]
            subprocess.run(words, check=True, timeout=300)
            made[size] = folder
        return made[size]

    return make


@pytest.fixture
def serve(machine: Machine, make_model: Callable[[tuple[int, int]], Path]) -> Callable[..., dict[str, Any]]:
    """Return what makes a server's block of a model of this size."""
    command = transformers_command(machine.python)
    if command is None:
        pytest.skip("there is no command transformers")

    def block(size: tuple[int, int]) -> dict[str, Any]:
        # By itself it would put what does not fit on the device elsewhere.
        settings = {"debug_mode": True, "config": {"server_args": {"device": machine.device}}}
        settings |= {"backend": "transformers", "binary_path": command, "model": str(make_model(size))}
        needs = {"env_vars": {"HF_HUB_OFFLINE": "1"}, "gpus": 0 if machine.kind == "cpu" else 1}
        return {**settings, **needs}

    return block


@pytest.mark.parametrize("machine", [ON_GPU, ON_CPU], indirect=True)
def test_whole_plugin(
    machine: Machine, watcher: Watcher, serve: Callable[..., dict[str, Any]], folder: Path, results: Path
) -> None:
    on_gpu = machine.kind == "gpu"
    before = watcher.used() if on_gpu else 0
    run = machine.run(folder, {"small": serve(SMALL)}, test_it=ANSWERS + FAILS)
    shutil.copy(run.folder / "run.json", results)
    shutil.copy(run.folder / "report.html", results)
    assert "2 passed" in run.output, run.output
    assert "1 failed" in run.output, run.output
    log = run.output.partition("small: log during this test")[2].partition("=====")[0]
    assert "/no-such-path" in log, run.output
    assert "/v1/" not in log
    server = run.server("small")
    assert server["leaks"] == []
    assert server["lives"][0]["end"] == "stopped"
    machine.note("transformers serve, 100 MB: seconds to ready and of the stop", _seconds(server))
    if on_gpu:
        assert server["peak_gpu_bytes"] > 100 * MIB
        machine.note("transformers serve, 100 MB: peak of GPU memory in MiB", server["peak_gpu_bytes"] // MIB)
        watcher.wait(lambda used: used <= before + 64 * MIB)


def _seconds(server: Any) -> str:
    return f"{server['ready_seconds']:.1f}, {server['stop_seconds']:.1f}"


@pytest.mark.parametrize("machine", [ON_GPU], indirect=True)
def test_next_server_starts_when_the_memory_of_a_large_one_is_back(
    machine: Machine, watcher: Watcher, serve: Callable[..., dict[str, Any]], folder: Path
) -> None:
    before = watcher.used()
    run = machine.run(folder, {"large": serve(LARGE), "small": serve(SMALL)}, test_it=ANSWERS)
    assert run.returncode == 0, run.output
    assert run.server("large")["peak_gpu_bytes"] > 4000 * MIB
    used = dict(line.split() for line in (folder / "used.txt").read_text().splitlines())
    assert int(used["small"]) - before < 2500 * MIB
    machine.note("transformers serve, 4.3 GB: seconds to ready and of the stop", _seconds(run.server("large")))
    large, small = (run.server(name)["lives"][0] for name in ("large", "small"))
    first, second = sorted((large, small), key=lambda life: life["launched"])
    machine.note("seconds from the end of one to the launch of the next", f"{second['launched'] - first['ended']:.2f}")
    watcher.wait(lambda used: used <= before + 64 * MIB)


@pytest.mark.parametrize("machine", [ON_GPU], indirect=True)
def test_model_that_does_not_fit_is_named_with_the_sizes(
    machine: Machine, watcher: Watcher, serve: Callable[..., dict[str, Any]], folder: Path
) -> None:
    import pynvml

    server = serve(LARGE)
    before = watcher.used()
    pynvml.nvmlInit()
    memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0))
    keeper = Keeper(machine)
    try:
        # With its context, and that of the server, some 2 GiB stay.
        keeper.ask(f"/allocate?mib={(memory.free >> 20) - 3072}")
        run = machine.run(folder, {"large": server}, test_it=ANSWERS)
    finally:
        keeper.close()
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.output
    cause = run.cause("large")
    assert "out of memory" in cause, run.output
    assert "Tried to allocate" in cause
    assert "GiB" in cause
    machine.note("a model that does not fit", cause)
    watcher.wait(lambda used: used <= before + 64 * MIB)
