"""Run start_server.py first, in another terminal."""

import pytest
import requests


@pytest.mark.backend("llamacpp")
def test_attached_server_keeps_its_backend(inference_server):
    body = {"prompt": "Hello", "max_tokens": 4}
    answer = requests.post(inference_server.list_endpoints()["completions"], json=body, timeout=60)
    assert answer.status_code == 200


def test_it_is_not_ours(inference_server):
    assert inference_server.attached
    assert inference_server.pid is None
