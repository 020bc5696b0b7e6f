"""GPU memory that outlives its server, through the real nvidia-ml-py and a stand-in for its driver.

Every program runs in an interpreter of its own, for the connection to the driver is made once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_driver import Driver, run_python

from .holders import linux_only

pytestmark = [linux_only, pytest.mark.usefixtures("hard_limit", "nothing_left")]

Run = Callable[..., Any]
ENGINE = Path(__file__).parents[2] / "fake_engine.py"
A, B = "gpu GPU-a 0 Stub A", "gpu GPU-b 0 Stub B"
MIB = 1 << 20
NOT_SUPPORTED = 3
NO_LISTS = f"fail nvmlDeviceGetComputeRunningProcesses_v3 {NOT_SUPPORTED}"
NO_MEMORY = f"fail nvmlDeviceGetMemoryInfo {NOT_SUPPORTED}"
PROGRAM = """
import subprocess
from pytest_infserver.launcher.leaks import gpu
from pytest_infserver.system.disk.locks import take_shared_lock
from pytest_infserver.system.disk.places import shared_lock_file
from pytest_infserver.system.processes.table import read_process

gpu.RELEASE_LIMIT = 0.2
OURS = True
gpu._pids_are_ours = lambda: OURS
A, B = "gpu GPU-a 0 Stub A", "gpu GPU-b 0 Stub B"
MIB = 1 << 20

def used(mib, name="a"):
    return f"gpu GPU-{name} {mib * MIB} Stub {name.upper()}"

def holds(pid, mib):
    return f"process {pid} {mib * MIB}"

def process():
    child = subprocess.Popen(["sleep", "60"])
    return child, {(child.pid, read_process(child.pid).start): "sleep 60"}

def ended():
    child, identity = process()
    child.kill()
    child.wait()
    return child.pid, identity

def shown(memory, processes):
    found = memory.left(processes)
    return [[one.kind, one.name, one.detail, one.pid, one.command] for one in found], memory.not_checked
"""
SERVER = f"""
{PROGRAM}
from pytest_infserver import CommandServer, LeakError
from pytest_infserver.launcher.leaks.report import as_text

def server(**settings):
    command = [sys.executable, "-S", {str(ENGINE)!r}, "--port", "{{port}}"]
    return CommandServer(launch_command=command, output_dir=os.environ["LOGS"], debug_mode=True, **settings)

def stop(one):
    failed = False
    try:
        one.stop()
    except LeakError:
        failed = True
    # Other runs on this machine leave other things.
    found = [finding for finding in one.leak_report.findings if finding.kind == "gpu"]
    assert failed == any(finding.fails for finding in found)
    return as_text(str(one), found) if found else "", one.leak_report.not_checked
"""


@pytest.fixture
def run(driver: Driver, tmp_path: Path) -> Run:
    """Run what follows PROGRAM."""

    def run(code: str, *says: str, program: str = PROGRAM) -> Any:
        return driver.run(program + code, *says, INFSERVER_STATE_DIR=str(tmp_path), LOGS=str(tmp_path / "logs"))

    return run


def held(size: str, pid: int, gpu: str = "GPU 0 (Stub A)") -> list[object]:
    return ["gpu", gpu, f"{size} 0.2 s after the end", pid, "sleep 60"]


def test_memory_that_is_still_held_is_found(run: Run) -> None:
    pid, found = run(
        """
memory = gpu.GpuMemory()
pid, server = ended()
say(A, holds(pid, 512))
result([pid, shown(memory, server)])
""",
        A,
    )
    assert found == [[held("512 MiB still held", pid)], None]


def test_memory_that_comes_back_later_is_no_finding(run: Run) -> None:
    found, seconds = run(
        """
gpu.RELEASE_LIMIT = 30
memory = gpu.GpuMemory()
pid, server = ended()
say(A, holds(pid, 512))
threading.Timer(0.3, say, [A]).start()
begin = time.monotonic()
result([shown(memory, server), time.monotonic() - begin])
""",
        A,
    )
    assert found == [[], None]
    assert 0.2 < seconds < 20


def test_memory_of_anybody_else_is_no_finding_and_not_waited_for(run: Run) -> None:
    found, seconds = run(
        """
