"""One file of tests, several servers: each test runs once on every server that its markers allow."""

import pytest
import requests


def complete(server, prompt, **options):
    body = {"model": server.api_model, "prompt": prompt, "max_tokens": 4, **options}
    return requests.post(server.url_for("/v1/completions"), json=body, timeout=60)


def test_completion(inference_server):
    """Runs on all three servers."""
    assert complete(inference_server, "Hello").status_code == 200


@pytest.mark.infserver("*-context")
def test_context_overflow(inference_server):
    """Runs on the two servers whose names match."""
    answer = complete(inference_server, "word " * 600)
    expected = 400 if inference_server.name == "small-context" else 200
    assert answer.status_code == expected


@pytest.mark.infserver("with-metrics")
def test_metrics(inference_server):
    """Runs on one server."""
    complete(inference_server, "Hello")
    metrics = requests.get(inference_server.list_endpoints()["metrics"], timeout=10).text
    assert "llamacpp:prompt_tokens_total" in metrics


@pytest.mark.backend("llamacpp")
class TestLlamaCpp:
    """A marker on a class or a module counts for all tests in it."""

    def test_tokenize(self, inference_server):
        response = requests.post(inference_server.url_for("/tokenize"), json={"content": "Hello"}, timeout=10)
        assert response.json()["tokens"]


@pytest.mark.backend("vllm", "sglang")
def test_that_needs_another_engine(inference_server):
    """Skipped here: no configured server has one of these backends. --infserver-strict makes that a failure."""
    raise AssertionError("never reached with this configuration")


@pytest.mark.backend(exclude="sglang")
def test_everywhere_but_on_sglang(inference_server):
    assert inference_server.check_health()


def test_one_more_server(inference_server, inference_server_factory):
    """A second server beside the first, stopped at the end of this test."""
    second = inference_server_factory(inference_server.name, env_vars={"OMP_NUM_THREADS": "2"})
    assert second.server_url != inference_server.server_url
    answers = [complete(server, "Hello", temperature=0).json() for server in (inference_server, second)]
    assert answers[0]["choices"][0]["text"] == answers[1]["choices"][0]["text"]
