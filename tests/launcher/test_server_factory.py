from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pytest_infserver import (
    CommandServer,
    ConfigError,
    RemoteServer,
    ServerState,
    VLLMServer,
    create_server,
    load_server_config,
    load_server_configs,
    start_server_from_config,
)
from pytest_infserver.config.tree import labelled
from pytest_infserver.launcher.factory import create_from_config, load_files

FAKE_ENGINE = Path(__file__).parent.parent / "fake_engine.py"
TWO = "servers:\n  a: {backend: vllm, model: m}\n  b: {backend: sglang, model: m}\n"


@pytest.fixture
def two(tmp_path: Path) -> Path:
    path = tmp_path / "two.yaml"
    path.write_text(TWO)
    return path


def test_create_server_makes_the_backend() -> None:
    server = create_server("vllm", "m", port=7, name="x")
    assert type(server) is VLLMServer
    assert (server.model, server.port, server.name, server.state) == ("m", 7, "x", ServerState.NEW)
    assert type(create_server(backend="remote", url="http://127.0.0.1:1")) is RemoteServer


def test_a_url_attaches_and_keeps_the_backend() -> None:
    server = create_server("vllm", url="http://gpu-box:8000/")
    assert server.attached
    assert (server.get_backend_name(), server.server_url) == ("vllm", "http://gpu-box:8000")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"backend": "vlm", "model": "m"}, "create_server(): unknown backend 'vlm'; did you mean 'vllm'?"),
        ({"backend": "vllm"}, "backend 'vllm' needs a 'model'"),
        ({"backend": "vllm", "model": 7}, "create_server(): 'model': expected a text, not 7; put it in quotes"),
        ({"backend": "vllm", "model": "m", "prot": 1}, "create_server(): unknown key 'prot'; did you mean 'port'?"),
        ({"backend": "vllm", "model": "m", "config": {"api_server_args": {5: 1}}}, "5 cannot be the name of an option"),
        ({"backend": "command"}, "backend 'command' needs a 'launch_command', a list of words"),
        ({"backend": "command", "launch_command": "run {port}"}, "expected a list such as [a, b], not one text"),
        ({"backend": "remote"}, "backend 'remote' needs a 'url'"),
    ],
)
def test_create_server_refuses_a_mistake(keywords: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_server(**keywords)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_servers_of_a_file(two: Path) -> None:
    configs = load_server_configs(two)
    assert [(config.name, config.backend) for config in configs] == [("a", "vllm"), ("b", "sglang")]
    assert load_server_config(str(two), "b") == configs[1]


def test_an_unnamed_server_has_its_backend_s_name(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("backend: vllm\nmodel: m\n")
    assert load_server_config(path).name == "vllm"
    assert create_from_config(load_server_config(path)).log_path == Path.cwd() / "server_logs/vllm/server.log"


@pytest.mark.parametrize("load", [load_server_config, start_server_from_config])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "2 servers (a, b): say which one with name=..."),
        ("c", "no server is called 'c'; known are: a, b"),
    ],
)
def test_which_server_must_be_clear(two: Path, load: object, name: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(two, name)  # type: ignore[operator]
    assert str(caught.value) == f"{two}: {message}"


def test_overrides_count_more_than_the_file(two: Path) -> None:
    config = load_server_config(two, "a", overrides={"port": 9, "env_vars": {"A": "1"}})
    assert (config.port, config.env_vars, config.model) == (9, {"A": "1"}, "m")
    with pytest.raises(ConfigError, match=r"^overrides: server 'a': unknown key 'prot'; did you mean 'port'\?$"):
        load_server_configs(two, overrides={"prot": 9})


def test_overrides_meet_the_arguments_under_any_spelling(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("backend: vllm\nmodel: m\nconfig: {api_server_args: {max_model_len: 1, x: 1}}\n")
    config = load_server_config(path, overrides={"config": {"server_args": {"--max-model-len": 2}}})
    assert create_from_config(config).get_launch_command()[7:] == ["--max-model-len", "2", "--x", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--x 1", "3:10: 'config.api_server_args' must be a mapping or a list: nothing is passed to a shell"),
        ("{--tp: 1, tp: 2}", "3:37: 'config.api_server_args': '--tp' and 'tp' are both --tp, with different values"),
        ("[--a, true]", "3:33: 'config.api_server_args': true in a list has no meaning: write the flag itself"),
        ("{}, server_args: {}", "3:31: api_server_args and server_args mean the same: use one of them"),
        ("{}, api_server_arg: {}", "3:31: unknown key 'api_server_arg' in 'config'; did you mean 'api_server_args'?"),
    ],
)
def test_a_mistake_in_the_arguments_has_its_place(tmp_path: Path, arguments: str, message: str) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(f"backend: vllm\nmodel: m\nconfig: {{api_server_args: {arguments}}}\n")
    with pytest.raises(ConfigError) as caught:
        load_server_configs(path)
    assert str(caught.value) == f"{path}:{message}"


def test_a_name_may_stand_in_one_file_only(two: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("servers:\n  c: {backend: vllm, model: m}\n  b: {backend: vllm, model: m}\n")
    with pytest.raises(ConfigError) as caught:
        load_files([two, other])
    message = f"{other}:3:3: server 'b': this name is taken by the server at {two}:3:3; names must be unique"
    assert str(caught.value) == message


def test_one_name_for_all_servers_is_refused(two: Path) -> None:
    with pytest.raises(ConfigError, match=r"--infserver-set: server 'x': this name is taken by the server at"):
        load_files([two], overrides=labelled({"name": "x"}, "--infserver-set"))


def test_start_server_from_config(tmp_path: Path, nothing_left: None) -> None:
    path = tmp_path / "s.yaml"
    command = json.dumps([sys.executable, "-S", str(FAKE_ENGINE), "--port", "{port}"])
    path.write_text(
        f"servers:\n  a: {{backend: command, launch_command: {command}}}\n  b: {{backend: vllm, model: m}}\n"
    )
    server = start_server_from_config(path, "a", overrides={"startup_timeout": 30, "output_dir": str(tmp_path)})
    try:
        assert type(server) is CommandServer
        assert server.check_health()
    finally:
        server.stop()
    assert server.state is ServerState.STOPPED


def test_nothing_starts_when_any_server_of_the_file_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        f"servers:\n  a: {{backend: command, launch_command: [{tmp_path}/x, '{{port}}']}}\n  b: {{backend: v}}\n"
    )
    with pytest.raises(ConfigError, match="server 'b': unknown backend 'v'"):
        start_server_from_config(path, "a")
    assert list(tmp_path.iterdir()) == [path]
