import pytest
import requests

pytestmark = pytest.mark.infserver("llama", server_args={"metrics": True}, api_key="a-key-of-mine")


def counters(server, session):
    text = session.get(server.url_for("/metrics")).text
    lines = [line.split() for line in text.splitlines() if line.startswith("llamacpp:")]
    return {name: float(value) for name, value in lines}


def test_tokens_are_counted(inference_server, inference_session):
    before = counters(inference_server, inference_session)
    body = {"prompt": "this", "n_predict": 8}
    assert inference_session.post(inference_server.url_for("/completion"), json=body).ok
    after = counters(inference_server, inference_session)
    name = "llamacpp:tokens_predicted_total"
    assert after[name] - before.get(name, 0) == 8


def test_a_request_without_the_key_is_refused(inference_server):
    answer = requests.post(inference_server.url_for("/completion"), json={"prompt": "this"}, timeout=10)
    assert answer.status_code == 401
