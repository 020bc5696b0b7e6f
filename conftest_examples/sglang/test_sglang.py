"""SGLang's own API beside OpenAI's: pytest conftest_examples/sglang

MODEL=... names another model, SGLANG_BINARY=... the sglang command or the Python that has SGLang.
"""

import requests


def test_generate(inference_server):
    body = {"text": "The capital of France is", "sampling_params": {"max_new_tokens": 8, "temperature": 0}}
    answer = requests.post(inference_server.list_endpoints()["generate"], json=body, timeout=120).json()
    assert answer["text"]
    assert answer["meta_info"]["completion_tokens"] == 8


def test_completion(inference_server):
    body = {"model": inference_server.api_model, "prompt": "Hello", "max_tokens": 8, "temperature": 0}
    answer = requests.post(inference_server.list_endpoints()["completions"], json=body, timeout=120).json()
    assert answer["usage"]["completion_tokens"] == 8


def test_the_cache_can_be_flushed(inference_server):
    assert requests.post(inference_server.list_endpoints()["flush_cache"], timeout=60).ok


def test_metrics(inference_server):
    assert "sglang:" in requests.get(inference_server.list_endpoints()["metrics"], timeout=10).text
