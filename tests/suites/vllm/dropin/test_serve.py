import asyncio
import os

import pytest
import requests

from pytest_infserver.compat_vllm import RemoteOpenAIServer

MODEL = f"{os.environ['ENGINE_MODELS']}/tiny"
ENV = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1",
}


@pytest.fixture(scope="module")
def server():
    args = ["--max-model-len", "512", "--max-num-seqs", "8", "--enforce-eager", "--dtype", "float32"]
    args += ["--served-model-name", "tiny", "--enable-prefix-caching"]
    with RemoteOpenAIServer(MODEL, args, env_dict=ENV) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return server.get_async_client()


def test_models(server):
    assert [one.id for one in server.get_client().models.list().data] == ["tiny"]


def test_concurrent_streams(client):
    async def tokens():
        stream = await client.completions.create(model="tiny", prompt="this", max_tokens=8, temperature=0, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_of_them():
        return await asyncio.gather(tokens(), tokens(), tokens())

    assert len(set(asyncio.run(all_of_them()))) == 1


def test_the_prefix_cache_is_reset(server):
    assert requests.post(server.url_for("reset_prefix_cache"), timeout=30).status_code == 200


def test_requests_are_counted(server):
    server.get_client().completions.create(model="tiny", prompt="this", max_tokens=4)
    text = requests.get(server.url_for("metrics"), timeout=30).text
    [line] = [one for one in text.splitlines() if one.startswith("vllm:generation_tokens_total")]
    assert float(line.split()[-1]) >= 4


def test_it_sleeps_and_wakes(server):
    assert requests.post(server.url_for("sleep?level=1"), timeout=60).ok
    assert requests.get(server.url_for("is_sleeping"), timeout=10).json() == {"is_sleeping": True}
    assert requests.post(server.url_for("wake_up"), timeout=60).ok
    assert server.get_client().completions.create(model="tiny", prompt="this", max_tokens=4).choices
