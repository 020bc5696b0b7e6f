"""What an engine must answer, however it was started: each check takes a running server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psutil
import requests

from pytest_infserver import InferenceServer, ServerState

MESSAGES = [{"role": "user", "content": "Hello"}]
REQUIRED = {
    "vllm": {"health", "models", "completions", "chat", "responses", "tokenize", "metrics", "is_paused"},
    "sglang": {"health", "models", "completions", "chat", "generate", "metrics", "model_info", "server_info"},
    "transformers": {"health", "completions", "chat", "responses"},
}
NOT_THERE: dict[str, set[str]] = {
    "vllm": {"embeddings"},
    "sglang": set(),
    # Its /v1/models lists the hub's cache, and fails offline.
    "transformers": {"models", "metrics", "embeddings"},
}
WITH_GET = ("health", "models", "metrics", "version", "model_info", "is_paused")
UNKNOWN_MODEL = {"vllm": 404, "sglang": 200, "transformers": 400}
"""Status for a model that is not there; SGLang serves its only one under any name."""
GENERATED = {"vllm": "vllm:generation_tokens_total", "sglang": "sglang:generation_tokens_total"}


def post(server: InferenceServer, path: str, **body: Any) -> requests.Response:
    body.setdefault("model", server.model)
    return requests.post(server.url_for(path), json=body, timeout=300)


def ready(server: InferenceServer) -> None:
    assert server.state is ServerState.READY
    assert server.debug_mode
    assert server.check_health()
    assert server.pid is not None
    assert psutil.Process(server.pid).is_running()
    assert server.log_size > 0


def completion(server: InferenceServer) -> None:
    body = {"prompt": "Hello", "max_tokens": 6, "temperature": 0}
    first, second = (post(server, "/v1/completions", **body).json() for _ in range(2))
    assert first["usage"]["completion_tokens"] == 6
    assert first["choices"][0]["text"] == second["choices"][0]["text"]


def chat(server: InferenceServer) -> None:
    answer = post(server, "/v1/chat/completions", messages=MESSAGES, max_tokens=6, temperature=0).json()
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] <= 6


def stream_of_a_completion(server: InferenceServer) -> None:
    _stream(server, "/v1/completions", prompt="Hello")


def stream_of_a_chat(server: InferenceServer) -> None:
    _stream(server, "/v1/chat/completions", messages=MESSAGES)


def _stream(server: InferenceServer, path: str, **question: Any) -> None:
    body = {"model": server.model, "max_tokens": 6, "stream": True, "temperature": 0, **question}
    with requests.post(server.url_for(path), json=body, stream=True, timeout=300) as response:
        assert response.ok, response.text
        events = [line.removeprefix(b"data: ") for line in response.iter_lines() if line.startswith(b"data: ")]
    choices = [choice for event in events if event != b"[DONE]" for choice in json.loads(event)["choices"]]
    texts = [choice.get("text") or choice.get("delta", {}).get("content") for choice in choices]
    assert "".join(filter(None, texts))
    # transformers ends a stream with the usage.
    last = b"usage" if server.get_backend_name() == "transformers" else b"[DONE]"
    assert last in events[-1]


def what_is_listed_exists(server: InferenceServer) -> None:
    backend = server.get_backend_name()
    endpoints = server.list_endpoints()
    assert REQUIRED[backend] <= set(endpoints)
    assert not NOT_THERE[backend] & set(endpoints)
    documented = requests.get(server.url_for("/openapi.json"), timeout=300).json()["paths"]
    for name, url in endpoints.items():
        # An endpoint of a mounted application, as SGLang's /metrics, is in no OpenAPI document.
        if url.removeprefix(server.server_url) not in documented or name in WITH_GET:
            assert requests.get(url, timeout=300).status_code == 200, name


def models(server: InferenceServer) -> None:
    answer = requests.get(server.url_for("/v1/models"), timeout=300)
    if server.get_backend_name() == "transformers":
        assert answer.status_code == 500
    else:
        assert [model["id"] for model in answer.json()["data"]] == [server.model]


def an_unknown_model(server: InferenceServer) -> None:
    answer = post(server, "/v1/completions", model="no-such-model", prompt="Hello", max_tokens=1)
    assert answer.status_code == UNKNOWN_MODEL[server.get_backend_name()]


def a_prompt_that_is_too_long(server: InferenceServer) -> None:
    answer = post(server, "/v1/completions", prompt="Hello " * 1000, max_tokens=1)
    if server.get_backend_name() == "transformers":
        # It has no limit, and answers.
        assert answer.json()["usage"]["prompt_tokens"] >= 1000
    else:
        assert answer.status_code == 400
        assert "512" in answer.text
    assert server.check_health()


def metrics_count_tokens(server: InferenceServer) -> None:
    name = GENERATED.get(server.get_backend_name())
    if name is None:
        assert "metrics" not in server.list_endpoints()
        return

    def generated() -> float:
        lines = requests.get(server.list_endpoints()["metrics"], timeout=300).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    before = generated()
    assert post(server, "/v1/completions", prompt="Hello", max_tokens=5, temperature=0).ok
    assert generated() >= before + 5


CHECKS: tuple[Callable[[InferenceServer], None], ...] = (
    ready,
    completion,
    chat,
    stream_of_a_completion,
    stream_of_a_chat,
    what_is_listed_exists,
    models,
    an_unknown_model,
    a_prompt_that_is_too_long,
    metrics_count_tokens,
)
