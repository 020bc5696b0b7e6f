"""What many variants cost: 20,000 tests on 200 of them are planned, and 40 share four GPUs.

python tests/benchmarks/variants.py plan      # seconds of CPU time and MB that the plugin adds to a collection
python tests/benchmarks/variants.py gpus      # wall time against the bound of list scheduling; an idle machine
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FAKE_ENGINE = Path(__file__).resolve().parents[1] / "fake_engine.py"
MODULES, PARAMETERS = 100, 100
ROUNDS = 3
VARIANTS, GPUS = 40, 4
START, TESTS, SECONDS = 1.0, 4, 0.25
MEASURE = """
import resource, time
import pytest
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session):
    begin = time.process_time()
    result = yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"CPU {time.process_time() - begin:.2f} s, peak {peak >> 10} MB, {len(session.items)} tests")
    # Nothing is to run.
    session.items.clear()
    return result
@pytest.fixture(scope="session", params=["a"])
def server(request): return request.param
"""


def plan() -> None:
    module = """
import pytest
@pytest.mark.infserver(env_vars={{"X": "{0}"}})
@pytest.mark.parametrize("n", range({1}))
def test_one({2}, n): pass
@pytest.mark.infserver(env_vars={{"X": "{0}b"}})
@pytest.mark.parametrize("n", range({1}))
def test_two({2}, n): pass
"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_servers(folder, {})
        (folder / "conftest.py").write_text(MEASURE)
        (folder / "pytest.ini").write_text("[pytest]\nmarkers = infserver: ours\n")
        for fixture, words in (("server", ["-p", "no:infserver"]), ("inference_server", ["--infserver-config=s.yaml"])):
            for number in range(MODULES):
                (folder / f"test_{number}.py").write_text(module.format(number, PARAMETERS, fixture))
            # The first run compiles.
            for _ in range(ROUNDS + 1):
                command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *words]
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
                found = re.search(r"CPU .* tests", done.stdout)
                print(f"{fixture}: {found[0] if found else done.stdout + done.stderr}", flush=True)


def gpus() -> None:
    module = """
import time
import pytest
@pytest.mark.infserver(env_vars={{"X": "{0}"}})
@pytest.mark.parametrize("n", range({1}))
def test_one(inference_server, n): time.sleep({2})
"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_servers(folder, {"gpus": 1}, "--delay", str(START))
        (folder / "pytest.ini").write_text("[pytest]\n")
        for number in range(VARIANTS):
            (folder / f"test_{number:02}.py").write_text(module.format(number, TESTS, SECONDS))
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(GPUS)))}
        for workers in (0, GPUS):
            # Each GPU has its share of starts and tests; those who run tests have theirs.
            each = math.ceil(VARIANTS / GPUS) * (START + TESTS * SECONDS * bool(workers))
            bound = max(each, START + VARIANTS * TESTS * SECONDS / max(1, workers))
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "xdist", f"-n{workers}"]
            command.append("--infserver-config=s.yaml")
            for run in ("first", "second"):
                begin = time.monotonic()
                done = subprocess.run(
                    command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
                )
                seconds = time.monotonic() - begin
                print(
                    f"-n{workers}, {run} run: {seconds:.1f} s, bound {bound:.1f} s: {seconds / bound:.2f}", flush=True
                )
                if done.returncode:
                    print(done.stdout, done.stderr)


def write_servers(folder: Path, settings: dict[str, int], *words: str) -> None:
    command = [sys.executable, "-S", str(FAKE_ENGINE), "--port", "{port}", *words]
    more = "".join(f"{key}: {value}\n" for key, value in settings.items())
    (folder / "s.yaml").write_text(f"backend: command\nname: a\nlaunch_command: {command}\n{more}")


if __name__ == "__main__":
    {"plan": plan, "gpus": gpus}[sys.argv[1] if len(sys.argv) > 1 else "plan"]()
