"""Servers larger than a node: stand-ins for SGLang and vLLM on several nodes of a real cluster."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from plugin.conftest import Project, quiet

from cluster.conftest import await_nothing_left
from cluster.ray_nodes import RayNodes
from pytest_infserver import ConfigError, SGLangServer, VLLMServer

pytestmark = pytest.mark.usefixtures("hard_limit")
STAND_INS = Path(__file__).parent / "stand_ins"
GPU_NODES: dict[str, dict[str, object]] = {
    "head": {"num_cpus": 2, "node_ip_address": "127.0.0.2"},
    "node-3": {"num_cpus": 4, "num_gpus": 2, "node_ip_address": "127.0.0.3"},
    "node-4": {"num_cpus": 4, "num_gpus": 2, "node_ip_address": "127.0.0.4"},
}


@pytest.fixture
def sglang(tmp_path: Path) -> Path:
    """The ``sglang`` command."""
    command = tmp_path / "bin" / "sglang"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -S {STAND_INS / "sglang_ranks.py"} "$@"\n')
    command.chmod(0o755)
    return command


@pytest.fixture
def vllm(tmp_path: Path) -> Path:
    """The ``vllm`` command of an environment in which there is Ray; it must not be run itself."""
    command = tmp_path / "bin" / "vllm"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f"#!{sys.executable}\nraise SystemExit('run without the placement group')\n")
    command.chmod(0o755)
    return command


def sglang_yaml(command: Path, settings: dict[str, object] | None = None, **arguments: object) -> str:
    server = {"backend": "sglang", "binary_path": str(command), "gpus": 0, **(settings or {})}
    return several_yaml(server, {"tp": 2, **arguments})


def vllm_yaml(command: Path, gpus: int = 4) -> str:
    server = {"backend": "vllm", "binary_path": str(command), "gpus": gpus, "env_vars": {"PYTHONPATH": str(STAND_INS)}}
    return several_yaml(server, {"tensor-parallel-size": gpus})


def several_yaml(server: dict[str, object], arguments: dict[str, object]) -> str:
    defaults = {"startup_timeout": 90, "stop_timeout": 10}
    server = {"model": "fake", "nodes": 2, **defaults, **server, "config": {"server_args": arguments}}
    return yaml.safe_dump({"servers": {"large": server}}, sort_keys=False)


def log_of(project: Project, rank: int = 0) -> str:
    name = f"server.node-{rank}.log" if rank else "server.log"
    return (project.path / "server_logs" / "large" / name).read_text()


def test_ranks_meet_and_end_together(on_cluster: RayNodes, project: Project, sglang: Path) -> None:
    (project.path / "servers.yaml").write_text(sglang_yaml(sglang))
    project.files(
        test_it="""
            from helpers import get, note

            def test_it(inference_server):
                words = get(inference_server, "/argv")["argv"]
                note(*words[words.index("--nnodes"):])
                note("url", inference_server.server_url)
        """
    )
    result = project.run()
    result.assert_outcomes(passed=1)
    quiet(result)
    [words] = [line for line in project.events() if line.startswith("--nnodes")]
    host = re.fullmatch(r"--nnodes 2 --node-rank 0 --dist-init-addr (127\.0\.0\.\d):20\d\d\d", words)
    assert host is not None, words
    assert f"url http://{host[1]}:" in "\n".join(project.events())
    assert "all 2 ranks are here" in log_of(project)
    other = re.search(r"rank 1 of 2 runs on (127\.0\.0\.\d)", log_of(project, 1))
    assert other is not None
    assert other[1] != host[1]
    # It was not killed, although it ignores SIGTERM: it has ended with the first one.
    assert log_of(project, 1).endswith("rank 1 ends with rank 0\n")
    assert "killed" not in result.stdout.str()


def test_each_rank_has_its_share_of_the_gpus(on_cluster: RayNodes, project: Project, sglang: Path) -> None:
    (project.path / "servers.yaml").write_text(sglang_yaml(sglang, {"gpus": 4}))
    project.files(test_it="def test_it(inference_server): pass")
    project.run().assert_outcomes(passed=1)
    for rank in (0, 1):
        assert f"rank {rank} sees CUDA_VISIBLE_DEVICES=0,1\n" in log_of(project, rank)


@pytest.mark.parametrize("calm", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_the_end_of_one_rank_is_the_end_of_all(
    on_cluster: RayNodes, project: Project, sglang: Path, tmp_path: Path, calm: bool
) -> None:
    """Also where rank 0 would go on."""
    more = {"calm": True} if calm else {}
    (project.path / "servers.yaml").write_text(
        sglang_yaml(sglang, {"debug_mode": True}, **{"die-when": str(tmp_path / "die")}, **more)
    )
    project.files(
        test_it=f"""
            import pathlib, time
            import pytest
            from helpers import get, note

            def test_death(inference_server):
                pathlib.Path({str(tmp_path)!r}, "die-1").touch()
                deadline = time.monotonic() + 60
                while inference_server.running and time.monotonic() < deadline:
                    time.sleep(0.05)
                pathlib.Path({str(tmp_path)!r}, "die-1").unlink()
                note("why", inference_server.why_died())
                raise RuntimeError("as if a request had failed")

            def test_next(inference_server):
                note("again", get(inference_server, "/argv")["pid"])
        """
    )
    result = project.run()
    result.assert_outcomes(passed=1, failed=1)
    text = quiet(result)
    why = re.search(
        r"large \(sglang\) died: its part on \S+ \(127\.0\.0\.\d\) \(node rank 1 of 2\) exited with code 9:"
        r" RuntimeError: rank 1 was told to die; log: \S+server\.node-1\.log",
        text,
    )
    assert why is not None, text
    # Those that were ended for it had no chance to clean up.
    assert "did not end within" not in text
    assert [line for line in project.events() if line.startswith("again")]
    # The log of the second life follows in the same file.
    assert log_of(project, 1).count("rank 1 of 2 runs on") == 2


def test_a_rank_that_ends_after_it_has_ended_the_others_is_named(
    on_cluster: RayNodes, project: Project, sglang: Path, tmp_path: Path
) -> None:
    (project.path / "servers.yaml").write_text(
        sglang_yaml(sglang, **{"die-when": str(tmp_path / "die"), "slow-end": True})
    )
    project.files(
        test_it=f"""
            import pathlib

            def test_death(inference_server):
                pathlib.Path({str(tmp_path)!r}, "die-1").touch()
                assert inference_server.wait_death(60)
                raise RuntimeError("as if a request had failed")
        """
    )
    result = project.run("--infserver-on-crash", "fail")
    result.assert_outcomes(failed=1)
    text = quiet(result)
    assert re.search(
        r"large \(sglang\) exited with code 1; its part on \S+ \S+ \(node rank 1 of 2\) says: Scheduler or"
        r" DataParallelController 4711 terminated with -9; log: \S+server\.node-1\.log",
        text,
    ), text


def test_a_rank_that_does_not_start_gives_its_reason(on_cluster: RayNodes, project: Project, sglang: Path) -> None:
    (project.path / "servers.yaml").write_text(sglang_yaml(sglang, **{"fail-rank": 1}))
    project.files(test_it="def test_it(inference_server): pass")
    result = project.run()
    result.assert_outcomes(errors=1)
    text = quiet(result)
    assert re.search(r"\(node rank 1 of 2\) exited with code 3: ValueError: this rank has no such layer", text), text
    assert "server.node-1.log" in text
    (server,) = json.loads((project.path / "server_logs" / "run.json").read_text())["servers"]
    (life,) = server["lives"]
    assert life["end"] == "failed"
    assert re.fullmatch(r"\S+ \(127\.0\.0\.\d\), \S+ \(127\.0\.0\.\d\)", life["node"])


def test_a_first_rank_that_waits_in_vain(on_cluster: RayNodes, project: Project, sglang: Path) -> None:
    (project.path / "servers.yaml").write_text(sglang_yaml(sglang, {"startup_timeout": 3}, **{"late-rank": 1}))
    project.files(test_it="def test_it(inference_server): pass")
    result = project.run()
    result.assert_outcomes(errors=1)
    assert "was not ready after 3 s" in quiet(result)


def test_what_a_further_rank_leaves_is_a_leak(on_cluster: RayNodes, project: Project, sglang: Path) -> None:
    name = f"infserver_several_{os.getpid()}"
    (project.path / "servers.yaml").write_text(sglang_yaml(sglang, {"debug_mode": True}, **{"leak-rank": f"1:{name}"}))
    project.files(test_it="def test_it(inference_server): pass")
    result = project.run()
    result.assert_outcomes(passed=1, errors=1)
    text = quiet(result)
    assert re.search(rf"on \S+ \(127\.0\.0\.\d\) \(node rank 1 of 2\): .*left|{name}", text), text
    assert name in text
    assert not Path("/dev/shm", name).exists()


@pytest.mark.nightly
def test_a_lost_node_is_named(
    project: Project,
    fragile_nodes: Callable[..., RayNodes],
    sglang: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = fragile_nodes(
        {
            "head": {"num_cpus": 0, "node_ip_address": "127.0.0.2"},
            "node-3": {"num_cpus": 4, "resources": {"seat": 1}, "node_ip_address": "127.0.0.3"},
            "node-4": {"num_cpus": 4, "resources": {"seat": 1}, "node_ip_address": "127.0.0.4"},
        }
    )
    monkeypatch.setenv("INFSERVER_CLUSTER", nodes.address)
    _lose_a_node(nodes, project, sglang_yaml(sglang, {"resources": {"seat": 1}}, calm=True))


def _lose_a_node(nodes: RayNodes, project: Project, servers: str) -> None:
    """Take the node away that is not the first one; the server's death must name it."""
    (project.path / "servers.yaml").write_text(servers)
    project.files(
        test_it="""
            import pathlib, time
            from helpers import note

            def test_loss(inference_server):
                pathlib.Path("runs.part").write_text(inference_server.host)
                pathlib.Path("runs.part").rename("runs")
                deadline = time.monotonic() + 60
                while inference_server.running and time.monotonic() < deadline:
                    time.sleep(0.05)
                note("why", inference_server.why_died())
                raise RuntimeError("as if a request had failed")
        """
    )
    lost: list[str] = []

    def lose() -> None:
        deadline = time.monotonic() + 90
        while not (project.path / "runs").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        lost.append("node-4" if (project.path / "runs").read_text() == "127.0.0.3" else "node-3")
        nodes.remove(lost[0])

    thread = threading.Thread(target=lose)
    thread.start()
    result = project.run("--infserver-on-crash", "fail")
    thread.join()
    result.assert_outcomes(failed=1)
    text = quiet(result)
    address = "127.0.0.4" if lost == ["node-4"] else "127.0.0.3"
    assert f") died: its node {lost[0]} ({address}) (node rank 1 of 2) was lost" in text, text
    await_nothing_left(nodes)


