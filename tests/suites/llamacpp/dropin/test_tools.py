import json

import pytest

CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": CITY}}]
QUESTION = {"role": "user", "content": "What is the weather in Paris?"}
# The tiny model begins its calls by itself only with a bias to how they begin.
CALL = {"tool_choice": "required", "parallel_tool_calls": False, "logit_bias": {"{": 100}, "max_tokens": 64}


@pytest.fixture(scope="module")
def server(tiny):
    server = tiny()
    server.jinja = True
    server.chat_template_file = "../tools.jinja"
    server.start()
    yield server
    server.stop()


@pytest.fixture
def chat(server):
    def ask(*messages, **more):
        body = {"messages": messages, "tools": TOOLS, **more}
        return server.make_any_request("POST", "/v1/chat/completions", body)["choices"][0]["message"]

    return ask


def test_a_call_and_its_result(chat):
    message = chat(QUESTION, **CALL)
    [call] = message["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")
    result = {"role": "tool", "tool_call_id": call["id"], "content": "17 degrees"}
    assert chat(QUESTION, message, result, tool_choice="none", max_tokens=8)["content"]


def test_a_call_in_pieces(chat):
    [call] = chat(QUESTION, **CALL, stream=True)["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")
