import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from conftest import free_port

PROXY = Path(__file__).parent.parent / "proxy.py"


@pytest.fixture(scope="module")
def servers(tiny):
    servers = [tiny(), tiny()]
    for number, server in enumerate(servers):
        server.model_alias = f"tiny-{number}"
        server.start()
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def proxy_url(servers):
    port = free_port()
    command = [sys.executable, str(PROXY), str(port), *(server.make_url("") for server in servers)]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                requests.get(f"{url}/health", timeout=5)
                break
            except requests.ConnectionError:
                assert process.poll() is None
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def test_both_servers_answer_in_turn(proxy_url, servers):
    answers = [requests.get(f"{proxy_url}/v1/models", timeout=10) for _ in range(4)]
    assert {answer.headers["X-Server"] for answer in answers} == {server.make_url("") for server in servers}
    assert {answer.json()["data"][0]["id"] for answer in answers} == {"tiny-0", "tiny-1"}
