import json

import pytest

SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


@pytest.fixture(scope="module")
def server(tiny):
    server = tiny()
    server.jinja = True
    server.start()
    yield server
    server.stop()


def test_an_answer_has_its_schema(server):
    messages = [{"role": "user", "content": "Is it?"}]
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    body = {"messages": messages, "response_format": form, "max_tokens": 64}
    answer = server.make_any_request("POST", "/v1/chat/completions", body)
    assert isinstance(json.loads(answer["choices"][0]["message"]["content"])["ok"], bool)
