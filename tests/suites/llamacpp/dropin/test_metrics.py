import pytest
import requests


@pytest.fixture(scope="module")
def server(tiny):
    server = tiny()
    server.server_metrics = True
    server.api_key = "a-key-of-mine"
    server.start()
    yield server
    server.stop()


def counters(server):
    headers = {"Authorization": "Bearer a-key-of-mine"}
    answer = requests.get(server.make_url("/metrics"), headers=headers, timeout=10)
    lines = [line.split() for line in answer.text.splitlines() if line.startswith("llamacpp:")]
    return {name: float(value) for name, value in lines}


def test_tokens_are_counted(server):
    before = counters(server)
    headers = {"Authorization": "Bearer a-key-of-mine"}
    answer = server.make_request("POST", "/completion", {"prompt": "this", "n_predict": 8}, headers)
    assert answer.status_code == 200
    after = counters(server)
    name = "llamacpp:tokens_predicted_total"
    assert after[name] - before.get(name, 0) == 8


def test_a_request_without_the_key_is_refused(server):
    assert server.make_request("POST", "/completion", {"prompt": "this"}).status_code == 401
