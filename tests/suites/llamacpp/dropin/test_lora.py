import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    file = tmp_path_factory.mktemp("lora") / "lora.gguf"
    file.write_bytes(subprocess.check_output([sys.executable, "../lora.py"]))
    server = tiny()
    server.lora_files = [str(file)]
    server.start()
    yield server
    server.stop()


def said(server, **body):
    answer = server.make_request("POST", "/completion", {"prompt": "this", "n_predict": 8, "temperature": 0, **body})
    return answer.body["content"]


def test_an_adapter_is_listed_and_scaled(server):
    [listed] = server.make_request("GET", "/lora-adapters").body
    assert (listed["id"], listed["scale"]) == (0, 1.0)
    with_it = said(server)
    assert server.make_request("POST", "/lora-adapters", [{"id": 0, "scale": 0.0}]).status_code == 200
    without = said(server)
    assert with_it != without


def test_a_request_has_its_own_scale(server):
    texts = [said(server, lora=[{"id": 0, "scale": scale}]) for scale in (0.0, 1.0, 0.0)]
    assert texts[0] == texts[2] != texts[1]
