"""A server that is described by servers.yaml alone."""

import requests


def test_echo(inference_server):
    answer = requests.post(inference_server.list_endpoints()["api"], data="hello", timeout=10)
    assert answer.text == "hello"


def test_backend_name(inference_server):
    assert inference_server.get_backend_name() == "command"
    assert inference_server.name == "echo"
