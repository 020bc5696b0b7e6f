from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import ConfigError, ServerStartupError, SGLangServer
from pytest_infserver.launcher.share import Share


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        ({}, f"{sys.executable} -m sglang.launch_server --model-path m --host 127.0.0.1 --port 8000"),
        (
            {"binary_path": "/env/bin/python3.12", "port": 7},
            "/env/bin/python3.12 -m sglang.launch_server --model-path m --host 127.0.0.1 --port 7",
        ),
        ({"binary_path": "/env/bin/sglang"}, "/env/bin/sglang serve --model-path m --host 127.0.0.1 --port 8000"),
        (
            {"binary_path": "sglang", "config": {"server_args": {"tp": 4, "context_length": 8192}}},
            "sglang serve --model-path m --host 127.0.0.1 --port 8000 --tp 4 --context-length 8192",
        ),
    ],
)
def test_the_command(settings: dict[str, Any], command: str) -> None:
    server = SGLangServer(model="m", **settings)
    assert server.get_launch_command() == command.split()
    assert server.get_backend_name() == "sglang"


def test_the_endpoints() -> None:
    server = SGLangServer(model="m", port=7)
    assert server.get_health_endpoint() == "http://127.0.0.1:7/health"
    assert server.list_endpoints()["generate"] == "http://127.0.0.1:7/generate"
    assert server.list_endpoints()["chat"] == "http://127.0.0.1:7/v1/chat/completions"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model-path": "x"}, "--model-path belongs in 'model:'"),
        (["--model", "x"], "--model belongs in 'model:'"),
        (["--host=0.0.0.0"], "--host belongs in 'host:'"),
    ],
)
def test_reserved_options(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SGLangServer(model="m", config={"server_args": arguments})
    assert message in str(caught.value)


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServerStartupError) as caught:
        SGLangServer(model="m", output_dir=tmp_path).start()
    assert str(caught.value) == (
        f"sglang cannot start: the package 'sglang' is not installed for {sys.executable}. Install it with"
        " 'pip install sglang'. Or name another environment's interpreter or 'sglang' command with 'binary_path:'"
        " (YAML) or binary_path=... (Python)."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "ports"),
    [
        ({}, []),
        ({"tp": 2}, []),
        ({"dp": 1}, []),
        # Plain data parallel uses unix sockets: seen with SGLang 0.5.23.
        ({"dp-size": 2}, []),
        ({"dp-size": 2, "enable-dp-attention": True}, [8013, *range(8233, 8242)]),
        (["--data-parallel-size=2", "--enable-dp-attention"], [8013, *range(8233, 8242)]),
        ({"enable-dp-attention": True}, [8013, *range(8233, 8241)]),
        ({"dp": 4, "enable-dp-attention": True}, [8013, *range(8233, 8244)]),
        # Then the user has said where they are.
        ({"dp": 2, "enable-dp-attention": True, "dist-init-addr": "127.0.0.1:5000"}, []),
        (["--enable-dp-attention", "--dp"], [8013, *range(8233, 8241)]),
        (["--enable-dp-attention", "--dp", "\u00b2"], [8013, *range(8233, 8241)]),
    ],
)
def test_the_ports_of_data_parallel(arguments: Any, ports: list[int]) -> None:
    assert list(SGLangServer(model="m", config={"server_args": arguments}).derived_ports(8000)) == ports


def test_the_ports_of_data_parallel_stay_below_the_last_one() -> None:
    ports = SGLangServer(model="m", config={"server_args": {"enable-dp-attention": True}}).derived_ports(65400)
    assert max(ports) <= 65535


def test_the_ranks_of_several_nodes_meet_at_ports_of_their_own(tmp_path: Path) -> None:
    server = SGLangServer("m", nodes=2, output_dir=str(tmp_path), config={"server_args": {"tp": 4}})
    server.share = Share(1, 2, "10.0.0.1:20000")
    words = server.get_launch_command()
    assert words[-6:] == ["--nnodes", "2", "--node-rank", "1", "--dist-init-addr", "10.0.0.1:20000"]
    assert not server.serves
    assert not server.meeting_ports(20000)
    arguments = {"tp": 4, "dp": 2, "enable-dp-attention": True}
    server = SGLangServer("m", nodes=2, output_dir=str(tmp_path), config={"server_args": arguments})
    # What SGLang 0.5.23 derives from its own port on one node, it derives from the meeting on several.
    assert set(server.meeting_ports(20000)) == {20013, *range(20001, 20009)}
    assert len(server.derived_ports(8000)) > 0
    server.share = Share(0, 2, "10.0.0.1:20000")
    assert not server.derived_ports(8000)
