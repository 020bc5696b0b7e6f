"""litellm, which calls such a server `hosted_vllm`, or as here `openai`."""

import json

import litellm

HELLO = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
TOOL = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris"]}}, "required": ["city"]}


def _complete(url, key, model, **extra):
    where = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": key, "num_retries": 0, "timeout": 120}
    return litellm.completion(**where, messages=HELLO, max_tokens=64, temperature=0, **extra)


def chat(url, key, model):
    return _complete(url, key, model).choices[0].message.content


def stream(url, key, model):
    chunks = list(_complete(url, key, model, stream=True))
    return litellm.stream_chunk_builder(chunks).choices[0].message.content


def tools(url, key, model):
    tool = {"type": "function", "function": {"name": "weather", "parameters": TOOL}}
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = _complete(url, key, model, tools=[tool], tool_choice=choice)
    return json.loads(answer.choices[0].message.tool_calls[0].function.arguments)["city"]