gpu.RELEASE_LIMIT = 30
memory = gpu.GpuMemory()
pid, server = ended()
say(used(4096), holds(os.getpid(), 512), holds(1, 512), holds(pid + 100000, 512))
begin = time.monotonic()
result([shown(memory, server), time.monotonic() - begin])
""",
        A,
    )
    assert found == [[], None]
    assert seconds < 20


def test_memory_that_a_test_held_before_the_server_is_no_finding(run: Run) -> None:
    code = """
say(A, holds(os.getpid(), 512))
memory = gpu.GpuMemory()
result(shown(memory, ended()[1]))
"""
    assert run(code) == [[], None]


def test_other_process_with_the_same_pid_is_no_finding(run: Run) -> None:
    code = """
memory = gpu.GpuMemory()
child, identity = process()
say(A, holds(child.pid, 512))
found = shown(memory, {(child.pid, "1"): "another"})
both = shown(memory, {(child.pid, "1"): "another", **identity})
child.kill()
child.wait()
result([child.pid, found, both])
"""
    pid, found, both = run(code, A)
    assert found == [[], None]
    # A process that could not be killed is still the server's.
    assert both == [[held("512 MiB still held", pid)], None]


def test_process_whose_memory_the_driver_does_not_know(run: Run) -> None:
    code = f"""
memory = gpu.GpuMemory()
pid, server = ended()
say(A, f"process {{pid}} {2**64 - 1}")
result([pid, shown(memory, server)])
"""
    pid, found = run(code, A)
    assert found == [[held("still in use", pid)], None]


def test_each_gpu_is_named_with_its_largest_holder(run: Run) -> None:
    code = """
memory = gpu.GpuMemory()
(one, first), (two, second) = ended(), ended()
say(A, holds(one, 100), holds(two, 200), B, holds(one, 50), holds(1, 5000))
result([one, two, shown(memory, {**first, **second})])
"""
    one, two, found = run(code, A, B)
    expected = [held("300 MiB still held", two), held("50 MiB still held", one, "GPU 1 (Stub B)")]
    assert found == [expected, None]


def test_gpu_that_does_not_tell_its_memory_is_judged_by_process(run: Run) -> None:
    code = f"""
memory = gpu.GpuMemory()
pid, server = ended()
say(A, holds(pid, 512), "{NO_MEMORY}")
result([pid, shown(memory, server)])
"""
    pid, found = run(code, A, NO_MEMORY)
    assert found == [[held("512 MiB still held", pid)], None]


GROWN = ["gpu", "GPU 0 (Stub A)", "65 MiB more in use than before the start", None, ""]


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        pytest.param("[used(1000)]", "[used(1065)]", [GROWN], id="hidden processes"),
        pytest.param("[used(1000)]", "[used(1065), holds(7, 65)]", [GROWN], id="a new process"),
        pytest.param("[used(1000), holds(5, 9)]", "[used(1065), holds(5, 9), holds(7, 65)]", [GROWN], id="one more"),
        pytest.param("[used(1000)]", "[used(1064), holds(7, 64)]", [], id="within the tolerance"),
        pytest.param("[used(1000)]", "[used(0), holds(7, 64)]", [], id="less"),
        pytest.param("[used(1000), holds(5, 9)]", "[used(9000), holds(5, 8009)]", [], id="a process that was there"),
        pytest.param("[used(1000), holds(5, 9), holds(6, 9)]", "[used(9000), holds(6, 8)]", [], id="one of them"),
    ],
)
def test_in_a_container_the_devices_change_counts(run: Run, before: str, after: str, found: list[object]) -> None:
    code = f"""
OURS = False
say(*{before})
memory = gpu.GpuMemory()
locks = len(memory.lock_fds)
memory.release()
pid, server = ended()
say(*{after})
result([locks, shown(memory, server), len(memory.lock_fds)])
"""
    assert run(code) == [1, [found, None], 0]


def test_own_pids_mean_nothing_in_a_container(run: Run) -> None:
    code = """
