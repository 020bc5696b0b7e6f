from __future__ import annotations

from typing import Any

import pytest

from pytest_infserver import ConfigError, ServerStartupError, TransformersServer


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        ({}, "transformers serve m --host 127.0.0.1 --port 8000"),
        (
            {"binary_path": "/e/transformers", "port": 7, "config": {"server_args": {"device": "cpu"}}},
            "/e/transformers serve m --host 127.0.0.1 --port 7 --device cpu",
        ),
    ],
)
def test_the_command(settings: dict[str, Any], command: str) -> None:
    server = TransformersServer(model="m", **settings)
    assert server.get_launch_command() == command.split()
    assert server.get_backend_name() == "transformers"


def test_the_endpoints_are_those_that_work_offline() -> None:
    endpoints = TransformersServer(model="m", port=7).list_endpoints()
    assert endpoints["chat"] == "http://127.0.0.1:7/v1/chat/completions"
    assert endpoints["health"] == "http://127.0.0.1:7/health"
    assert not {"models", "metrics"} & endpoints.keys()


def test_reserved_options() -> None:
    with pytest.raises(ConfigError, match="--port belongs in 'port:'"):
        TransformersServer(model="m", config={"server_args": {"port": 1}})


def test_a_missing_binary(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("PATH", "/nothing/here")
    with pytest.raises(ServerStartupError, match=r"'transformers' is not on PATH .* 'transformers\[serving\]'"):
        TransformersServer(model="m", output_dir=tmp_path).start()
    assert list(tmp_path.iterdir()) == []
