"""Every example runs as it stands, as a user would run it."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pytest_infserver import ServerConfig, load_server_configs
from pytest_infserver.config.model import ProfileConfig, keys

EXAMPLES = Path(__file__).parent.parent / "conftest_examples"
LIMIT = 400


@pytest.fixture
def hard_limit_seconds() -> int:
    """A real model computes on the cores that others use, too."""
    return LIMIT + 20


def run(argv: list[str], output_dir: Path, **env: str) -> subprocess.CompletedProcess[str]:
    # Logs go to a temporary folder, so that the tree stays clean.
    environ = {**os.environ, "INFSERVER_OUTPUT_DIR": str(output_dir), "PYTHONDONTWRITEBYTECODE": "1", **env}
    return subprocess.run(
        argv, cwd=EXAMPLES.parent, env=environ, capture_output=True, text=True, timeout=LIMIT, check=False
    )


def run_example(folder: str, output_dir: Path, *arguments: str, **env: str) -> list[str]:
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", f"conftest_examples/{folder}", *arguments]
    result = run(argv, output_dir, **env)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()


@pytest.mark.run
def test_quickstart(tmp_path: Path, nothing_left: None) -> None:
    lines = run_example("quickstart", tmp_path)
    assert "infserver: servers.yaml: smollm2 (llamacpp)" in lines
    assert "6 passed" in lines[-1]


@pytest.mark.run
@pytest.mark.promise
def test_several_servers(tmp_path: Path, nothing_left: None) -> None:
    lines = run_example("several_servers", tmp_path)
    assert "15 passed, 1 skipped" in lines[-1]
    reason = "no configured server fits backend('vllm', 'sglang'); configured: small-context (llamacpp)"
    assert any(line.startswith("SKIPPED") and reason in line for line in lines)


@pytest.mark.run
def test_router(tmp_path: Path, nothing_left: None) -> None:
    lines = run_example("router", tmp_path)
    assert "2 passed" in lines[-1]


@pytest.mark.run
@pytest.mark.promise
def test_custom_backend(tmp_path: Path, nothing_left: None) -> None:
    assert "4 passed" in run_example("custom_backend", tmp_path)[-1]


@pytest.mark.run
def test_command_backend(tmp_path: Path, nothing_left: None) -> None:
    assert "2 passed" in run_example("command_backend", tmp_path)[-1]


@pytest.mark.run
def test_profiling(tmp_path: Path, nothing_left: None) -> None:
    folder = tmp_path / "profiles"
    lines = run_example("profiling", tmp_path, INFSERVER_SET=f"profile.output_dir={folder}")
    assert "2 passed" in lines[-1]
    assert sorted(path.name for path in folder.rglob("*.json")) == [
        "answers.speedscope.json",
        "test_profiling.test_whole-tiny.speedscope.json",
    ]


@pytest.mark.run
def test_load(tmp_path: Path, nothing_left: None) -> None:
    pytest.importorskip("aiohttp")
    lines = run_example("load", tmp_path)
    assert any(line.startswith("test_speed_of_many_users[tiny] ") for line in lines)
    assert "3 passed" in lines[-1]


@pytest.mark.nightly
@pytest.mark.cluster
def test_cluster(tmp_path: Path, nothing_left: None) -> None:
    pytest.importorskip("ray")
    from cluster.ray_nodes import RayNodes

    lines = run_example("cluster", tmp_path / "local", "--infserver-cluster", "local")
    assert (
        "infserver: servers.yaml: small-context (llamacpp), large-context (llamacpp); on the Ray cluster local" in lines
    )
    assert "11 passed, 2 skipped" in lines[-1]
    nodes = RayNodes(tmp_path, {"head": {"num_cpus": 2, "node_ip_address": "127.0.0.2"}})
    try:
        lines = run_example("cluster", tmp_path / "cluster", "--infserver-cluster", nodes.address)
    finally:
        nodes.close()
    assert "13 passed" in lines[-1]
    lines = run_example("cluster", tmp_path / "machine")
    assert "9 passed, 4 skipped" in lines[-1]


@pytest.mark.run
@pytest.mark.promise
def test_attach(tmp_path: Path, nothing_left: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    script = [sys.executable, str(EXAMPLES / "attach" / "start_server.py"), str(port)]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            assert running.stdout.readline() == f"llamacpp is ready: http://127.0.0.1:{port}\n"
            lines = run_example("attach", tmp_path, SERVER_URL=f"http://127.0.0.1:{port}")
            assert "2 passed" in lines[-1]
            assert running.poll() is None
        finally:
            running.stdin.close()
            running.wait(LIMIT)


def test_attach_without_a_server_says_so(
    run_inline: Callable[..., pytest.RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("INFSERVER_OUTPUT_DIR", str(tmp_path / "logs"))
    result = run_inline(EXAMPLES / "attach")
    assert result.ret == 1
    assert "running (llamacpp) cannot be attached: http://127.0.0.1:9 refused the connection" in result.stdout.str()


def test_the_annotated_configuration_has_every_key() -> None:
    path = EXAMPLES / "example_server_config.yaml"
    assert [config.name for config in load_server_configs(path)] == [
        "llama-tp2",
        "render",
        "sgl",
        "mine",
        "staging",
        "beside",
    ]
    document = yaml.safe_load(path.read_text())
    blocks = [document["defaults"], *document["servers"].values()]
    assert {key for block in blocks for key in block} == set(keys(ServerConfig)) - {"name"}
    assert set(document["servers"]["llama-tp2"]["profile"]) == set(keys(ProfileConfig))


def test_the_annotated_configuration_shows_the_built_in_values() -> None:
    shown = yaml.safe_load((EXAMPLES / "example_server_config.yaml").read_text())["defaults"]
    built_in, known = dataclasses.asdict(ServerConfig()), keys(ServerConfig)
    read = {key: known[key].metadata["kind"].convert(value) for key, value in shown.items()}
    assert {key: value for key, value in read.items() if value != built_in[key]} == {"debug_mode": True}
