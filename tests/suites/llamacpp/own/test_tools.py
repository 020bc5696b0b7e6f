import json

import pytest

CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": CITY}}]
QUESTION = {"role": "user", "content": "What is the weather in Paris?"}
# The tiny model begins its calls by itself only with a bias to how they begin.
CALL = {"tool_choice": "required", "parallel_tool_calls": False, "logit_bias": {"{": 100}, "max_tokens": 64}
pytestmark = pytest.mark.infserver("llama", server_args={"jinja": True, "chat-template-file": "../tools.jinja"})


@pytest.fixture
def chat(inference_client):
    def ask(*messages, **more):
        return inference_client.chat.completions.create(model="m", messages=messages, tools=TOOLS, **more)

    return ask


def test_a_call_and_its_result(chat):
    message = chat(QUESTION, **CALL).choices[0].message
    [call] = message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    result = {"role": "tool", "tool_call_id": call.id, "content": "17 degrees"}
    assert chat(QUESTION, message, result, tool_choice="none", max_tokens=8).choices[0].message.content


def test_a_call_in_pieces(chat):
    deltas = [chunk.choices[0].delta for chunk in chat(QUESTION, **CALL, stream=True)]
    pieces = [piece.function for delta in deltas for piece in delta.tool_calls or ()]
    assert "".join(piece.name or "" for piece in pieces) == "get_weather"
    assert json.loads("".join(piece.arguments for piece in pieces))["city"] in ("Paris", "Rome")
