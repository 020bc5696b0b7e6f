"""Servers of a backend that the plugin does not know by itself."""

import pytest
import requests


def post(server, text):
    return requests.post(server.list_endpoints()["api"], data=text, timeout=10).text


@pytest.mark.backend("mybackend")
def test_echo(inference_server):
    assert post(inference_server, "hello") == "hello"


@pytest.mark.backend("shouting")
def test_shout(inference_server):
    assert post(inference_server, "hello") == "HELLO"


def test_log(inference_server):
    assert "serving echo-1" in inference_server.read_log()
