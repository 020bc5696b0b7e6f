"""instructor: objects instead of text."""

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Answer(BaseModel):
    fine: bool


def _ask(url, key, model, mode):
    plain = OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)
    client = instructor.from_openai(plain, mode=mode)
    messages = [{"role": "user", "content": "Is all fine?"}]
    return client, {"model": model, "messages": messages, "max_tokens": 64, "temperature": 0, "max_retries": 0}


def tools(url, key, model):
    client, body = _ask(url, key, model, instructor.Mode.TOOLS)
    return client.chat.completions.create(response_model=Answer, **body)


def structured(url, key, model):
    client, body = _ask(url, key, model, instructor.Mode.JSON_SCHEMA)
    return client.chat.completions.create(response_model=Answer, **body)


def stream(url, key, model):
    client, body = _ask(url, key, model, instructor.Mode.JSON_SCHEMA)
    return list(client.chat.completions.create_partial(response_model=Answer, **body))[-1]
