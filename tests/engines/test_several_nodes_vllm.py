"""vLLM on two nodes of a cluster, by its own Ray executor in a placement group of ours. GPUs are but a name there."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

pytest.importorskip("ray")

from cluster.conftest import await_nothing_left
from cluster.ray_nodes import RayNodes

from pytest_infserver import InferenceServer, load_server_config
from pytest_infserver.cluster.cluster import Cluster
from pytest_infserver.launcher.factory import create_from_config

from .conftest import SERVERS, wait_until_empty
from .provision import environment

pytestmark = pytest.mark.engine("vllm")
NODES: dict[str, dict[str, object]] = {
    "head": {"num_cpus": 0, "node_ip_address": "127.0.0.2"},
    "node-3": {"num_cpus": 1, "num_gpus": 1, "node_ip_address": "127.0.0.3"},
    "node-4": {"num_cpus": 1, "num_gpus": 1, "node_ip_address": "127.0.0.4"},
}
PLUGIN = Path(__file__).parent / "ray_on_cpu"
SHARED = Path("/dev/shm")
FROM_HERE = ("ray", "msgpack")
"""Packages of this environment that vLLM's needs, too; both have the same version of Python."""


@pytest.fixture
def python_path(tmp_path: Path) -> str:
    """What vLLM's environment lacks: Ray, and the plugin."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in FROM_HERE:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations
        (folder / name).symlink_to(spec.submodule_search_locations[0])
    return os.pathsep.join([str(folder), str(PLUGIN)])


@pytest.fixture
def nodes(tmp_path: Path, python_path: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayNodes]:
    """A cluster whose nodes run vLLM's Python: that is where its workers come from."""
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([python_path, before]))
    shared = set(SHARED.iterdir())
    made = RayNodes(tmp_path, NODES, python=str(environment("vllm") / "bin" / "python"))
    monkeypatch.setenv("PYTHONPATH", before)
    yield made
    await_nothing_left(made)
    made.close()
    # vLLM has Ray kill its workers, which leave what they share.
    for left in set(SHARED.iterdir()) - shared:
        if left.name.startswith("psm_") or "cpushm" in left.name:
            left.unlink()


@pytest.fixture
def server(nodes: RayNodes, python_path: str, tmp_path: Path) -> Iterator[InferenceServer]:
    """A server on two nodes; nothing is started."""
    values = {
        "output_dir": str(tmp_path / "server_logs"),
        "config": {"api_server_args": {"tensor-parallel-size": 2}},
        "env_vars": {"PYTHONPATH": python_path, "GLOO_SOCKET_IFNAME": "lo"},
    }

    cluster = Cluster(nodes.address)
    config = load_server_config(SERVERS, "vllm", overrides=values)
    # The other servers of the file are for one node.
    config = dataclasses.replace(config, nodes=2, gpus=2, profile=None)
    made = create_from_config(cluster.with_api_key(config))
    cluster.adopt(made)
    yield made
    made.stop()
    cluster.placements.give_back(made)
    cluster.close()


def completion(server: InferenceServer) -> str:
    headers = {"Authorization": f"Bearer {server.api_key}"}
    body = {"model": server.model, "prompt": "Hello", "max_tokens": 6, "temperature": 0}
    answer = requests.post(server.url_for("/v1/completions"), json=body, headers=headers, timeout=300).json()
    assert answer["usage"]["completion_tokens"] == 6, answer
    text: str = answer["choices"][0]["text"]
    return text


def workers(nodes: RayNodes) -> list[psutil.Process]:
    found = []
    for process in nodes.processes():
        with contextlib.suppress(psutil.Error):
            if "RayWorkerProc" in process.name() + " ".join(process.cmdline()):
                found.append(process)
    return found


def address(worker: psutil.Process) -> str:
    """Return the address of the node that runs a worker."""
    node = worker.parent()
    assert node is not None
    found = re.search(r"--node_ip_address=(\S+)", " ".join(node.cmdline()))
    assert found is not None
    return found[1]


def test_its_workers_are_on_both_nodes_and_end_with_it(server: InferenceServer, nodes: RayNodes) -> None:
    server.start()
    assert len(workers(nodes)) == 2
    assert completion(server) == completion(server)
    assert "Using the existing placement group" in server.read_log(limit=1 << 20)
    assert {address(worker) for worker in workers(nodes)} == {"127.0.0.3", "127.0.0.4"}
    server.stop()
    wait_until_empty(lambda: workers(nodes))


@pytest.mark.nightly
def test_the_loss_of_a_node_with_a_worker_is_its_death(server: InferenceServer, nodes: RayNodes) -> None:
    server.start()
    lost = "node-4" if server.host == "127.0.0.3" else "node-3"
    nodes.remove(lost)
    assert server.wait_death(300)
    assert re.search(rf"died: its node {lost} \(127\.0\.0\.\d\) \(node rank 1 of 2\) was lost", str(server.why_died()))
