"""Unit tests of the public Python API: what can be said about a server without starting it."""

from __future__ import annotations

from pathlib import Path

import pytest

import pytest_infserver
from pytest_infserver import (
    ConfigError,
    InferenceServer,
    LlamaCppServer,
    ServerState,
    SGLangServer,
    TransformersServer,
    VLLMServer,
    create_server,
    load_server_config,
    register_backend,
)


def test_every_public_name_can_be_imported() -> None:
    for name in pytest_infserver.__all__:
        assert getattr(pytest_infserver, name) is not None
    assert set(pytest_infserver.__all__) <= set(dir(pytest_infserver))
    with pytest.raises(AttributeError, match="no attribute 'VLLMserver'"):
        pytest_infserver.VLLMserver  # noqa: B018


def test_defaults() -> None:
    server = VLLMServer(model="m")
    settings = server.settings
    assert (settings.heartbeat_interval, settings.heartbeat_timeout, settings.startup_timeout) == (5, 30, 600)
    assert (settings.stop_timeout, settings.hang_timeout, settings.download_timeout) == (30, 300, 3600)
    assert (server.host, server.port, server.debug_mode) == ("127.0.0.1", 8000, False)
    assert server.output_dir == Path.cwd() / "server_logs"
    assert server.log_path == Path.cwd() / "server_logs" / "vllm" / "server.log"
    assert (server.name, server.model, server.pid, server.state) == ("vllm", "m", None, ServerState.NEW)


@pytest.mark.parametrize(
    ("server", "command"),
    [
        (VLLMServer(model="m"), ["vllm", "serve", "m", "--host", "127.0.0.1", "--port", "8000"]),
        (
            SGLangServer(model="m", binary_path="/opt/venv/bin/python3"),
            [
                "/opt/venv/bin/python3",
                "-m",
                "sglang.launch_server",
                "--model-path",
                "m",
                "--host",
                "127.0.0.1",
                "--port",
                "8000",
            ],
        ),
        (
            SGLangServer(model="m", binary_path="sglang", port=9),
            ["sglang", "serve", "--model-path", "m", "--host", "127.0.0.1", "--port", "9"],
        ),
        (
            TransformersServer(model="m", host="0.0.0.0"),
            ["transformers", "serve", "m", "--host", "0.0.0.0", "--port", "8000"],
        ),
        (
            LlamaCppServer(model="m.gguf", binary_path="llama-server"),
            ["llama-server", "--model", "m.gguf", "--host", "127.0.0.1", "--port", "8000"],
        ),
    ],
    ids=lambda value: value.get_backend_name() if isinstance(value, InferenceServer) else "",
)
def test_launch_command(server: InferenceServer, command: list[str]) -> None:
    assert server.get_launch_command() == command


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tensor-parallel-size", "4", "--trust-remote-code"],
        {"tensor-parallel-size": 4, "trust-remote-code": True},
        {"tensor_parallel_size": "4", "--trust-remote-code": True, "enforce-eager": False, "seed": None},
        {"--tensor-parallel-size": "4", "tensor-parallel-size": 4, "trust-remote-code": True},
    ],
)
@pytest.mark.parametrize("key", ["api_server_args", "server_args"])
def test_argument_formats_give_one_command(arguments: object, key: str) -> None:
    server = VLLMServer(model="m", config={key: arguments})
    assert server.get_launch_command()[7:] == ["--tensor-parallel-size", "4", "--trust-remote-code"]


def test_the_factory_makes_the_class_of_the_backend() -> None:
    for name, cls in {"vllm": VLLMServer, "sglang": SGLangServer, "llamacpp": LlamaCppServer}.items():
        server = create_server(backend=name, model="m", port=1234)
        assert type(server) is cls
        assert server.get_backend_name() == name
        assert server.server_url == "http://127.0.0.1:1234"


