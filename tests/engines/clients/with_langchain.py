"""langchain-openai."""

from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Answer(BaseModel):
    """Whether all is fine."""

    fine: bool


def _model(url, key, model):
    how = {"max_tokens": 64, "temperature": 0, "max_retries": 0, "stream_usage": True}
    return ChatOpenAI(base_url=f"{url}/v1", api_key=key, model=model, **how)


def chat(url, key, model):
    return _model(url, key, model).invoke("What is the capital of France? Answer in one word.").text


def stream(url, key, model):
    chunks = list(_model(url, key, model).stream("What is the capital of France? Answer in one word."))
    assert any(chunk.usage_metadata for chunk in chunks), "no chunk has a usage"
    return "".join(chunk.text for chunk in chunks)


def tools(url, key, model):
    bound = _model(url, key, model).bind_tools([Answer], tool_choice="Answer")
    return bound.invoke("Is all fine?").tool_calls[0]["args"]


def structured(url, key, model):
    return _model(url, key, model).with_structured_output(Answer).invoke("Is all fine?")
