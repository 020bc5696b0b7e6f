import json

import pytest

SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
pytestmark = pytest.mark.infserver("llama", server_args={"jinja": True})


def test_an_answer_has_its_schema(inference_client):
    messages = [{"role": "user", "content": "Is it?"}]
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    body = {"messages": messages, "response_format": form, "max_tokens": 64}
    answer = inference_client.chat.completions.create(model="m", **body)
    assert isinstance(json.loads(answer.choices[0].message.content)["ok"], bool)
