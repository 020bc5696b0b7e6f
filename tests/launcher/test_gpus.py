"""What is read of the machine's GPUs, through the real nvidia-ml-py and a stand-in for its driver."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_driver import Driver, run_python

pytestmark = pytest.mark.usefixtures("nothing_left")

READ = """
from pytest_infserver.system.gpus import NoTelemetry, read_gpus

def gpus():
    try:
        return [[gpu.uuid, gpu.index, gpu.name, gpu.used, gpu.processes] for gpu in read_gpus()]
    except NoTelemetry as reason:
        return str(reason)
"""
SHOW = f"{READ}\nresult(gpus())"
A, B = "gpu GPU-a 1000 NVIDIA A", "gpu GPU-b 2000 NVIDIA B"
NOT_SUPPORTED, NO_PERMISSION, LOST = 3, 4, 15
UNKNOWN_SIZE = 2**64 - 1


def test_gpus_with_their_memory_and_processes(driver: Driver) -> None:
    assert driver.run(SHOW, A, "process 12 300", "process 13 400", B) == [
        ["GPU-a", 0, "NVIDIA A", 1000, {"12": 300, "13": 400}],
        ["GPU-b", 1, "NVIDIA B", 2000, {}],
    ]


def test_driver_without_gpus(driver: Driver) -> None:
    assert driver.run(SHOW) == []


def test_gpus_are_read_anew_each_time(driver: Driver) -> None:
    code = f"{READ}\nbefore = gpus()\nsay({B!r})\nresult([before, gpus()])"
    before, after = driver.run(code, A)
    assert [before[0][0], after[0][0]] == ["GPU-a", "GPU-b"]


def test_process_on_several_parts_of_a_gpu_is_counted_with_all_of_them(driver: Driver) -> None:
    assert driver.run(SHOW, A, "process 12 300", "process 12 400")[0][4] == {"12": 700}


def test_process_whose_memory_the_driver_does_not_know(driver: Driver) -> None:
    assert driver.run(SHOW, A, f"process 12 {UNKNOWN_SIZE}")[0][4] == {"12": 0}


@pytest.mark.parametrize("error", [NOT_SUPPORTED, NO_PERMISSION, 999])
def test_driver_that_names_no_processes(driver: Driver, error: int) -> None:
    found = driver.run(SHOW, A, f"fail nvmlDeviceGetComputeRunningProcesses_v3 {error}")
    assert found == [["GPU-a", 0, "NVIDIA A", 1000, None]]


def test_driver_older_than_the_call_for_processes(build_stub: Any, driver: Driver) -> None:
    old = dataclasses.replace(driver, library_folder=build_stub("-DWITHOUT_PROCESSES"))
    assert old.run(SHOW, A) == [["GPU-a", 0, "NVIDIA A", 1000, None]]


def test_gpu_without_memory_of_its_own(driver: Driver) -> None:
    found = driver.run(SHOW, A, "process 12 300", f"fail nvmlDeviceGetMemoryInfo {NOT_SUPPORTED}")
    assert found == [["GPU-a", 0, "NVIDIA A", None, {"12": 300}]]


def test_gpu_that_has_fallen_off_the_bus(driver: Driver) -> None:
    assert driver.run(SHOW, A, f"fail nvmlDeviceGetMemoryInfo {LOST}").startswith("NVMLError_GpuIsLost: ")


def test_driver_that_starts_to_fail(driver: Driver) -> None:
    code = f"{READ}\nbefore = gpus()\nsay('fail nvmlDeviceGetCount_v2 999')\nresult([before, gpus()])"
    before, after = driver.run(code, A)
    assert len(before) == 1
    assert after.startswith("NVMLError_Unknown: ")


def test_driver_that_cannot_be_reached_is_asked_once(driver: Driver) -> None:
    code = f"{READ}\nbefore = gpus()\nsay({A!r})\nresult([before, gpus()])"
    before, after = driver.run(code, "fail nvmlInitWithFlags 9")
    assert before == after
    assert before.startswith("nvidia-ml-py: ")
    assert "amdsmi" in before


def test_no_library_is_no_gpu() -> None:
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    found = run_python(f"sys.modules['amdsmi'] = None\n{SHOW}")
    if isinstance(found, list):
        pytest.skip("this machine has NVIDIA's library")
    assert found == "nvidia-ml-py: NVML Shared Library Not Found; amdsmi is not installed"


def test_neither_package_is_installed() -> None:
    code = f"sys.modules['pynvml'] = sys.modules['amdsmi'] = None\n{SHOW}"
    assert run_python(code) == "nvidia-ml-py is not installed; amdsmi is not installed"


AMDSMI = '''
"""The names and shapes of amdsmi 7.0.2."""
import json, os
from enum import IntEnum

class AmdSmiException(Exception):
    pass

class AmdSmiLibraryException(AmdSmiException):
    def __init__(self, err_code):
        super().__init__(err_code)
        self.err_code = err_code
        self.err_info = "AMDSMI_STATUS_X - Some failure"

    def __str__(self):
        return "Error code:\\n\\t{} | {}".format(self.err_code, self.err_info)

class AmdSmiMemoryType(IntEnum):
    VRAM = 0
    VIS_VRAM = 1
    GTT = 2

class AmdSmiInitFlags(IntEnum):
    INIT_AMD_GPUS = 2

def _check(function):
    if function in os.environ.get("AMD_FAILS", "").split():
        raise AmdSmiLibraryException(2)

def amdsmi_init(flag=AmdSmiInitFlags.INIT_AMD_GPUS):
    assert isinstance(flag, AmdSmiInitFlags)
    _check("init")

def amdsmi_get_processor_handles():
    _check("handles")
    return ["one", "two"]

def amdsmi_get_gpu_device_uuid(processor_handle):
    return f"uuid-{processor_handle}"

def amdsmi_get_gpu_memory_usage(processor_handle, mem_type):
    assert isinstance(mem_type, AmdSmiMemoryType)
    _check("memory")
    return {"one": 1000, "two": 2000}[processor_handle]

def amdsmi_get_gpu_asic_info(processor_handle):
    _check("asic")
    return {"market_name": "AMD Instinct MI300X", "vendor_id": "0x1002", "vendor_name": "AMD"}

def amdsmi_get_gpu_process_list(processor_handle):
    _check("processes")
    entry = {"name": "N/A", "pid": 12, "mem": 0, "engine_usage": {"gfx": 0, "enc": 0},
             "memory_usage": {"gtt_mem": 1, "cpu_mem": 2, "vram_mem": 300}, "cu_occupancy": "N/A"}
    return [entry] if processor_handle == "one" else []
'''


@pytest.fixture
def amdsmi(tmp_path: Path) -> Path:
    """Return the folder of a stand-in for amdsmi."""
    (tmp_path / "amdsmi").mkdir()
    (tmp_path / "amdsmi" / "__init__.py").write_text(AMDSMI)
    return tmp_path


def with_amdsmi(folder: Path, fails: str = "") -> Any:
    code = f"sys.path.insert(0, {str(folder)!r})\nsys.modules['pynvml'] = None\n{SHOW}"
    return run_python(code, AMD_FAILS=fails)


def test_gpus_of_amd(amdsmi: Path) -> None:
    name = "AMD Instinct MI300X"
    assert with_amdsmi(amdsmi) == [["uuid-one", 0, name, 1000, {"12": 300}], ["uuid-two", 1, name, 2000, {}]]


@pytest.mark.parametrize(("fails", "field", "value"), [("processes", 4, None), ("memory", 3, None), ("asic", 2, "AMD")])
def test_amd_driver_that_does_not_tell_everything(amdsmi: Path, fails: str, field: int, value: object) -> None:
    assert [gpu[field] for gpu in with_amdsmi(amdsmi, fails)] == [value, value]


def test_amd_driver_that_tells_nothing(amdsmi: Path) -> None:
    failure = "Error code: 2 | AMDSMI_STATUS_X - Some failure"
    assert with_amdsmi(amdsmi, "init") == f"nvidia-ml-py is not installed; amdsmi: {failure}"
    assert with_amdsmi(amdsmi, "handles") == f"AmdSmiLibraryException: {failure}"


def test_amdsmi_without_its_library_is_quiet(amdsmi: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # As amdsmi_wrapper.py of 7.0.2 does it.
    (amdsmi / "amdsmi" / "__init__.py").write_text(
        "_libraries = {}\nprint('Unable to find libamd_smi.so library')\n_libraries['libamd_smi.so'].x\n"
    )
    code = f"""
