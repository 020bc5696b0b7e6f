"""Real clients as witnesses: what their libraries make of the answers of llama.cpp and vLLM."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import InferenceServer

from .provision import environment, models_dir

HERE = Path(__file__).parent / "clients"
LIBRARIES = {
    "openai": "openai",
    "openai_async": "openai",
    "anthropic": "anthropic",
    "litellm": "litellm",
    "langchain": "langchain-openai",
    "instructor": "instructor",
    "llama_index": "llama-index-llms-openai-like",
}
"""Scripts of `clients/`, and whose environment they run in."""
FAILS = {
    ("llamacpp", "openai", "tools"): "'NoneType' object is not subscriptable",
    ("llamacpp", "anthropic", "tools"): "StopIteration",
    ("llamacpp", "litellm", "tools"): "'NoneType' object is not subscriptable",
    ("llamacpp", "langchain", "tools"): "list index out of range",
    ("llamacpp", "instructor", "tools"): "IncompleteOutputException",
    ("llamacpp", "llama_index", "tools"): "Expected at least one tool call, but got 0 tool calls",
    # The arguments are a text, no object of the tool's schema.
    ("vllm", "openai", "tools"): "string indices must be integers",
    ("vllm", "anthropic", "tools"): "Input should be a valid dictionary",
    ("vllm", "litellm", "tools"): "string indices must be integers",
    ("vllm", "langchain", "tools"): "Input should be a valid dictionary",
    ("vllm", "instructor", "tools"): "Input should be an object",
    ("vllm", "llama_index", "tools"): "nothing came: {}",
}
"""What fails, by engine, script and question, and a part of what the library says; see docs/conformance.md."""
KEY = "key-of-the-test"
LIMIT = 600
"""Seconds for one script: a bound on a hang."""
# By the server of servers.yaml that they change, if any.
SETTINGS: dict[tuple[str, ...], dict[str, Any]] = {
    (): {"backend": "llamacpp", "model": "builtin:smollm2", "server_args": {"threads": 1}},
    ("vllm",): {
        "model": str(models_dir() / "smollm2"),
        "profile": None,
        # Several threads wait for one another most of the time where others compute, too.
        "env_vars": {"OMP_NUM_THREADS": "1"},
        "server_args": {
            "tensor-parallel-size": 1,
            "max-model-len": 2048,
            "enable-auto-tool-choice": True,
            "tool-call-parser": "hermes",
        },
    },
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((), id="llamacpp"),
        pytest.param(("vllm",), id="vllm", marks=[pytest.mark.nightly, pytest.mark.engine("vllm")]),
    ],
)
def server(request: pytest.FixtureRequest, inference_server_factory: Callable[..., InferenceServer]) -> InferenceServer:
    """An engine with a real model and a key, for all clients."""
    return inference_server_factory(*request.param, **SETTINGS[request.param], api_key=KEY)


@pytest.mark.parametrize(
    "script", [pytest.param(name, marks=pytest.mark.engine(library)) for name, library in LIBRARIES.items()]
)
def test_witness(script: str, server: InferenceServer) -> None:
    verdicts = ask(script, server)
    print(json.dumps(verdicts, indent=1))
    assert {"chat", "stream"} & set(verdicts)
    for question, found in verdicts.items():
        known = FAILS.get((server.get_backend_name(), script, question))
        if known is None:
            assert found["verdict"] == "passes", f"{question}: {found['reason']}"
        else:
            assert found["verdict"] == "fails", f"{question} passes now: take it out of FAILS and the docs"
            assert known in found["reason"]


def ask(script: str, server: InferenceServer) -> dict[str, dict[str, str]]:
    """Run a script on a server, in its library's environment; return its verdicts."""
    python = environment(LIBRARIES[script]) / "bin" / "python"
    words = [HERE / "witness.py", HERE / f"with_{script}.py", server.server_url, server.api_key, server.api_model]
    command = [str(python), "-I", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_each_script_is_run() -> None:
    assert {f"with_{name}.py" for name in LIBRARIES} == {file.name for file in HERE.glob("with_*.py")}
