"""The plain Python API on real llama.cpp servers. SKIP_INTEGRATION_TESTS=1 skips this file."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from pytest_infserver import (
    LlamaCppServer,
    PortInUseError,
    ServerStartupError,
    ServerState,
    create_server,
    load_server_configs,
    start_server_from_config,
)

pytestmark = [
    pytest.mark.skipif(os.environ.get("SKIP_INTEGRATION_TESTS") == "1", reason="SKIP_INTEGRATION_TESTS=1 is set"),
    pytest.mark.usefixtures("nothing_left"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCppServer]:
    folder = tmp_path_factory.mktemp("server")
    arguments = {"ctx-size": 512, "parallel": 1, "metrics": True}
    with LlamaCppServer(
        model="builtin:tiny", output_dir=folder, debug_mode=True, config={"server_args": arguments}
    ) as running:
        yield running


def test_it_is_ready(server: LlamaCppServer) -> None:
    assert server.state is ServerState.READY
    assert server.check_health()
    assert server.pid is not None
    assert psutil.Process(server.pid).is_running()


def test_completion(server: LlamaCppServer) -> None:
    body = {"prompt": "Hello", "max_tokens": 8, "temperature": 0}
    answers = [requests.post(server.url_for("/v1/completions"), json=body, timeout=60).json() for _ in range(2)]
    assert answers[0]["usage"]["completion_tokens"] == 8
    assert answers[0]["choices"][0]["text"] == answers[1]["choices"][0]["text"]


def test_chat_and_json_schema(server: LlamaCppServer) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    body = {
        "messages": [{"role": "user", "content": "Is it?"}],
        "max_tokens": 32,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    }
    answer = requests.post(server.url_for("/v1/chat/completions"), json=body, timeout=60).json()
    assert isinstance(json.loads(answer["choices"][0]["message"]["content"])["ok"], bool)


def test_stream(server: LlamaCppServer) -> None:
    body = {"prompt": "Hello", "max_tokens": 4, "stream": True}
    with requests.post(server.url_for("/v1/completions"), json=body, stream=True, timeout=60) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == b"data: [DONE]"


def test_what_is_listed_exists(server: LlamaCppServer) -> None:
    endpoints = server.list_endpoints()
    assert "metrics" in endpoints
    assert "embeddings" not in endpoints
    for name in ("health", "models", "props", "slots", "metrics"):
        assert requests.get(endpoints[name], timeout=10).status_code == 200, name
    bodies = {
        "completions": {"prompt": "a", "max_tokens": 1},
        "chat": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
        "responses": {"input": "a", "max_output_tokens": 1},
        "messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
        "tokenize": {"content": "a"},
        "detokenize": {"tokens": [1]},
    }
    for name, body in bodies.items():
        assert requests.post(endpoints[name], json=body, timeout=60).status_code == 200, name
    assert set(endpoints) == {"health", "models", "props", "slots", "metrics", *bodies}


def test_the_log_is_the_engines(server: LlamaCppServer) -> None:
    assert "model loaded" in server.read_log()


def test_start_from_yaml_and_stop(tmp_path: Path, nothing_left: None) -> None:
    path = tmp_path / "servers.yaml"
    path.write_text("backend: llamacpp\nmodel: builtin:tiny\noutput_dir: logs\ndebug_mode: true\n")
    server = start_server_from_config(path)
    try:
        assert server.check_health()
        assert server.log_path == tmp_path / "logs" / "llamacpp" / "server.log"
    finally:
        server.stop()
    assert not server.check_health()
    assert server.state is ServerState.STOPPED


def test_the_true_answer(tmp_path: Path, nothing_left: None) -> None:
    question = {"role": "user", "content": "What is the capital of France? Answer in one word."}
    with create_server("llamacpp", model="builtin:smollm2", output_dir=tmp_path) as server:
        body = {"model": server.model, "messages": [question], "temperature": 0, "max_tokens": 20}
        answer = requests.post(server.url_for("/v1/chat/completions"), json=body, timeout=60).json()
        assert "Paris" in answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"config": {"server_args": ["--bad-flag"]}}, "error: invalid argument: --bad-flag"),
        ({"model": "./missing.gguf"}, "missing.gguf"),
    ],
)
def test_a_failed_start_names_its_cause(
    settings: dict[str, object], cause: str, tmp_path: Path, nothing_left: None
) -> None:
    keywords = {"model": "builtin:tiny", "output_dir": tmp_path, **settings}
    server = LlamaCppServer(**keywords)  # type: ignore[arg-type]
    with pytest.raises(ServerStartupError) as caught:
        server.start()
    line = next(line for line in str(caught.value).splitlines() if line.startswith("  cause:"))
    assert cause in line
    assert caught.value.exit_code == 1
    assert str(server.log_path) in str(caught.value)
    assert server.state is ServerState.FAILED


def test_a_taken_port_says_who_has_it(tmp_path: Path, nothing_left: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = LlamaCppServer(model="builtin:tiny", output_dir=tmp_path, port=taken.getsockname()[1])
        with pytest.raises(PortInUseError, match=f"pid {os.getpid()}"):
            server.start()


def test_kill_and_restart(tmp_path: Path, nothing_left: None) -> None:
    server = LlamaCppServer(model="builtin:tiny", output_dir=tmp_path)
    with server:
        url = server.server_url
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait_death(10)
        assert "was killed by SIGKILL" in str(server.why_died())
        assert not server.check_health()
        server.start()
        assert server.check_health()
        assert server.server_url == url


def test_all_servers_of_a_file_at_once(tmp_path: Path, nothing_left: None) -> None:
    path = tmp_path / "servers.yaml"
    path.write_text("defaults: {backend: llamacpp, model: 'builtin:tiny', output_dir: .}\nservers: {a: , b: }\n")
    servers = [create_server(config.backend, **config.keywords()) for config in load_server_configs(path)]
    try:
        urls = {server.start().server_url for server in servers}
        assert len(urls) == 2
        assert all(server.check_health() for server in servers)
    finally:
        for server in servers:
            server.stop()