import contextlib, io
sys.path.insert(0, {str(amdsmi)!r})
sys.modules['pynvml'] = None
{READ}
with contextlib.redirect_stdout(io.StringIO()) as out:
    found = gpus()
result([found, out.getvalue()])
"""
    assert run_python(code) == ["nvidia-ml-py is not installed; amdsmi: libamd_smi.so cannot be loaded", ""]


def test_nvidia_comes_before_amd(amdsmi: Path, driver: Driver) -> None:
    path = os.pathsep.join(filter(None, [str(amdsmi), os.environ.get("PYTHONPATH")]))
    assert [gpu[0] for gpu in driver.run(SHOW, A, PYTHONPATH=path)] == ["GPU-a"]


def test_threads_that_connect_at_once_leave_stdout_alone(tmp_path: Path) -> None:
    (tmp_path / "amdsmi.py").write_text("import time\ntime.sleep(0.3)\nraise KeyError('no library')\n")
    (tmp_path / "pynvml.py").write_text("raise ImportError\n")
    program = """
import contextlib, sys, threading, time
from pytest_infserver.system.gpus import NoTelemetry, read_gpus
def read():
    with contextlib.suppress(NoTelemetry):
        read_gpus()
threads = [threading.Thread(target=read) for _ in range(4)]
for thread in threads:
    thread.start()
    time.sleep(0.05)
for thread in threads:
    thread.join()
assert sys.stdout is sys.__stdout__
"""
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    subprocess.run([sys.executable, "-c", program], env=env, timeout=60, check=True)
