"""A Ray cluster of three nodes, and a project whose servers run there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from plugin.conftest import Project as Project
from plugin.conftest import project as project
from plugin.conftest import quiet_fixture as quiet_fixture
from plugin.conftest import run as run

pytest.importorskip("ray")

from cluster.ray_nodes import RayNodes

NODES = {
    "head": {"num_cpus": 4, "node_ip_address": "127.0.0.2"},
    "node-3": {"num_cpus": 4, "node_ip_address": "127.0.0.3"},
    "node-4": {"num_cpus": 4, "num_gpus": 2, "resources": {"big": 1}, "node_ip_address": "127.0.0.4"},
}


@pytest.fixture(scope="module")
def ray_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A cluster that tests leave as it is: 12 CPUs, and 2 GPUs in name only.

    Not for the whole session: tests in other folders look for processes below this one.
    """
    nodes = RayNodes(tmp_path_factory.mktemp("ray"), NODES)
    yield nodes
    nodes.close()


@pytest.fixture
def fragile_nodes(tmp_path: Path) -> Iterator[Callable[..., RayNodes]]:
    """Make clusters that a test may break."""
    made: list[RayNodes] = []

    def make(nodes: dict[str, dict[str, object]] | None = None, **variables: str) -> RayNodes:
        made.append(RayNodes(tmp_path, nodes or NODES, **variables))
        return made[-1]

    yield make
    for nodes in made:
        nodes.close()


@pytest.fixture
def on_cluster(ray_nodes: RayNodes, monkeypatch: pytest.MonkeyPatch, clean_environment: None) -> Iterator[RayNodes]:
    """Have the servers of all runs in a test run on the cluster; fail if something of them is left there."""
    monkeypatch.setenv("INFSERVER_CLUSTER", ray_nodes.address)
    yield ray_nodes
    await_nothing_left(ray_nodes)


def await_nothing_left(nodes: RayNodes, limit: float = 20.0) -> None:
    """Wait until nothing of a server is left on any node."""
    deadline = time.monotonic() + limit
    while (left := nodes.left()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
