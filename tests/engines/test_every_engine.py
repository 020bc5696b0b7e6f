"""What each engine answers when the plugin has started it; all tests of one engine share one server.

SGLang runs with stubbed kernels here: its command line, processes, HTTP and shutdown are the real ones, its arithmetic
is PyTorch's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import requests

from pytest_infserver import InferenceServer, ServerState

MESSAGES = [{"role": "user", "content": "Hello"}]
REQUIRED = {
    "vllm": {
        "health",
        "models",
        "completions",
        "chat",
        "responses",
        "tokenize",
        "metrics",
        "reset_prefix_cache",
        "is_paused",
    },
    "sglang": {"health", "models", "completions", "chat", "generate", "metrics", "model_info", "server_info"},
    "transformers": {"health", "completions", "chat", "responses"},
}
NOT_THERE = {"vllm": {"embeddings"}, "sglang": set(), "transformers": {"models", "metrics", "embeddings"}}


def post(server: InferenceServer, path: str, **body: Any) -> requests.Response:
    body.setdefault("model", server.model)
    return requests.post(server.url_for(path), json=body, timeout=120)


def test_ready(inference_server: InferenceServer) -> None:
    assert inference_server.state is ServerState.READY
    assert inference_server.debug_mode
    assert inference_server.check_health()
    assert inference_server.pid is not None
    assert psutil.Process(inference_server.pid).is_running()
    assert Path(inference_server.log_path).stat().st_size > 0


def test_completion(inference_server: InferenceServer) -> None:
    body = {"prompt": "Hello", "max_tokens": 6, "temperature": 0}
    first, second = (post(inference_server, "/v1/completions", **body).json() for _ in range(2))
    assert first["usage"]["completion_tokens"] == 6
    assert first["choices"][0]["text"] == second["choices"][0]["text"]


def test_chat(inference_server: InferenceServer) -> None:
    answer = post(inference_server, "/v1/chat/completions", messages=MESSAGES, max_tokens=6, temperature=0).json()
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] <= 6


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_stream(inference_server: InferenceServer, path: str) -> None:
    question = {"messages": MESSAGES} if "chat" in path else {"prompt": "Hello"}
    body = {"model": inference_server.model, "max_tokens": 6, "stream": True, "temperature": 0, **question}
    with requests.post(inference_server.url_for(path), json=body, stream=True, timeout=120) as response:
        assert response.ok, response.text
        events = [line.removeprefix(b"data: ") for line in response.iter_lines() if line.startswith(b"data: ")]
    chunks = [json.loads(event) for event in events if event != b"[DONE]"]
    texts = [
        choice.get("text") or choice.get("delta", {}).get("content") for one in chunks for choice in one["choices"]
    ]
    assert "".join(filter(None, texts))
    # transformers ends a stream with the usage.
    last = b"usage" if inference_server.get_backend_name() == "transformers" else b"[DONE]"
    assert last in events[-1]


def test_client(inference_server: InferenceServer, inference_client: openai.OpenAI) -> None:
    answer = inference_client.chat.completions.create(
        model=inference_server.model, messages=[{"role": "user", "content": "Hello"}], max_tokens=4
    )
    assert answer.choices[0].message.content


def test_what_is_listed_exists(inference_server: InferenceServer) -> None:
    backend = inference_server.get_backend_name()
    endpoints = inference_server.list_endpoints()
    assert REQUIRED[backend] <= set(endpoints)
    assert not NOT_THERE[backend] & set(endpoints)
    documented = requests.get(inference_server.url_for("/openapi.json"), timeout=60).json()["paths"]
    for name, url in endpoints.items():
        path = url.removeprefix(inference_server.server_url)
        # An endpoint of a mounted application, as SGLang's /metrics, is in no OpenAPI document.
        assert path in documented or requests.get(url, timeout=60).ok, name


@pytest.mark.parametrize("name", ["health", "models", "metrics", "version", "model_info", "is_paused"])
def test_what_is_listed_and_takes_get_answers(inference_server: InferenceServer, name: str) -> None:
    url = inference_server.list_endpoints().get(name)
    if url is not None:
        assert requests.get(url, timeout=60).status_code == 200


@pytest.mark.backend("vllm", "sglang")
def test_models(inference_server: InferenceServer) -> None:
    data = requests.get(inference_server.list_endpoints()["models"], timeout=60).json()["data"]
    assert [model["id"] for model in data] == [inference_server.model]


@pytest.mark.backend("transformers")
def test_models_fail_offline_and_are_not_claimed(inference_server: InferenceServer) -> None:
    assert requests.get(inference_server.url_for("/v1/models"), timeout=60).status_code == 500
    assert "models" not in inference_server.list_endpoints()


def test_an_unknown_model(inference_server: InferenceServer) -> None:
    answer = post(inference_server, "/v1/completions", model="no-such-model", prompt="Hello", max_tokens=1)
    # SGLang serves its only model under any name.
    assert answer.status_code == {"vllm": 404, "sglang": 200, "transformers": 400}[inference_server.get_backend_name()]


@pytest.mark.backend(exclude="transformers")
def test_a_prompt_that_is_too_long(inference_server: InferenceServer) -> None:
    answer = post(inference_server, "/v1/completions", prompt="Hello " * 1000, max_tokens=1)
    assert answer.status_code == 400
    assert "512" in answer.text
    assert inference_server.check_health()


@pytest.mark.backend(exclude="transformers")
def test_metrics_count_tokens(inference_server: InferenceServer) -> None:
    name = {"vllm": "vllm:generation_tokens_total", "sglang": "sglang:generation_tokens_total"}

    def generated() -> float:
        text = requests.get(inference_server.list_endpoints()["metrics"], timeout=60).text
        lines = [line for line in text.splitlines() if line.startswith(name[inference_server.get_backend_name()])]
        return sum(float(line.split()[-1]) for line in lines)

    before = generated()
    assert post(inference_server, "/v1/completions", prompt="Hello", max_tokens=5, temperature=0).ok
    assert generated() >= before + 5


@pytest.mark.backend("vllm")
def test_an_option_that_vllm_has_dropped_was_left_out(inference_server: InferenceServer) -> None:
    assert "--disable-log-requests" in inference_server.get_launch_command()
    assert "--disable-log-requests" not in inference_server.command().argv
