"""What the reports of a run cost: milliseconds per test, and per run.

    python tests/benchmarks/reporting.py [--tests 1000] [--workers 0,2]

Runs tests that do nothing on a server of the fake engine, and adds up the time that is spent in what records and
writes: after each phase of a test, in the process that runs it and in the one that shows the summary, and at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LIMIT = 600
"""Seconds after which a run counts as hung."""

CONFTEST = """
import atexit, functools, json, os, pathlib, time
from pytest_infserver.reporting.record import run_report
from pytest_infserver.reporting.record import recorder

spent = {"test": 0.0, "run": 0.0}

def timed(owner, name, kind):
    inner = getattr(owner, name)
    @functools.wraps(inner)
    def outer(*arguments, **keywords):
        begin = time.perf_counter()
        try:
            return inner(*arguments, **keywords)
        finally:
            spent[kind] += time.perf_counter() - begin
    setattr(owner, name, outer)

timed(run_report.RunReport, "note_uses", "test")
timed(recorder.Recorder, "pytest_runtest_logreport", "test")
timed(run_report.RunReport, "add_servers", "run")
timed(run_report.RunReport, "write", "run")
timed(run_report.RunReport, "summary", "run")

def leave():
    (pathlib.Path(__file__).parent / f"spent-{os.getpid()}.json").write_text(json.dumps(spent))

atexit.register(leave)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", type=int, default=1000)
    parser.add_argument("--workers", default="0,2")
    arguments = parser.parse_args()
    for workers in map(int, arguments.workers.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder), arguments.tests, workers)


def run(folder: Path, tests: int, workers: int) -> None:
    engine = [sys.executable, "-S", str(HERE.parent / "fake_engine.py"), "--port", "{port}"]
    (folder / "servers.yaml").write_text(json.dumps({"name": "fake", "backend": "command", "launch_command": engine}))
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(
        f"import pytest\n@pytest.mark.parametrize('n', range({tests}))\ndef test_it(inference_server, n): pass\n"
    )
    words = ["-q", "-p", "no:cacheprovider", "--infserver-config", "servers.yaml", "-n", str(workers)]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=folder,
        env={**os.environ, "INFSERVER_CONFIG": ""},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    print(f"-n {workers}: {(result.stdout.strip() or result.stderr.strip()).splitlines()[-1]}")
    spent = [json.loads(path.read_text()) for path in folder.glob("spent-*.json")]
    for kind, unit, share in (("test", "ms per test", tests), ("run", "ms per run", 1)):
        print(f"  {sum(one[kind] for one in spent) * 1000 / share:8.3f} {unit}")
    for path in sorted((folder / "server_logs").glob("*.*")):
        with contextlib.suppress(OSError):
            print(f"  {path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
