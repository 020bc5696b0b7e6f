"""openai, its asynchronous client."""

import asyncio

from openai import AsyncOpenAI

HELLO = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


def _create(url, key, model, **extra):
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)
    return client.chat.completions.create(model=model, messages=HELLO, max_tokens=16, temperature=0, **extra)


async def chat(url, key, model):
    return (await _create(url, key, model)).choices[0].message.content


async def stream(url, key, model):
    chunks = [chunk async for chunk in await _create(url, key, model, stream=True)]
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def several_at_once(url, key, model):
    answers = await asyncio.gather(*(_create(url, key, model) for _ in range(4)))
    assert len({answer.id for answer in answers}) == 4
    return answers[0].choices[0].message.content
