from __future__ import annotations

from typing import Any

import pytest

from pytest_infserver import ConfigError, InferenceServer, create_server
from pytest_infserver.cluster.connection.nodes import Node
from pytest_infserver.cluster.placement.demand import Demand, demand_on_cluster, nodes_in_words


def vllm(**settings: Any) -> InferenceServer:
    return create_server("vllm", "m", **settings)


def with_args(**arguments: Any) -> dict[str, Any]:
    return {"config": {"api_server_args": arguments}}


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        ({"gpus": 3}, 3),
        ({"gpus": 0}, 0),
        # Unlike one machine, a cluster is not all its own.
        ({}, 1),
        (with_args(tensor_parallel_size=4), 4),
        (with_args(tensor_parallel_size=2, pipeline_parallel_size=2), 4),
        ({"gpus": 1, **with_args(tensor_parallel_size=4)}, 1),
        (with_args(device="cpu"), 0),
    ],
)
def test_gpus(settings: dict[str, Any], gpus: int) -> None:
    assert demand_on_cluster(vllm(**settings), has_gpus=True).gpus == gpus


@pytest.mark.parametrize(("settings", "gpus"), [({}, 0), (with_args(tensor_parallel_size=4), 0), ({"gpus": 2}, 2)])
def test_without_gpus_only_what_is_said_counts(settings: dict[str, Any], gpus: int) -> None:
    assert demand_on_cluster(vllm(**settings), has_gpus=False).gpus == gpus


def test_an_engine_without_gpus_needs_none() -> None:
    server = create_server("llamacpp", "builtin:tiny")
    assert demand_on_cluster(server, has_gpus=True) == Demand(0, 1.0)


def test_cpus_and_resources() -> None:
    demand = demand_on_cluster(vllm(gpus=2, cpus=0.5, resources={"big": 1}), has_gpus=True)
    assert demand.bundles == [{"CPU": 0.5, "GPU": 2.0, "big": 1}]
    assert str(demand) == "2 GPUs, 0.5 CPUs and 1 big"
    assert demand_on_cluster(vllm(cpus=0), has_gpus=True).bundles == [{"GPU": 1.0}]
    # Ray makes no bundle of nothing.
    assert demand_on_cluster(vllm(gpus=0, cpus=0), has_gpus=True).bundles == [{"CPU": 0.001}]


def test_several_nodes_of_an_engine_that_shares_itself_out() -> None:
    server = create_server("sglang", "m", gpus=8, nodes=2, cpus=2)
    demand = demand_on_cluster(server, has_gpus=True)
    assert str(demand) == "4 GPUs and 2 CPUs on each of 2 nodes"
    assert demand.parts == [[{"CPU": 2, "GPU": 4.0}]] * 2


def test_several_nodes_of_an_engine_with_a_worker_for_each_gpu() -> None:
    server = vllm(nodes=2, cpus=2, resources={"big": 1}, **with_args(tensor_parallel_size=4))
    demand = demand_on_cluster(server, has_gpus=True)
    assert str(demand) == "2 GPUs, 2 CPUs and 1 big on each of 2 nodes"
    assert demand.parts == [[{"CPU": 2, "GPU": 1.0, "big": 1}, {"GPU": 1.0}]] * 2


@pytest.mark.parametrize(
    ("backend", "settings", "error"),
    [
        ("sglang", {"gpus": 3}, "gpus: 3 cannot be divided among 2 nodes"),
        ("vllm", with_args(tensor_parallel_size=3), "gpus: 3 cannot be divided among 2 nodes"),
        ("vllm", {"gpus": 8}, "gpus: 8 and no parallel size in its arguments"),
        ("vllm", {"gpus": 8, **with_args(tensor_parallel_size=4)}, "gpus: 8 and .*4.*: on several nodes each GPU has"),
        ("vllm", {"gpus": 0}, "has a worker for each GPU there, and this server asks for none: write 'gpus: N'"),
    ],
)
def test_several_nodes_that_do_not_come_out_even(backend: str, settings: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        demand_on_cluster(create_server(backend, "m", nodes=2, **settings), has_gpus=True)


@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
def test_own_devices_are_refused(variable: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable} and --infserver-cluster: the cluster chooses the GPUs"):
        demand_on_cluster(vllm(env_vars={variable: "0"}), has_gpus=True)


@pytest.mark.parametrize("host", ["10.0.0.7", "gpu-1"])
def test_a_host_is_refused_because_ray_chooses(host: str) -> None:
    with pytest.raises(ConfigError, match=f"host: {host} and --infserver-cluster: a server listens on the address of"):
        demand_on_cluster(vllm(host=host), has_gpus=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::"])
def test_what_means_any_node_is_no_host(host: str) -> None:
    assert demand_on_cluster(vllm(host=host), has_gpus=True).gpus == 1


def test_nodes_in_words_leave_out_what_ray_adds() -> None:
    total = {"CPU": 8.0, "GPU": 1.0, "node:10.0.0.2": 1.0, "memory": 1e9, "object_store_memory": 1e9, "big": 2.0}
    free = {"CPU": 0.0, "bundle_group_1a": 1000.0, "CPU_group_0_1a": 1.0}
    node = Node("1", "box", "10.0.0.2", True, total, free)
    assert str(node) == "box (10.0.0.2)"
    assert nodes_in_words([node]) == "box: 1 GPU, 8 CPUs and 2 big"
    assert nodes_in_words([node], free=True) == "box: 0 CPUs"
    assert nodes_in_words([]) == "no node"
    twin = Node("2", "box", "10.0.0.3", True, {"CPU": 2.0}, {})
    assert nodes_in_words([node, twin]) == "box (10.0.0.2): 1 GPU, 8 CPUs and 2 big; box (10.0.0.3): 2 CPUs"
