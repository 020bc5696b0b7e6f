import asyncio

import pytest

pytestmark = pytest.mark.infserver("llama", server_args={"ctx-size": 1024, "parallel": 2})


def test_arguments(inference_server, inference_session):
    props = inference_session.get(inference_server.url_for("/props")).json()
    assert props["total_slots"] == 2
    assert props["default_generation_settings"]["n_ctx"] == 512


def test_concurrent_streams(inference_server, inference_async_client):
    async def tokens():
        body = {"model": inference_server.api_model, "prompt": "this", "max_tokens": 8, "temperature": 0}
        stream = await inference_async_client.completions.create(**body, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_of_them():
        return await asyncio.gather(tokens(), tokens(), tokens())

    texts = asyncio.run(all_of_them())
    assert len(set(texts)) == 1
    assert texts[0].split()