OURS = False
memory = gpu.GpuMemory()
memory.release()
pid, server = ended()
say(used(10), holds(pid, 10))
result(shown(memory, server))
"""
    assert run(code, A) == [[], None]


@pytest.mark.parametrize(("growth", "found"), [(65, [GROWN]), (64, [])])
def test_driver_that_names_no_processes(run: Run, growth: int, found: list[object]) -> None:
    code = f"""
memory = gpu.GpuMemory()
memory.release()
say(used({growth}), "{NO_LISTS}")
result(shown(memory, ended()[1]))
"""
    assert run(code, A, NO_LISTS) == [found, None]


def test_change_that_comes_back_later_is_no_finding(run: Run) -> None:
    code = """
OURS = False
gpu.RELEASE_LIMIT = 30
memory = gpu.GpuMemory()
memory.release()
say(used(5000), holds(7, 5000))
threading.Timer(0.3, say, [used(10)]).start()
result(shown(memory, ended()[1]))
"""
    assert run(code, A) == [[], None]


OTHER = "GPU memory: another server uses GPU 0 (Stub A), and its memory cannot be told by process here"


def test_device_that_another_server_uses_is_not_judged(run: Run) -> None:
    code = """
OURS = False
first = gpu.GpuMemory()
second = gpu.GpuMemory()
say(used(5000), holds(7, 5000), used(100, "b"))
found = shown(second, ended()[1])
first.release()
result([found, len(first.lock_fds) + len(second.lock_fds), shown(gpu.GpuMemory(), ended()[1])])
"""
    assert run(code, A) == [[[], OTHER], 0, [[], None]]


def test_devices_that_no_other_server_uses_are_judged_all_the_same(run: Run) -> None:
    code = """
OURS = False
other = take_shared_lock(shared_lock_file("gpu-GPU-a.lock"))
memory = gpu.GpuMemory()
memory.release()
say(used(5000), used(100, "b"))
result(shown(memory, ended()[1]))
"""
    grown = ["gpu", "GPU 1 (Stub B)", "100 MiB more in use than before the start", None, ""]
    assert run(code, A, B) == [[grown], OTHER]


def test_device_that_another_server_has_taken_since_the_end_is_not_judged(run: Run) -> None:
    code = """
OURS = False
memory = gpu.GpuMemory()
memory.release()
other = take_shared_lock(shared_lock_file("gpu-GPU-a.lock"))
say(used(5000), holds(7, 5000))
result(shown(memory, ended()[1]))
"""
    assert run(code, A) == [[], OTHER]


def test_device_of_which_nothing_is_known_is_said(run: Run) -> None:
    code = """
OURS = False
memory = gpu.GpuMemory()
result([memory.lock_fds, shown(memory, ended()[1])])
"""
    reason = "GPU memory: the driver does not tell how much of GPU 0 (Stub A) is in use"
    assert run(code, A, NO_MEMORY) == [[], [[], reason]]


SILENT = "GPU memory: the driver does not tell about GPU 0 (Stub A) any more"


@pytest.mark.parametrize(
    ("ours", "at_the_end", "reason"),
    [
        (True, "A, 'fail nvmlDeviceGetCount_v2 999'", "GPU memory: NVMLError_Unknown: Unknown Error"),
        (False, "A, 'fail nvmlDeviceGetCount_v2 999'", "GPU memory: NVMLError_Unknown: Unknown Error"),
        (True, f"A, '{NO_LISTS}'", SILENT),
        (False, f"A, '{NO_MEMORY}'", SILENT),
        (True, "", SILENT),
        (False, "B", SILENT),
    ],
)
def test_driver_that_falls_silent_is_said(run: Run, ours: bool, at_the_end: str, reason: str) -> None:
    code = f"""
OURS = {ours}
memory = gpu.GpuMemory()
memory.release()
say({at_the_end})
result(shown(memory, ended()[1]))
"""
    assert run(code, A) == [[], reason]


def test_gpu_that_falls_silent_does_not_hide_another(run: Run) -> None:
    code = """
memory = gpu.GpuMemory()
pid, server = ended()
say(B, holds(pid, 50))
result([pid, shown(memory, server)])
"""
    pid, found = run(code, A, B)
    assert found == [[held("50 MiB still held", pid, "GPU 0 (Stub B)")], SILENT]


def test_gpu_that_has_come_since_is_nobodys(run: Run) -> None:
    code = """
