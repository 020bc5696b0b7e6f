"""What a Ray cluster costs: seconds that it adds to a start and a stop, and milliseconds that it adds to a test.

    python -m tests.benchmarks.cluster [--starts 10] [--tests 300] [--rounds 3] [--address HOST:PORT]

llama.cpp with builtin:tiny, on this machine and on the cluster by turns: one of this machine alone unless an address
is given. The machine should be idle.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pytest_infserver import load_server_configs
from pytest_infserver.cluster.cluster import Cluster
from pytest_infserver.launcher.factory import create_from_config

HERE = Path(__file__).parent
LIMIT = 600
"""Seconds after which a run counts as hung."""
YAML = "backend: llamacpp\nname: tiny\nmodel: builtin:tiny\ncpus: 0.5\n"

CONFTEST = """
import json, pathlib, time

ends = []

def pytest_runtest_logreport(report):
    if report.when == "teardown":
        ends.append(time.perf_counter())

def pytest_sessionfinish(session):
    if ends:
        # Not the first tests, which wait for the server.
        each = (ends[-1] - ends[20]) / (len(ends) - 21)
        (pathlib.Path(__file__).parent / "each.json").write_text(json.dumps(each))
"""
TESTS = """
import pytest, requests
session = requests.Session()

@pytest.mark.parametrize("n", range({}))
def test_it(inference_server, n):
    session.get(inference_server.url_for("/health"), timeout=20).raise_for_status()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--tests", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--address")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, cluster(arguments.address) as address:
        (Path(folder) / "servers.yaml").write_text(YAML)
        starts(Path(folder), address, arguments.starts)
        for workers in (0, 2):
            per_test(Path(folder), address, workers, arguments.tests, arguments.rounds)


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[str]:
    """Have a cluster of one node, unless there is one."""
    if address is not None:
        yield address
        return
    sys.path.insert(0, str(HERE.parent))
    from cluster.ray_nodes import RayNodes

    with tempfile.TemporaryDirectory() as folder:
        nodes = RayNodes(Path(folder), {"head": {"num_cpus": 4, "node_ip_address": "127.0.0.2"}})
        try:
            yield nodes.address
        finally:
            nodes.close()


def starts(folder: Path, address: str, count: int) -> None:
    """Start and stop a server on this machine and on the cluster by turns."""
    (config,) = load_server_configs(folder / "servers.yaml")
    begin = time.perf_counter()
    there = Cluster(address)
    print(f"connecting to the cluster: {time.perf_counter() - begin:.2f} s", flush=True)
    times: dict[str, tuple[list[float], list[float]]] = {"machine": ([], []), "cluster": ([], [])}
    try:
        # The first one of each is not like the others: files are not in the cache yet.
        for number in range(count + 1):
            for where, (up, down) in times.items():
                server = create_from_config(dataclasses.replace(config, output_dir=str(folder / where)))
                if where == "cluster":
                    there.adopt(server)
                begin = time.perf_counter()
                server.start()
                ready = time.perf_counter()
                server.stop()
                there.placements.give_back(server)
                if number:
                    up.append(ready - begin)
                    down.append(time.perf_counter() - ready)
                else:
                    print(f"first start, {where}: {ready - begin:.2f} s", flush=True)
    finally:
        there.close()
    for index, what in enumerate(("start", "stop")):
        here, far = (times[where][index] for where in ("machine", "cluster"))
        added = statistics.median(far) - statistics.median(here)
        print(f"{what}: on this machine {shown(here)}, on the cluster {shown(far)}: Ray adds {added:.2f} s", flush=True)


def per_test(folder: Path, address: str, workers: int, tests: int, rounds: int) -> None:
    """Run the same tests on this machine and on the cluster by turns."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(TESTS.format(tests))
    times: dict[str, list[float]] = {"machine": [], "cluster": []}
    for _ in range(rounds):
        for where, found in times.items():
            words = [] if where == "machine" else [f"--infserver-cluster={address}"]
            found.append(run(folder, [*words, "-n", str(workers)]))
    here, far = (statistics.median(times[where]) * 1000 for where in ("machine", "cluster"))
    print(
        f"a test with -n {workers}: on this machine {here:.2f} ms, on the cluster {far:.2f} ms:"
        f" it adds {far - here:.2f} ms",
        flush=True,
    )


def run(folder: Path, arguments: list[str]) -> float:
    """Run the tests; return the seconds that each of them took."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--infserver-config=servers.yaml", *arguments],
        cwd=folder,
        env={**os.environ, "INFSERVER_CONFIG": ""},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return float(json.loads((folder / "each.json").read_text()))


def shown(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s (max {max(seconds):.2f})"


if __name__ == "__main__":
    main()
