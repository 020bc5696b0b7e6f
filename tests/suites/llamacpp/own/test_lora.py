import subprocess
import sys

import pytest
import requests


@pytest.fixture(scope="module")
def server(inference_server_factory, tmp_path_factory):
    file = tmp_path_factory.mktemp("lora") / "lora.gguf"
    file.write_bytes(subprocess.check_output([sys.executable, "../lora.py"]))
    return inference_server_factory("llama", server_args={"lora": str(file)})


def said(post, **body):
    return post("/completion", {"prompt": "this", "n_predict": 8, "temperature": 0, **body})["content"]


def test_an_adapter_is_listed_and_scaled(server, requests_to):
    post = requests_to(server)
    [listed] = requests.get(server.url_for("/lora-adapters"), timeout=10).json()
    assert (listed["id"], listed["scale"]) == (0, 1.0)
    with_it = said(post)
    post("/lora-adapters", [{"id": 0, "scale": 0.0}])
    assert with_it != said(post)


def test_a_request_has_its_own_scale(server, requests_to):
    texts = [said(requests_to(server), lora=[{"id": 0, "scale": scale}]) for scale in (0.0, 1.0, 0.0)]
    assert texts[0] == texts[2] != texts[1]
