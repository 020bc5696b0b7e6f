"""Servers that need others: a test that takes the router has its workers, too."""

import pytest
import requests


def complete(server):
    body = {"model": "tiny", "prompt": "Hello", "max_tokens": 4, "temperature": 0}
    answer = requests.post(server.url_for("/v1/completions"), json=body, timeout=60)
    answer.raise_for_status()
    return answer


@pytest.mark.infserver("router")
def test_both_workers_answer(inference_server):
    answers = [complete(inference_server) for _ in range(4)]
    assert len({answer.headers["X-Worker"] for answer in answers}) == 2
    # The same model with the same weights.
    assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1


@pytest.mark.infserver_needs("router", "left", "right")
def test_the_router_says_what_its_workers_say(inference_servers):
    texts = {name: complete(server).json()["choices"][0]["text"] for name, server in inference_servers.items()}
    assert len(set(texts.values())) == 1
    workers = {inference_servers[name].server_url for name in ("left", "right")}
    assert complete(inference_servers["router"]).headers["X-Worker"] in workers
