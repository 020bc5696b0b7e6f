"""What debug mode costs at the stop, in milliseconds, beside 1,000 other processes (Linux).

    python tests/benchmarks/leaks.py [--runs 10] [--processes 1000]

CPU: the check itself, run here as the supervisor runs it, on a server with four children that holds shared memory.
Wall: stop() with and without debug mode; the machine should be idle.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_infserver import CommandServer, LeakError
from pytest_infserver.launcher.leaks.temporary_files import new_path
from pytest_infserver.launcher.leaks.tracker import Tracker
from pytest_infserver.system.processes.table import descendants

ENGINE = Path(__file__).parents[1] / "fake_engine.py"
HOLDER = """
import mmap, os, sys, time
file = os.open("/dev/shm/" + sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(file, 1 << 20)
memory = mmap.mmap(file, 1 << 20)
children = [os.fork() for _ in range(4) if os.getppid() == int(sys.argv[2])]
print("up", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def crowd(count: int) -> Iterator[None]:
    others = [subprocess.Popen(["sleep", "600"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in others:
            one.kill()
        for one in others:
            one.wait()


def cpu(action: Callable[[], object]) -> float:
    begin = time.process_time()
    action()
    return time.process_time() - begin


def check(leaks: bool) -> dict[str, float]:
    """Return the CPU time of each part of one check."""
    name = f"infserver-bench-{os.getpid()}"
    tracker = Tracker(os.getpid(), new_path(tempfile.gettempdir()))
    command = [sys.executable, "-I", "-S", "-c", HOLDER, name, str(os.getpid())]
    root = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert root.stdout is not None
    root.stdout.readline()
    before = cpu(lambda: tracker.look(descendants(root.pid)))
    os.killpg(root.pid, 9)
    root.wait()
    root.stdout.close()
    path = Path("/dev/shm") / name
    if not leaks:
        path.unlink()
    result: dict[str, object] = {}
    scan = cpu(lambda: descendants(os.getpid()))
    after = cpu(lambda: result.update(tracker.finish([])))
    found = result["findings"]
    assert isinstance(found, list)
    assert len(found) == leaks
    assert not path.exists()
    return {"look": before, "last look for processes": scan, "what is left": after, "sum": before + scan + after}


def stop(debug: bool, folder: str, *arguments: str) -> float:
    command = [sys.executable, "-S", str(ENGINE), "--port={port}", "--children=4", *arguments]
    server = CommandServer(launch_command=command, output_dir=folder, debug_mode=debug).start()
    time.sleep(0.3)
    begin = time.perf_counter()
    with contextlib.suppress(LeakError):
        server.stop()
    return time.perf_counter() - begin


def shown(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1000:6.1f} ms (max {max(seconds) * 1000:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1000)
    options = parser.parse_args()
    with crowd(options.processes), tempfile.TemporaryDirectory() as folder:
        for leaks in (False, True):
            rows = [check(leaks) for _ in range(options.runs)]
            print(f"CPU, {'one object left' if leaks else 'nothing left'}:")
            for part in rows[0]:
                print(f"  {part:24} {shown([row[part] for row in rows])}")
        for debug in (False, True):
            walls = [stop(debug, folder) for _ in range(options.runs)]
            print(f"stop(), debug mode {'on ' if debug else 'off'}   {shown(walls)}", flush=True)


if __name__ == "__main__":
    main()