def test_keywords_and_yaml_are_one_set_of_names(tmp_path: Path) -> None:
    path = tmp_path / "servers.yaml"
    path.write_text("backend: command\nlaunch_command: [run, '{port}']\nhealth_endpoint: /up\nendpoints: {api: /api}\n")
    from_yaml = load_server_config(path)
    from_keywords = create_server(
        "command", launch_command=["run", "{port}"], health_endpoint="/up", endpoints={"api": "/api"}
    )
    assert from_yaml.keywords().keys() == from_keywords.settings.keywords().keys() | {"name"}
    assert from_keywords.get_launch_command() == ["run", "8000"]
    assert from_keywords.get_health_endpoint() == "http://127.0.0.1:8000/up"
    assert from_keywords.list_endpoints()["api"] == "http://127.0.0.1:8000/api"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"modle": "m"}, "unknown key 'modle'; did you mean 'model'?"),
        ({"model": "m", "port": "8000"}, "'port': expected a port"),
        ({"model": "m", "startup_timeout": 0}, "'startup_timeout': expected a positive number of seconds"),
        ({}, "needs a 'model'"),
        ({"model": "m", "config": {"api_server_arg": []}}, "did you mean 'api_server_args'?"),
        ({"model": "m", "config": {"api_server_args": "--x 1"}}, "nothing is passed to a shell"),
        ({"model": "m", "config": {"api_server_args": ["--port", "1"]}}, "--port belongs in 'port:'"),
        ({"model": "builtin:tinny"}, "builtin:tiny"),
    ],
)
def test_a_mistake_is_a_config_error_before_anything_starts(keywords: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        VLLMServer(**keywords)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_before_the_start() -> None:
    server = VLLMServer(model="m", port=1)
    assert not server.check_health()
    assert server.read_log() == ""
    assert server.why_died() is None
    server.stop()
    assert server.state is ServerState.NEW


def test_a_subclass_is_a_backend() -> None:
    class MyBackendServer(InferenceServer):
        def get_backend_name(self) -> str:
            return "mybackend-unit"

        def get_binary_path(self) -> str:
            return "my-backend-binary"

        def get_launch_command(self) -> list[str]:
            return [self.binary_path, "--model", self.model, "--port", str(self.port)]

        def get_health_endpoint(self) -> str:
            return f"{self.server_url}/health"

        def list_endpoints(self) -> dict[str, str]:
            return {"health": f"{self.server_url}/health"}

    register_backend(MyBackendServer)
    server = create_server("mybackend-unit", model="m", binary_path="/opt/mine")
    assert server.get_launch_command() == ["/opt/mine", "--model", "m", "--port", "8000"]
    assert repr(server) == "<MyBackendServer mybackend-unit new http://127.0.0.1:8000>"


def test_an_attached_server_has_the_address_of_its_url() -> None:
    server = create_server("vllm", url="http://gpu-box:9000/", model="m")
    assert (server.host, server.port, server.server_url) == ("gpu-box", 9000, "http://gpu-box:9000")
    assert create_server("remote", url="https://gpu-box").port == 443


def test_paths_in_keywords_mean_what_they_mean_in_yaml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    server = LlamaCppServer(model="~/m.gguf", binary_path="./bin/llama-server", output_dir="logs")
    monkeypatch.chdir("/")
    assert server.get_launch_command()[:3] == [f"{tmp_path}/bin/llama-server", "--model", f"{tmp_path}/m.gguf"]
    assert server.log_path == tmp_path / "logs" / "llamacpp" / "server.log"


@pytest.mark.parametrize(
    ("keywords", "key"),
    [
        ({"config": {"server_args": {"api-key": "a-key-of-mine"}}}, "a-key-of-mine"),
        ({"config": {"server_args": ["--api-key=first,second"]}}, "first"),
        ({"env_vars": {"LLAMA_API_KEY": "from-the-environment"}}, "from-the-environment"),
        ({}, None),
    ],
)
def test_the_api_key_for_clients(keywords: dict[str, object], key: str | None) -> None:
    assert LlamaCppServer(model="m", **keywords).api_key == key


@pytest.mark.parametrize("arguments", [{"x": ["--port", 9]}, {"--port=9": True}, ["--port=9"], {"port": 9}])
def test_a_reserved_flag_is_found_however_it_is_written(arguments: object) -> None:
    with pytest.raises(ConfigError, match="--port belongs in 'port:'"):
        VLLMServer(model="m", config={"server_args": arguments})
