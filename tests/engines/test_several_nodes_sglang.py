"""SGLang on two nodes of a cluster, tensor parallel over gloo. Its kernels are stubs: see stubs/sgl_kernel."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray")

from cluster.conftest import await_nothing_left
from cluster.ray_nodes import RayNodes

from pytest_infserver import InferenceServer, load_server_config
from pytest_infserver.cluster.cluster import Cluster
from pytest_infserver.launcher.factory import create_from_config

from .answers import CHECKS
from .conftest import SERVERS, title

pytestmark = pytest.mark.engine("sglang")
NODES: dict[str, dict[str, object]] = {
    "head": {"num_cpus": 0, "node_ip_address": "127.0.0.2"},
    "node-3": {"num_cpus": 1, "node_ip_address": "127.0.0.3"},
    "node-4": {"num_cpus": 1, "node_ip_address": "127.0.0.4"},
}


@pytest.fixture
def nodes(tmp_path: Path, no_engine_left: None) -> Iterator[RayNodes]:
    made = RayNodes(tmp_path, NODES)
    yield made
    await_nothing_left(made)
    made.close()


@pytest.fixture
def server(nodes: RayNodes, tmp_path: Path) -> Iterator[InferenceServer]:
    """A server on two nodes; nothing is started."""
    values = {
        "output_dir": str(tmp_path / "server_logs"),
        "config": {"server_args": {"tp": 2}},
        "env_vars": {"GLOO_SOCKET_IFNAME": "lo", "SGLANG_CPU_OMP_THREADS_BIND": "0|1"},
    }
    cluster = Cluster(nodes.address)
    config = load_server_config(SERVERS, "sglang-with-stubbed-kernels", overrides=values)
    # The other servers of the file are for one node.
    config = dataclasses.replace(config, nodes=2, gpus=0, profile=None)
    made = create_from_config(cluster.with_api_key(config))
    cluster.adopt(made)
    yield made
    made.stop()
    cluster.placements.give_back(made)
    cluster.close()


def schedulers(nodes: RayNodes) -> dict[str, int]:
    """Return the name and the process id of each scheduler on the nodes."""
    found = {}
    for process in nodes.processes():
        with contextlib.suppress(psutil.Error):
            name = re.search(r"scheduler_TP\d", title(process))
            if name is not None:
                found[name[0]] = process.pid
    return found


@pytest.mark.nightly
def test_two_ranks_answer_together_and_stop_together(server: InferenceServer, nodes: RayNodes) -> None:
    server.start()
    assert sorted(schedulers(nodes)) == ["scheduler_TP0", "scheduler_TP1"]
    for check in CHECKS:
        check(server)
    pids = schedulers(nodes).values()
    server.stop()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    # They have ended by themselves.
    assert not server.survivors, server.survivors
    report = server.leak_report
    assert report is not None
    assert not report.failed
    log = server.log_path.with_name("server.node-1.log").read_text()
    assert "SIGTERM received on node_rank 1" in log


@pytest.mark.nightly
def test_the_death_of_the_second_rank_is_the_servers(server: InferenceServer, nodes: RayNodes) -> None:
    server.start()
    os.kill(schedulers(nodes)["scheduler_TP1"], signal.SIGKILL)
    assert server.wait_death(300)
    assert "(node rank 1 of 2)" in str(server.why_died()), server.why_died()
