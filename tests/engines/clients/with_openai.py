"""openai, its synchronous client."""

import json

from openai import OpenAI
from pydantic import BaseModel

HELLO = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
TOOL = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris"]}}, "required": ["city"]}


class Answer(BaseModel):
    fine: bool


def _chats(url, key):
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120).chat.completions


def chat(url, key, model):
    return _chats(url, key).create(model=model, messages=HELLO, max_tokens=16, temperature=0).choices[0].message.content


def stream(url, key, model):
    with _chats(url, key).stream(model=model, messages=HELLO, max_tokens=16, temperature=0) as events:
        events.until_done()
        return events.get_final_completion().choices[0].message.content


def tools(url, key, model):
    function = {"name": "weather", "description": "The weather of a city.", "parameters": TOOL}
    answer = _chats(url, key).create(
        model=model,
        messages=HELLO,
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        max_tokens=64,
        temperature=0,
    )
    return json.loads(answer.choices[0].message.tool_calls[0].function.arguments)["city"]


def structured(url, key, model):
    return (
        _chats(url, key)
        .parse(model=model, messages=HELLO, response_format=Answer, max_tokens=64)
        .choices[0]
        .message.parsed
    )


def responses(url, key, model):
    client = OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)
    return client.responses.create(model=model, input="Say hello.", max_output_tokens=16).output_text
