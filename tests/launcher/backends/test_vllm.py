from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import ConfigError, ServerStartupError, VLLMServer
from pytest_infserver.launcher.share import Share


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        ({}, "vllm serve org/m --host 127.0.0.1 --port 8000"),
        ({"port": 9, "host": "::1"}, "vllm serve org/m --host ::1 --port 9"),
        ({"binary_path": "/opt/vllm"}, "/opt/vllm serve org/m --host 127.0.0.1 --port 8000"),
        (
            {"config": {"api_server_args": {"tensor_parallel_size": 2, "enforce-eager": True}}},
            "vllm serve org/m --host 127.0.0.1 --port 8000 --tensor-parallel-size 2 --enforce-eager",
        ),
        ({"config": {"server_args": ["-tp", "2"]}}, "vllm serve org/m --host 127.0.0.1 --port 8000 -tp 2"),
    ],
)
def test_the_command(settings: dict[str, Any], command: str) -> None:
    server = VLLMServer(model="org/m", **settings)
    assert server.get_launch_command() == command.split()
    assert server.get_backend_name() == "vllm"


def test_the_endpoints() -> None:
    server = VLLMServer(model="m", port=9, host="0.0.0.0", endpoints={"mine": "/mine"})
    assert server.get_health_endpoint() == "http://127.0.0.1:9/health"
    endpoints = server.list_endpoints()
    assert endpoints["chat"] == "http://127.0.0.1:9/v1/chat/completions"
    assert endpoints["completions"] == "http://127.0.0.1:9/v1/completions"
    assert endpoints["models"] == "http://127.0.0.1:9/v1/models"
    assert endpoints["metrics"] == "http://127.0.0.1:9/metrics"
    assert endpoints["mine"] == "http://127.0.0.1:9/mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "8001"], "--port belongs in 'port:', not in 'config'"),
        (["--port=8001"], "--port belongs in 'port:', not in 'config'"),
        ({"port": 8001}, "--port belongs in 'port:', not in 'config'"),
        ({"host": "0.0.0.0"}, "--host belongs in 'host:', not in 'config'"),
        ({"--model": "other"}, "--model belongs in 'model:', not in 'config'"),
    ],
)
def test_what_has_a_key_of_its_own_does_not_belong_in_the_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        VLLMServer(model="m", config={"api_server_args": arguments})
    assert message in str(caught.value)


def test_repeating_what_is_configured_does_no_harm() -> None:
    server = VLLMServer(model="m", port=7, config={"api_server_args": ["--port", "7", "--model", "m"]})
    assert server.port == 7


def test_a_model_is_needed() -> None:
    with pytest.raises(ConfigError, match="backend 'vllm' needs a 'model'"):
        VLLMServer()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "the binary 'vllm' is not on PATH (/nothing/here). Install it with 'pip install vllm' into"),
        ({"binary_path": "/nothing/vllm"}, "the binary '/nothing/vllm' does not exist."),
        ({"binary_path": "/"}, "the binary '/' is not an executable file."),
    ],
)
def test_a_missing_binary(
    settings: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("PATH", "/nothing/here")
    server = VLLMServer(model="m", output_dir=tmp_path / "logs", **settings)
    with pytest.raises(ServerStartupError) as caught:
        server.start()
    message = str(caught.value)
    assert message.startswith(f"vllm cannot start: {problem}")
    assert message.endswith("Or name it with 'binary_path:' (YAML) or binary_path=... (Python).")
    assert "\n" not in message
    assert server.pid is None


def test_endpoints_for_development_are_listed_where_the_environment_asks_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VLLM_SERVER_DEV_MODE", raising=False)
    assert "sleep" not in VLLMServer(model="m").list_endpoints()
    asked = VLLMServer(model="m", port=7, env_vars={"VLLM_SERVER_DEV_MODE": "1"}).list_endpoints()
    assert asked["sleep"] == "http://127.0.0.1:7/sleep"
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    assert "wake_up" in VLLMServer(model="m").list_endpoints()
    assert "wake_up" not in VLLMServer(model="m", env_vars={"VLLM_SERVER_DEV_MODE": "0"}).list_endpoints()


def test_on_several_nodes_its_python_must_be_known(tmp_path: Path) -> None:
    command = tmp_path / "vllm"
    command.write_text("#!/bin/bash\nexec docker run vllm\n")
    command.chmod(0o755)
    server = VLLMServer("m", nodes=2, gpus=2, binary_path=str(command), output_dir=str(tmp_path))
    server.share = Share(0, 2, ray_address="10.0.0.1:6379", group="ab")
    with pytest.raises(ServerStartupError, match="does not name in its first line"):
        server.require_engine()
    command.write_text(f"#!{sys.executable}\n")
    server.require_engine()
    words = server.get_launch_command()
    assert words[0] == sys.executable
    assert words[1].endswith("vllm_in_group.py")
    assert words[2:4] == ["serve", "m"]
    assert words[-2:] == ["--distributed-executor-backend", "ray"]
    assert server.env_vars == {"RAY_ADDRESS": "10.0.0.1:6379", "INFSERVER_PLACEMENT_GROUP": "ab"}
