from __future__ import annotations

from typing import Any

import pytest

from pytest_infserver import CommandServer, ConfigError, ServerStartupError


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        (
            {"launch_command": ["run", "--m={model}", "{host}:{port}"], "model": "org/m"},
            ["run", "--m=org/m", "127.0.0.1:8000"],
        ),
        ({"launch_command": ["run", "--json", '{"a": {"b": 1}}', "{port}"]}, None),
        ({"launch_command": ["run", "{other}", "{port}"], "port": 7}, ["run", "{other}", "7"]),
        ({"launch_command": ["run"], "port": 7}, ["run"]),
        ({"launch_command": ["run", "{port}"], "binary_path": "/x/run"}, ["/x/run", "8000"]),
        (
            {"launch_command": ["run", "{port}"], "config": {"server_args": {"a_b": 1, "c": {"port": "{port}"}}}},
            ["run", "8000", "--a-b", "1", "--c", '{"port": "8000"}'],
        ),
        ({"launch_command": ["run", "a b; $HOME", "{port}"]}, ["run", "a b; $HOME", "8000"]),
    ],
)
def test_the_command(settings: dict[str, Any], command: list[str] | None) -> None:
    command = command or ["run", "--json", '{"a": {"b": 1}}', "8000"]
    server = CommandServer(**settings)
    assert server.get_launch_command() == command
    assert server.get_backend_name() == "command"


def test_a_model_s_braces_are_no_placeholder() -> None:
    server = CommandServer(launch_command=["run", "{model}", "{port}"], model="{port}")
    assert server.get_launch_command() == ["run", "{port}", "8000"]


def test_the_endpoints() -> None:
    server = CommandServer(launch_command=["run"], port=7, health_endpoint="/up", endpoints={"api": "/api"})
    assert server.get_health_endpoint() == "http://127.0.0.1:7/up"
    assert server.list_endpoints()["api"] == "http://127.0.0.1:7/api"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "backend 'command' needs a 'launch_command', a list of words"),
        (
            {"launch_command": ["run"]},
            "say where the server listens: write {port} into 'launch_command' or 'env_vars', or set 'port'",
        ),
        ({"launch_command": ["run", "{model}", "{port}"]}, "'launch_command' names {model}, but there is no 'model'"),
        (
            {"launch_command": "run {port}"},
            "expected a list such as [a, b], not one text: nothing is passed to a shell",
        ),
        ({"launch_command": []}, "expected a list whose first word is the binary"),
        ({"launch_command": ["x", "--port", "{prot}"], "port": 1}, "unknown placeholder {prot}; did you mean {port}?"),
        (
            {"launch_command": ["x", "{port}", "{modell}"], "model": "m"},
            "unknown placeholder {modell}; did you mean {model}?",
        ),
    ],
)
def test_mistakes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CommandServer(**settings)
    assert message in str(caught.value)


def test_a_missing_binary(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nothing/here")
    with pytest.raises(ServerStartupError) as caught:
        CommandServer(launch_command=["no-such-server", "{port}"], output_dir=tmp_path).start()
    assert str(caught.value) == (
        "command cannot start: the binary 'no-such-server' is not on PATH (/nothing/here). The binary is the first word"
        " of 'launch_command'. Or name it with 'binary_path:' (YAML) or binary_path=... (Python)."
    )
    assert list(tmp_path.iterdir()) == []
