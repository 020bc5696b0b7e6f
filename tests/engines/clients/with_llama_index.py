"""LlamaIndex' OpenAILike."""

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

HELLO = [ChatMessage(role="user", content="What is the capital of France? Answer in one word.")]


def _model(url, key, model):
    how = {"is_chat_model": True, "is_function_calling_model": True, "max_tokens": 64, "temperature": 0}
    return OpenAILike(model=model, api_base=f"{url}/v1", api_key=key, max_retries=0, timeout=120, **how)


def _weather(city: str) -> str:
    """Return the weather of a city."""
    return f"fine in {city}"


def chat(url, key, model):
    return _model(url, key, model).chat(HELLO).message.content


def stream(url, key, model):
    return list(_model(url, key, model).stream_chat(HELLO))[-1].message.content


def tools(url, key, model):
    tool = FunctionTool.from_defaults(_weather, name="weather")
    llm = _model(url, key, model)
    answer = llm.chat_with_tools([tool], user_msg="What is the weather in Paris?", tool_required=True)
    return llm.get_tool_calls_from_response(answer)[0].tool_kwargs
