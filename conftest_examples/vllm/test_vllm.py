"""vLLM on two GPUs and on one: pytest conftest_examples/vllm

With one GPU: --infserver-server one-gpu. MODEL=... names another model, DTYPE=... another type of its weights,
VLLM_BINARY=... the vllm command.
"""

import psutil
import pytest
import requests


def complete(server, prompt, **options):
    body = {"model": server.api_model, "prompt": prompt, "max_tokens": 8, "temperature": 0, **options}
    response = requests.post(server.list_endpoints()["completions"], json=body, timeout=120)
    response.raise_for_status()
    return response.json()


@pytest.mark.infserver("tensor-parallel")
def test_one_worker_for_each_gpu(inference_server):
    processes = psutil.Process(inference_server.pid).children(recursive=True)
    workers = [name for name in (" ".join(one.cmdline()) for one in processes) if "Worker_TP" in name]
    assert len(workers) == 2


def test_completion(inference_server):
    assert complete(inference_server, "The capital of France is")["usage"]["completion_tokens"] == 8


def test_metrics(inference_server):
    complete(inference_server, "Hello")
    metrics = requests.get(inference_server.list_endpoints()["metrics"], timeout=10).text
    assert "vllm:generation_tokens_total" in metrics


def test_context_overflow(inference_server):
    with pytest.raises(requests.HTTPError, match="400"):
        complete(inference_server, "word " * 1000)
