"""anthropic, where Messages is offered."""

from anthropic import Anthropic

HELLO = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
TOOL = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris"]}}, "required": ["city"]}


def _messages(url, key):
    # As people do it whose server wants the key as OpenAI's clients send it.
    return Anthropic(base_url=url, auth_token=key, api_key=None, max_retries=0, timeout=120).messages


def chat(url, key, model):
    return _messages(url, key).create(model=model, messages=HELLO, max_tokens=16).content[0].text


def stream(url, key, model):
    with _messages(url, key).stream(model=model, messages=HELLO, max_tokens=16) as events:
        return "".join(events.text_stream)


def tools(url, key, model):
    tool = {"name": "weather", "description": "The weather of a city.", "input_schema": TOOL}
    choice = {"type": "tool", "name": "weather"}
    asked = {"model": model, "messages": HELLO, "max_tokens": 64, "extra_body": {"temperature": 0}}
    answer = _messages(url, key).create(**asked, tools=[tool], tool_choice=choice)
    return next(block for block in answer.content if block.type == "tool_use").input["city"]


def count_tokens(url, key, model):
    return _messages(url, key).count_tokens(model=model, messages=HELLO).input_tokens
