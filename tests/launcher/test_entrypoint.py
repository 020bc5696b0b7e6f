"""The key ``entrypoint``: other words than an engine's usual ones."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_infserver import (
    CommandServer,
    ConfigError,
    LlamaCppServer,
    SGLangServer,
    TransformersServer,
    VLLMServer,
)


@pytest.mark.parametrize(
    ("kind", "words", "begin"),
    [
        (VLLMServer, ["vllm", "launch", "render"], ["vllm", "launch", "render", "m", "--host"]),
        (SGLangServer, ["python", "-m", "sglang.other"], ["python", "-m", "sglang.other", "--model-path", "m"]),
        (TransformersServer, ["transformers", "other"], ["transformers", "other", "m", "--host"]),
        (LlamaCppServer, ["llama", "serve"], ["llama", "serve", "--model", "m", "--host"]),
    ],
)
def test_its_words_take_the_place_of_the_usual_ones(kind: Any, words: list[str], begin: list[str]) -> None:
    server = kind("m", entrypoint=words, config={"server_args": ["--last", "1"]})
    command = server.get_launch_command()
    assert command[: len(begin)] == begin
    assert command[-2:] == ["--last", "1"]
    named = kind("m", entrypoint=words, binary_path="/opt/engine").get_launch_command()
    assert named[: len(words)] == ["/opt/engine", *words[1:]]


def test_a_backend_that_has_none_says_so() -> None:
    with pytest.raises(
        ConfigError, match="backend 'command' takes no 'entrypoint': write all of it as 'launch_command'"
    ):
        CommandServer(launch_command=["x"], entrypoint=["y"])
    with pytest.raises(ConfigError, match="on one node"):
        VLLMServer("m", entrypoint=["vllm", "launch"], nodes=2)
