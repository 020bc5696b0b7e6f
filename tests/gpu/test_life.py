"""A server's life on a GPU: its memory, turns on a device, a device that is too small, a hang, a killed run."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .machine import BACK, MIB, Machine, Watcher

pytestmark = pytest.mark.usefixtures("nothing_left")
SLACK = 64 * MIB
"""By how much memory may differ that is back."""
ALLOCATE = """
from helpers import ask
def test_it(inference_server):
    ask(inference_server, "/allocate", mib=1024)
"""


def test_memory_is_in_the_record_and_comes_back(machine: Machine, watcher: Watcher, folder: Path) -> None:
    before = watcher.used()
    # The record is of once a second, and at the stop.
    tests = f"{ALLOCATE}    import time; time.sleep(1.5)\n"
    run = machine.run(folder, {"one": machine.torch_server()}, test_it=tests)
    assert run.returncode == 0, run.output
    peak = run.server("one")["peak_gpu_bytes"]
    assert 1024 * MIB <= peak < 4096 * MIB
    seconds = watcher.wait(lambda used: used <= before + SLACK)
    machine.note("1024 MiB of a server in the record as", f"{peak // MIB} MiB")
    machine.note("seconds after the run until its memory is back", f"{seconds:.2f}")


def test_two_servers_that_want_one_gpu_take_turns(machine: Machine, watcher: Watcher, folder: Path) -> None:
    tests = """
    import pathlib, pytest
    from helpers import ask
    from pytest_infserver.system.gpus import read_gpus

    @pytest.mark.parametrize("number", [1, 2])
    def test_it(inference_server, number):
        used = sum(gpu.used for gpu in read_gpus())
        with (pathlib.Path(__file__).parent / "used.txt").open("a") as file:
            file.write(f"{inference_server.name} {number} {used}\\n")
        ask(inference_server, "/allocate", mib=4096)
    """
    before = watcher.used()
    servers = {"a": machine.torch_server("--mib", "64"), "b": machine.torch_server("--mib", "64")}
    run = machine.run(folder, servers, test_it=tests)
    assert run.returncode == 0, run.output
    lives = sorted((life for name in servers for life in run.server(name)["lives"]), key=lambda life: life["launched"])
    assert len(lives) >= 2
    for one, following in itertools.pairwise(lives):
        assert one["ended"] <= following["launched"]
    found = [line.split() for line in (folder / "used.txt").read_text().splitlines()]
    at_begin = {name: int(used) - before for name, number, used in found if number == "1"}
    # Each has its own context by then, and nothing of the other one's 4096 MiB.
    assert max(at_begin.values()) < 3072 * MIB
    machine.note("MiB in use when each of two servers begins", {name: size // MIB for name, size in at_begin.items()})


def test_two_runs_that_want_one_gpu_take_turns(machine: Machine, folder: Path) -> None:
    runs = []
    for name in ("one", "two"):
        project = folder / name
        project.mkdir()
        command = machine.project(project, {"server": machine.torch_server()}, test_it=ALLOCATE)
        runs.append(machine.popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    outputs = [run.communicate(timeout=200)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    records = [_lives(machine.output_of(folder / name)) for name in ("one", "two")]
    first, second = sorted(records)
    assert first[1] <= second[0]


def _lives(folder: Path) -> tuple[float, float]:
    [life] = json.loads((folder / "run.json").read_text())["servers"][0]["lives"]
    return life["launched"], life["ended"]


SHOW = """
from helpers import ask
def test_it(inference_server):
    print("SEEN", ask(inference_server, "/device"))
"""


def test_uuid_in_the_callers_list_is_what_a_server_sees(
    machine: Machine, watcher: Watcher, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = watcher.look()[0][0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", uuid)
    run = machine.run(folder, {"one": machine.torch_server()}, "-s", test_it=SHOW)
    assert run.returncode == 0, run.output
    seen = re.search(r"SEEN .*'visible': '([^']*)', 'count': (\d+)", run.output)
    assert seen is not None, run.output
    assert seen.groups() == (uuid, "1")
    # The beginning of a UUID is enough, and what there is not ends the run with the arithmetic.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", uuid[:12])
    run = machine.run(folder, {"two": machine.torch_server(gpus=2)}, test_it=SHOW)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"two needs 2 GPUs (gpus: 2), and this run has 1 (CUDA_VISIBLE_DEVICES={uuid[:12]})" in run.output


def test_name_of_a_part_of_a_gpu_is_passed_on_as_it_is(
    machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = "MIG-11111111-2222-3333-4444-555555555555,MIG-66666666-7777-8888-9999-000000000000"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", parts)
    run = machine.run(folder, {"one": machine.torch_server(gpus=2)}, "-s", test_it=SHOW)
    assert run.returncode == 0, run.output
    assert f"'visible': '{parts}'" in run.output


def test_too_little_memory_is_named_with_the_sizes(machine: Machine, folder: Path) -> None:
    run = machine.run(folder, {"huge": machine.torch_server("--mib", str(1 << 20))}, test_it=ALLOCATE)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.output
    cause = run.cause("huge")
    assert re.search(r"out of memory. Tried to allocate 1024\.00 GiB.* total capacity of \d+\.\d\d GiB", cause), cause
    assert f"cause:   {cause.splitlines()[0]}"[:100] in run.output
    machine.note("out of memory at the start", cause)


def test_too_little_memory_during_a_test_is_in_its_report(machine: Machine, folder: Path) -> None:
    tests = ALLOCATE.replace("1024", str(1 << 20))
    run = machine.run(folder, {"small": machine.torch_server()}, test_it=tests)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.output
    log = run.output.partition("small: log during this test")[2]
    assert "OutOfMemoryError" in log
    assert "Tried to allocate 1024.00 GiB" in log


def test_hang_report_has_what_the_driver_shows(machine: Machine, folder: Path) -> None:
    tests = """
    from helpers import ask
    def test_it(inference_server):
        ask(inference_server, "/allocate", mib=512)
        ask(inference_server, "/hang")
    """
    limits = {"heartbeat_interval": 0.5, "heartbeat_timeout": 2, "hang_timeout": 2 * machine.stop_timeout}
    run = machine.run(folder, {"stuck": machine.torch_server(**limits)}, test_it=tests)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.output
    report = (run.folder / "stuck" / "hang-1.txt").read_text()
    assert "torch_server.py" in report
    said = report.partition("=== nvidia-smi")[2]
    assert "NVIDIA-SMI" in said, report
    machine.note("nvidia-smi in a hang report, its end", said.strip().splitlines()[-4:])


def test_killed_run_leaves_no_memory(machine: Machine, watcher: Watcher, folder: Path) -> None:
    tests = f"{ALLOCATE}    ask(inference_server, '/hang')\n"
    before = watcher.used()
    command = machine.project(folder, {"one": machine.torch_server()}, test_it=tests)
    run = machine.popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        watcher.wait(lambda used: used >= before + 1024 * MIB, limit=120)
    finally:
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    begin = time.monotonic()
    # The driver's own part differs by some MB.
    watcher.wait(lambda used: used <= before + 16 * MIB, limit=BACK)
    left = (watcher.used() - before) / MIB
    machine.note("after kill -9 of pytest", f"{left:.1f} MiB left after {time.monotonic() - begin:.2f} s")
