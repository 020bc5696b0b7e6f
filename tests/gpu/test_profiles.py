"""Profiles of a server that computes with torch: kernels in the traces, or a reason, never a silent nothing.

What py-spy and nsys do without a GPU is tested in tests/engines.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from .conftest import ON_CPU, ON_GPU
from .machine import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")
BACKEND = """
from pytest_infserver import CommandServer
from pytest_infserver.launcher.profiling.endpoints import ProfileEndpoints

def where(folder, version, options):
    return [], {"TRACES": folder}

class TorchServer(CommandServer):
    torch_endpoints = ProfileEndpoints(where)
"""
TESTS = """
import pytest, time
from helpers import ask

@pytest.mark.infserver_profile("TOOL")
def test_it(inference_server):
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        ask(inference_server, "/compute")
"""
NSYS = ("/opt/nvidia/nsight-systems/*/bin/nsys", "/opt/nvidia/nsight-compute/*/host/target-linux-x64/nsys")


@pytest.mark.parametrize("machine", [ON_GPU, ON_CPU], indirect=True)
def test_pytorch_profile_has_kernels_in_it(machine: Machine, folder: Path) -> None:
    settings = {"profile": {"tool": "pytorch", "on_demand": True, "output_dir": str(machine.output_of(folder))}}
    server = machine.torch_server(backend="torch_backend:TorchServer", **settings)
    tests = TESTS.replace("TOOL", "pytorch")
    run = machine.run(folder, {"one": server}, test_it=tests, torch_backend=BACKEND)
    assert run.returncode == 0, run.output
    [trace] = run.folder.rglob("*.trace.json.gz")
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    kernels = {event["name"] for event in events if event.get("cat") == "kernel"}
    operators = {event["name"] for event in events if event.get("cat") == "cpu_op"}
    assert "aten::matmul" in operators
    assert kernels or machine.kind == "cpu", operators
    machine.note("kernels in PyTorch's trace", f"{len(kernels)} ({trace.stat().st_size >> 10} KB)")


@pytest.mark.parametrize("machine", [ON_GPU], indirect=True)
def test_py_spy(machine: Machine, folder: Path) -> None:
    if shutil.which("py-spy") is None:
        pytest.skip("needs py-spy")
    settings = {"profile": {"tool": "py-spy", "on_demand": True, "output_dir": str(machine.output_of(folder))}}
    run = machine.run(folder, {"one": machine.torch_server(**settings)}, test_it=TESTS.replace("TOOL", "py-spy"))
    problem = "permission" in run.output.lower() or "ptrace" in run.output
    machine.note("py-spy", "may not look into the server" if problem else "a trace")
    if problem:
        pytest.skip("py-spy may not look into other processes here")
    assert run.returncode == 0, run.output
    [trace] = run.folder.rglob("*.svg")
    assert "compute" in trace.read_text()


@pytest.mark.parametrize("machine", [ON_GPU], indirect=True)
def test_nsys_writes_a_report_or_says_why_not(machine: Machine, folder: Path) -> None:
    found = [Path(path) for path in [shutil.which("nsys")] if path]
    for pattern in NSYS:
        found += sorted(Path("/").glob(pattern.lstrip("/")))
    if not found:
        pytest.skip("there is no nsys")
    profile = {"tool": "nsys", "on_demand": False, "binary_path": str(found[0]), "args": ["--trace=cuda"]}
    profile |= {"output_dir": str(machine.output_of(folder)), "flush_timeout": 60}
    tests = TESTS.replace('@pytest.mark.infserver_profile("TOOL")', "")
    run = machine.run(folder, {"one": machine.torch_server(profile=profile)}, test_it=tests)
    reports = [path for path in run.folder.rglob("*.nsys-rep") if path.stat().st_size]
    said = next((line for line in run.output.splitlines() if "nsys" in line and "rror" in line), "nothing")
    machine.note(f"{found[0]}", f"{len(reports)} reports; it said: {said}")
    # Nsight Compute's own copy of nsys collects, and cannot make a report of that.
    assert reports or "ProfileError" in run.output or "nsys" in said, run.output
