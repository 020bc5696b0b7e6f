"""Profiles of a test and of a part of one. Run it with: pytest conftest_examples/profiling"""

import json

import pytest
import requests


def complete(server, tokens):
    body = {"model": server.api_model, "prompt": "Once upon a time", "max_tokens": tokens}
    response = requests.post(server.url_for("/v1/completions"), json=body, timeout=60)
    response.raise_for_status()
    return response.json()


# The trace is named after the test. Its path stands in the summary, in the test's report and in JUnit's XML.
@pytest.mark.infserver_profile
def test_whole(inference_server):
    for _ in range(200):
        assert complete(inference_server, tokens=64)["usage"]["completion_tokens"] == 64


def test_part(inference_server):
    complete(inference_server, tokens=8)  # a warm-up, not in the trace
    with inference_server.profiling("answers") as files:
        for _ in range(200):
            complete(inference_server, tokens=64)
    [trace] = files  # complete by now; https://www.speedscope.app opens it
    frames = {frame["name"] for frame in json.loads(trace.read_text())["shared"]["frames"]}
    assert frames
