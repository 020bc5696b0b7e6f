import asyncio

import pytest

pytestmark = pytest.mark.infserver(server_args={"served-model-name": "tiny", "enable-prefix-caching": True})


def test_models(inference_client):
    assert [one.id for one in inference_client.models.list().data] == ["tiny"]


def test_concurrent_streams(inference_async_client):
    async def tokens():
        body = {"model": "tiny", "prompt": "this", "max_tokens": 8, "temperature": 0}
        stream = await inference_async_client.completions.create(**body, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_of_them():
        return await asyncio.gather(tokens(), tokens(), tokens())

    assert len(set(asyncio.run(all_of_them()))) == 1


def test_the_prefix_cache_is_reset(inference_server, inference_session):
    assert inference_session.post(inference_server.url_for("reset_prefix_cache")).status_code == 200


def test_requests_are_counted(inference_server, inference_client, inference_session):
    inference_client.completions.create(model="tiny", prompt="this", max_tokens=4)
    text = inference_session.get(inference_server.url_for("metrics")).text
    [line] = [one for one in text.splitlines() if one.startswith("vllm:generation_tokens_total")]
    assert float(line.split()[-1]) >= 4


@pytest.mark.infserver(exclusive=True)
def test_it_sleeps_and_wakes(inference_server, inference_client):
    inference_server.sleep()
    assert not inference_server.awake
    inference_server.wake()
    assert inference_client.completions.create(model="tiny", prompt="this", max_tokens=4).choices
