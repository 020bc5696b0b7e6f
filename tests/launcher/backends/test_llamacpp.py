from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import ConfigError, LlamaCppServer, ServerStartupError
from pytest_infserver.models.builtin import builtin_path

ADDRESS = ["--host", "127.0.0.1", "--port", "8000"]


@pytest.fixture
def no_llama_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nothing/here")


@pytest.fixture
def llama_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    binary = tmp_path / "llama-server"
    binary.write_text("#!/bin/sh\nexit 1\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return str(binary)


def test_llama_server_from_path_is_preferred(llama_server: str) -> None:
    server = LlamaCppServer(model="m.gguf", config={"server_args": {"ctx_size": 512}})
    assert server.get_launch_command() == [llama_server, "--model", "m.gguf", *ADDRESS, "--ctx-size", "512"]
    assert server.get_backend_name() == "llamacpp"


def test_the_embedded_one_stands_in(no_llama_server: None) -> None:
    command = LlamaCppServer(model="m.gguf").get_launch_command()
    python = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]
    assert command == [*python, "-m", "pytest_infserver.embedded_llamacpp.server", "--model", "m.gguf", *ADDRESS]


def test_a_named_binary_counts_most(llama_server: str) -> None:
    server = LlamaCppServer(model="m.gguf", binary_path="/opt/llama-server")
    assert server.get_launch_command()[0] == "/opt/llama-server"


@pytest.mark.parametrize(
    ("arguments", "aliases"),
    [([], ["builtin:tiny"]), (["--alias", "mine"], ["mine"]), (["-a", "mine"], []), ({"alias": "mine"}, ["mine"])],
)
def test_a_builtin_model_is_a_file_under_its_own_name(llama_server: str, arguments: Any, aliases: list[str]) -> None:
    command = LlamaCppServer(model="builtin:tiny", config={"server_args": arguments}).get_launch_command()
    assert command[2] == str(builtin_path("builtin:tiny"))
    assert Path(command[2]).is_file()
    assert [command[index + 1] for index, word in enumerate(command) if word == "--alias"] == aliases


def test_an_unknown_builtin_model() -> None:
    with pytest.raises(ConfigError, match="builtin:tiny"):
        LlamaCppServer(model="builtin:tinny")


@pytest.mark.parametrize(
    ("arguments", "more", "less"),
    [
        ({}, {"slots"}, {"metrics", "embeddings", "rerank"}),
        ({"metrics": True}, {"metrics"}, {"embeddings"}),
        (["--embeddings"], {"embeddings"}, {"metrics"}),
        (["--reranking"], {"rerank"}, {"metrics"}),
        ({"no-slots": True}, set(), {"slots"}),
    ],
)
def test_endpoints_behind_a_flag_are_listed_with_that_flag(arguments: Any, more: set[str], less: set[str]) -> None:
    endpoints = LlamaCppServer(model="m", port=7, config={"server_args": arguments}).list_endpoints()
    assert more <= endpoints.keys()
    assert not less & endpoints.keys()
    assert endpoints["chat"] == "http://127.0.0.1:7/v1/chat/completions"


@pytest.mark.parametrize("arguments", [["-m", "x"], {"model": "x"}, {"-m": "x"}])
def test_reserved_options(arguments: Any) -> None:
    with pytest.raises(ConfigError, match="belongs in 'model:', not in 'config'"):
        LlamaCppServer(model="m", config={"server_args": arguments})


def test_neither_binary_nor_package(no_llama_server: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServerStartupError) as caught:
        LlamaCppServer(model="builtin:tiny", output_dir=tmp_path).start()
    assert str(caught.value) == (
        "llamacpp cannot start: no 'llama-server' is on PATH, and the package 'xllamacpp' is not installed for"
        f" {sys.executable}. Install llama.cpp, or \"pip install 'pytest-infserver[llamacpp]'\" for the embedded one."
        " Or name a llama-server with 'binary_path:' (YAML) or binary_path=... (Python)."
    )
    assert list(tmp_path.iterdir()) == []