def test_workers_run_in_the_group_that_is_handed_over(on_cluster: RayNodes, project: Project, vllm: Path) -> None:
    (project.path / "servers.yaml").write_text(vllm_yaml(vllm))
    project.files(
        test_it="""
            from helpers import get, note

            def test_it(inference_server):
                note("env", get(inference_server, "/argv")["env"]["INFSERVER_PLACEMENT_GROUP"])
        """
    )
    result = project.run()
    result.assert_outcomes(passed=1)
    quiet(result)
    found = re.findall(r"worker \d on (\w+) has GPU \['(\d)'\]", log_of(project))
    assert len(found) == 4
    assert len(set(found)) == 4
    by_node = {node: sorted(gpu for other, gpu in found if other == node) for node, _ in found}
    assert list(by_node.values()) == [["0", "1"], ["0", "1"]]
    assert "the API server sees CUDA_VISIBLE_DEVICES=None" in log_of(project)
    _assert_gone(log_of(project))


def _assert_gone(log: str) -> None:
    pids = [int(pid) for pid in re.findall(r"worker \d on \w+ has GPU \S+ pid (\d+)", log)]
    assert pids
    deadline = time.monotonic() + 60
    while (left := [pid for pid in pids if psutil.pid_exists(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def test_one_gpu_on_each_of_two_nodes(on_cluster: RayNodes, project: Project, vllm: Path) -> None:
    """Although both would find room on one."""
    (project.path / "servers.yaml").write_text(vllm_yaml(vllm, 2))
    project.files(test_it="def test_it(inference_server): pass")
    project.run().assert_outcomes(passed=1)
    found = re.findall(r"worker \d on (\w+) has", log_of(project))
    assert len(found) == len(set(found)) == 2


@pytest.mark.nightly
def test_a_lost_node_with_workers_is_named(
    project: Project, fragile_nodes: Callable[..., RayNodes], vllm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = fragile_nodes(GPU_NODES)
    monkeypatch.setenv("INFSERVER_CLUSTER", nodes.address)
    _lose_a_node(nodes, project, vllm_yaml(vllm))


def test_an_engine_that_is_killed_takes_its_workers_along(on_cluster: RayNodes, project: Project, vllm: Path) -> None:
    (project.path / "servers.yaml").write_text(vllm_yaml(vllm))
    project.files(
        test_it="""
            from helpers import get, kill, note

            def test_death(inference_server):
                kill(inference_server, "/kill?signal=9")
                assert not inference_server.running or inference_server.wait_death(60)
                raise RuntimeError("as if a request had failed")

            def test_next(inference_server):
                note("again", get(inference_server, "/argv")["pid"])
        """
    )
    result = project.run()
    result.assert_outcomes(passed=1, failed=1)
    assert "was killed by SIGKILL" in quiet(result)
    assert len(re.findall(r"worker \d on", log_of(project))) == 8
    _assert_gone(log_of(project))


def test_more_nodes_than_there_are(on_cluster: RayNodes, project: Project, sglang: Path) -> None:
    (project.path / "servers.yaml").write_text(sglang_yaml(sglang, {"nodes": 4}))
    project.files(test_it="def test_it(inference_server): pass")
    result = project.run()
    text = result.stdout.str() + result.stderr.str()
    assert "large needs 1 CPU on each of 4 nodes, and the cluster has " in text, text


REFUSED = [
    ("sglang", "gpus: 3", "", "gpus: 3 cannot be divided among 2 nodes"),
    ("sglang", "", "nnodes: 2", "--nnodes and nodes: 2: the key 'nodes' says it"),
    ("sglang", "", "dist_init_addr: 127.0.0.1:1", "--dist-init-addr and nodes: 2: the address is chosen on the node"),
    (
        "sglang",
        "profile: {enabled: true, tool: pytorch}",
        "",
        "'profile' and nodes: 2: profiles are made of servers on",
    ),
    (
        "vllm",
        "gpus: 0",
        "tensor_parallel_size: 2",
        "nodes: 2: vllm has a worker for each GPU there, and this server asks for",
    ),
    ("vllm", "gpus: 2", "tensor-parallel-size: 4", "gpus: 2 and tensor-parallel-size 4: on several nodes each GPU has"),
    ("vllm", "gpus: 2", "distributed_executor_backend: mp", "--distributed-executor-backend and nodes: 2: on several"),
    ("vllm", "gpus: 2", "data-parallel-size: 2", "--data-parallel-size and nodes: 2: each engine of data parallel"),
    ("llamacpp", "", "threads: 2", "nodes: 2: a llamacpp server runs on one node; vllm and sglang servers can run on"),
]
SAMPLE = {row[0]: row for row in reversed(REFUSED)}
"""One of each backend."""


@pytest.mark.parametrize(
    ("backend", "key", "argument", "reason"),
    [
        pytest.param(*row, id=row[3][:30], marks=[] if row in SAMPLE.values() else pytest.mark.nightly)
        for row in REFUSED
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    on_cluster: RayNodes, project: Project, backend: str, key: str, argument: str, reason: str
) -> None:
    text = f"""
        backend: {backend}
        model: fake
        nodes: 2
        {key}
        config: {{server_args: {{{argument}}}}}
    """
    (project.path / "servers.yaml").write_text(textwrap.dedent(text))
    project.files(test_it="def test_it(inference_server): pass")
    result = project.run()
    text = result.stdout.str() + result.stderr.str()
    assert reason in text, text
    assert "servers.yaml:" in text
    assert not (project.path / "server_logs").exists()


def test_without_a_cluster_it_is_refused(project: Project, sglang: Path) -> None:
    (project.path / "servers.yaml").write_text(sglang_yaml(sglang))
    project.files(test_it="def test_it(inference_server): pass")
    result = project.run()
    text = result.stdout.str() + result.stderr.str()
    assert "servers.yaml:4:5: server 'large': nodes: 2 needs a cluster: run pytest with --infserver-cluster" in text


@pytest.mark.parametrize("backend", [SGLangServer, VLLMServer])
def test_the_plain_api_refuses_it(backend: type[SGLangServer | VLLMServer], tmp_path: Path) -> None:
    server = backend("fake", nodes=2, gpus=2, output_dir=str(tmp_path), binary_path=sys.executable)
    with pytest.raises(ConfigError, match="nodes: 2 needs a cluster"):
        server.start()
    assert server.launches == 0


def test_the_same_executor_may_be_written(tmp_path: Path) -> None:
    arguments = {"distributed-executor-backend": "ray", "tensor-parallel-size": 2}
    server = VLLMServer("fake", nodes=2, gpus=2, output_dir=str(tmp_path), config={"api_server_args": arguments})
    assert server.get_launch_command().count("--distributed-executor-backend") == 1
