"""``transformers serve``: pytest conftest_examples/transformers

MODEL=... names another model, TRANSFORMERS_BINARY=... the transformers command, DEVICE=cpu where it runs.
"""

import json

import requests

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def body_for(server, **options):
    return {"model": server.api_model, "messages": MESSAGES, "max_tokens": 8, "temperature": 0, **options}


def test_chat(inference_server):
    url = inference_server.list_endpoints()["chat"]
    answers = [requests.post(url, json=body_for(inference_server), timeout=120).json() for _ in range(2)]
    first, second = (answer["choices"][0]["message"]["content"] for answer in answers)
    assert first == second


def test_stream(inference_server):
    url = inference_server.list_endpoints()["chat"]
    with requests.post(url, json=body_for(inference_server, stream=True), stream=True, timeout=120) as response:
        lines = [line.removeprefix(b"data: ") for line in response.iter_lines() if line.startswith(b"data: {")]
    deltas = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas)


def test_models_are_not_claimed(inference_server):
    """Its /v1/models lists the hub's cache, and fails where there is none."""
    assert "models" not in inference_server.list_endpoints()
