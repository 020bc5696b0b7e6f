"""A Ray cluster of three nodes for all tests here, and a project whose servers run there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from plugin.conftest import Project as Project
from plugin.conftest import project as project
from plugin.conftest import quiet_fixture as quiet_fixture
from plugin.conftest import run as run

pytest.importorskip("ray")

from cluster.ray_nodes import RayNodes

NODES = {
    "head": {"num_cpus": 4, "node_ip_address": "127.0.0.2"},
    "node-3": {"num_cpus": 4, "num_gpus": 2, "node_ip_address": "127.0.0.3"},
    "node-4": {"num_cpus": 4, "num_gpus": 2, "resources": {"big": 1}, "node_ip_address": "127.0.0.4"},
}


HARD_LIMIT = 600
"""Seconds after which a test counts as hung; most take less than 10."""
ALONE = pytest.param((), id="alone")
ON_TWO = pytest.param(("-n2",), id="n2")


def every_day(way: Any) -> pytest.MarkDecorator:
    """Run a test that has the fixture `run` in one of its two ways every day, and in the other one nightly."""
    other = ALONE if way is ON_TWO else ON_TWO
    nightly = pytest.param(*other.values, id=other.id, marks=pytest.mark.nightly)
    return pytest.mark.parametrize("run", [way, nightly], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to .ci/nightly what a module that repeats tests does not run every day.

    Such a module has `EVERY_DAY`: the tests, each with what in its name makes it one of a kind that is left out.
    """
    for item in items:
        if not isinstance(item, pytest.Function) or Path(__file__).parent not in item.path.parents:
            continue
        sample = getattr(item.module, "EVERY_DAY", None)
        if sample is not None:
            left_out = sample.get(item.function)
            if left_out is None or any(words in item.name for words in left_out):
                item.add_marker(pytest.mark.nightly)


@pytest.fixture
def hard_limit_seconds() -> int:
    """Give clusters more time than other tests have."""
    return HARD_LIMIT


@pytest.fixture(scope="package")
def ray_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A cluster that tests leave as it is: 12 CPUs, and 4 GPUs in name only.

    It ends with the tests of this folder: those of others look for processes below this one.
    """
    # Its nodes are on one machine, and each has a GPU 0.
    nodes = RayNodes(tmp_path_factory.mktemp("ray"), NODES, INFSERVER_DEVICE_LOCKS="0")
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
def inline_project(project: Project) -> Project:
    """A project as on one machine; its runs are processes, since Ray leaves threads behind in one."""
    return project


@pytest.fixture(params=["alone", "n2"])
def twin_project(request: pytest.FixtureRequest, project: Project) -> Project:
    """A project whose runs are alone, and in a second test on two workers."""
    project.on_workers = request.param == "n2"
    return project


@pytest.fixture
def on_cluster(ray_nodes: RayNodes, monkeypatch: pytest.MonkeyPatch, clean_environment: None) -> Iterator[RayNodes]:
    """Have the servers of all runs in a test run on the cluster; fail if something of them is left there."""
    monkeypatch.setenv("INFSERVER_CLUSTER", ray_nodes.address)
    yield ray_nodes
    await_nothing_left(ray_nodes)


def await_nothing_left(nodes: RayNodes, limit: float = 60.0) -> None:
    """Wait until nothing of a server is left on any node."""
    deadline = time.monotonic() + limit
    while (left := nodes.left()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