memory = gpu.GpuMemory()
pid, server = ended()
say(A, B, holds(pid, 50))
result(shown(memory, server))
"""
    assert run(code, A) == [[], None]


def test_no_gpu_is_nothing_to_check(run: Run) -> None:
    assert run("result(shown(gpu.GpuMemory(), ended()[1]))") == [[], None]


def test_no_library_is_said(tmp_path: Path) -> None:
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    code = f"{PROGRAM}\nsys.modules['amdsmi'] = None\nresult(shown(gpu.GpuMemory(), ended()[1]))"
    found, reason = run_python(code, LD_LIBRARY_PATH=str(tmp_path))
    if reason is None:
        pytest.skip("this machine has NVIDIA's library")
    assert found == []
    assert reason == "GPU memory: nvidia-ml-py: NVML Shared Library Not Found; amdsmi is not installed"


def test_pid_namespace_of_this_process() -> None:
    from pytest_infserver.launcher.leaks import gpu

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.readlink", lambda path: "pid:[4026531836]")
        assert gpu._pids_are_ours()
        patch.setattr("os.readlink", lambda path: "pid:[4026532000]")
        assert not gpu._pids_are_ours()

        def fail(path: str) -> str:
            raise OSError(path)

        patch.setattr("os.readlink", fail)
        assert not gpu._pids_are_ours()


def test_server_that_gives_its_memory_back_in_time(run: Run) -> None:
    code = """
gpu.RELEASE_LIMIT = 30
one = server().start()
say(A, holds(one.pid, 512), holds(os.getpid(), 100))
threading.Timer(0.5, say, [A, holds(os.getpid(), 100)]).start()
result(stop(one))
"""
    assert run(code, A, program=SERVER) == ["", []]


def test_server_that_keeps_its_memory(run: Run) -> None:
    code = """
one = server().start()
pid = one.pid
say(A, holds(pid, 512))
result([pid, stop(one)])
"""
    pid, (text, not_checked) = run(code, A, program=SERVER)
    first, second, command, advice = text.splitlines()
    assert first == "command left behind memory of a GPU:"
    assert second == f"  gpu       GPU 0 (Stub A), 512 MiB still held 0.2 s after the end, held by pid {pid}"
    assert "fake_engine.py" in command
    assert advice.endswith('allow_leaks: ["gpu:GPU 0 (Stub A)"]')
    assert not_checked == []


def test_memory_that_is_allowed_is_a_warning(run: Run) -> None:
    code = """
one = server(allow_leaks=["gpu:GPU 0*"])
warnings = []
one.on_warning = warnings.append
one.start()
say(A, holds(one.pid, 512))
result([stop(one), warnings])
"""
    (text, not_checked), [warning] = run(code, A, program=SERVER)
    shown = "  gpu       GPU 0 (Stub A), 512 MiB still held 0.2 s after the end"
    assert text.startswith(f"command left behind memory of a GPU:\n{shown}")
    assert shown.strip() in warning
    assert not_checked == []


def test_memory_of_others_is_none_of_the_servers(run: Run) -> None:
    code = """
say(A, holds(os.getpid(), 512))
one = server().start()
say(used(9999), holds(os.getpid(), 5000), holds(1, 512))
result(stop(one))
"""
    assert run(code, program=SERVER) == ["", []]


def test_servers_in_a_container(run: Run) -> None:
    """The device is locked as long as its server lives, whoever started it."""
    code = """
OURS = False
file = shared_lock_file("gpu-GPU-a.lock")
first, second = server().start(), server().start()
locked = take_shared_lock(file) is None
say(used(5000), holds(7, 5000))
second_end = stop(second)
first_end = stop(first)
lock = take_shared_lock(file)
os.close(lock)
result([locked, first_end, second_end])
"""
    locked, (text, not_checked), second = run(code, A, program=SERVER)
    assert locked
    assert second == ["", [OTHER]]
    assert text.splitlines()[1] == "  gpu       GPU 0 (Stub A), 5000 MiB more in use than before the start"
    assert not_checked == []
