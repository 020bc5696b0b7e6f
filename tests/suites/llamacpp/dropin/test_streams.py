import asyncio

import openai
import pytest


@pytest.fixture(scope="module")
def server(tiny):
    server = tiny()
    server.n_ctx = 1024
    server.n_slots = 2
    server.start()
    yield server
    server.stop()


def test_arguments(server):
    props = server.make_request("GET", "/props").body
    assert props["total_slots"] == 2
    assert props["default_generation_settings"]["n_ctx"] == 512


def test_concurrent_streams(server):
    client = openai.AsyncOpenAI(base_url=server.make_url("/v1"), api_key="none", max_retries=0)

    async def tokens():
        stream = await client.completions.create(model="tiny", prompt="this", max_tokens=8, temperature=0, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_of_them():
        return await asyncio.gather(tokens(), tokens(), tokens())

    texts = asyncio.run(all_of_them())
    assert len(set(texts)) == 1
    assert texts[0].split()
