"""Servers on a Ray cluster. Run it with: pytest conftest_examples/cluster --infserver-cluster local

On a real cluster: --infserver-cluster auto, on one of its nodes. Without the option all of it runs on this machine.
"""

import pytest
import requests


def complete(server, prompt, key):
    """Ask a server directly: the tests talk HTTP to the node that it runs on, and nothing is in between."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return requests.post(
        server.url_for("/v1/completions"), json={"prompt": prompt, "max_tokens": 4}, headers=headers, timeout=60
    )


@pytest.fixture
def on_cluster(inference_server):
    """The node's name and address."""
    if inference_server.node is None:
        pytest.skip("needs --infserver-cluster")
    return inference_server.node


def test_completion(inference_server, inference_client):
    """The same as on one machine: the client brings the API key along."""
    answer = inference_client.completions.create(model=inference_server.api_model, prompt="Hello", max_tokens=4)
    assert answer.usage.completion_tokens == 4


def test_context_overflow(inference_server):
    answer = complete(inference_server, "word " * 600, inference_server.api_key)
    assert answer.status_code == (400 if inference_server.name == "small-context" else 200)


def test_without_the_key_nobody_is_served(inference_server, on_cluster):
    """On a cluster others can reach the server; it has got a key that only this run knows."""
    if inference_server.api_key is None:
        pytest.skip("--infserver-cluster local: nobody else reaches it")
    assert complete(inference_server, "Hello", None).status_code == 401
    assert complete(inference_server, "Hello", "a guess").status_code == 401


def test_where_it_runs(inference_server, on_cluster):
    print(f"{inference_server.name} runs on {on_cluster}: {inference_server.server_url}")
    assert inference_server.host in on_cluster


def test_its_log_is_here(inference_server):
    """It is brought while the server writes it, and shown when a test fails."""
    assert inference_server.log_path.exists()
    assert "listening" in inference_server.read_log()


@pytest.mark.infserver(exclusive=True)
def test_a_server_that_was_killed_comes_back(inference_server):
    """Its process may be on another machine, where os.kill() does not reach."""
    inference_server.kill()
    assert inference_server.wait_death(30)
    inference_server.start()
    # On the same node, though the port may be another one: build URLs when they are needed.
    assert complete(inference_server, "Hello", inference_server.api_key).status_code == 200


@pytest.mark.infserver_needs("small-context", "large-context")
def test_both_at_once(inference_servers):
    """Both together, on one node or on two."""
    prompt = "Once upon a time"
    texts = [complete(one, prompt, one.api_key).json()["choices"][0]["text"] for one in inference_servers.values()]
    assert len(texts) == 2
