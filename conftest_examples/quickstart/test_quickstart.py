"""A real model on a real llama.cpp server. Run it with: pytest conftest_examples/quickstart"""

import json

import requests


def ask(server, question, **options):
    body = {"model": server.api_model, "messages": [{"role": "user", "content": question}], "temperature": 0, **options}
    response = requests.post(server.url_for("/v1/chat/completions"), json=body, timeout=60)
    response.raise_for_status()
    return response.json()["choices"][0]["message"]["content"]


def test_true_answer(inference_server, capsys):
    answer = ask(inference_server, "What is the capital of France? Answer in one word.", max_tokens=20)
    with capsys.disabled():
        print(f"\nThe model says: {answer}")
    assert "Paris" in answer


def test_chat_with_history(inference_server):
    messages = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "And of Italy?"},
    ]
    body = {"model": inference_server.api_model, "messages": messages, "temperature": 0, "max_tokens": 20}
    response = requests.post(inference_server.url_for("/v1/chat/completions"), json=body, timeout=60).json()
    assert "Rome" in response["choices"][0]["message"]["content"]
    assert response["usage"]["completion_tokens"] <= 20


def test_stream(inference_server):
    body = {"model": inference_server.api_model, "prompt": "Once upon a time", "max_tokens": 16, "stream": True}
    url = inference_server.url_for("/v1/completions")
    with requests.post(url, json=body, stream=True, timeout=60) as response:
        events = [line.removeprefix(b"data: ") for line in response.iter_lines() if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]"
    text = "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])
    assert len(events) > 5
    assert text.strip()


def test_json_schema(inference_server):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "population": {"type": "integer"}},
        "required": ["city", "population"],
    }
    answer = json.loads(
        ask(
            inference_server,
            "Name a city and its population.",
            max_tokens=60,
            response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
        )
    )
    assert set(answer) == {"city", "population"}
    assert isinstance(answer["city"], str)
    assert isinstance(answer["population"], int)


def test_same_answer_twice_at_temperature_zero(inference_server):
    question = "What is 2+2? Answer with a number only."
    first = ask(inference_server, question, max_tokens=10)
    assert "4" in first
    assert ask(inference_server, question, max_tokens=10) == first


def test_what_is_listed_exists(inference_server):
    endpoints = inference_server.list_endpoints()
    assert {"health", "models", "chat", "completions"} <= set(endpoints)
    assert requests.get(endpoints["health"], timeout=10).status_code == 200
    assert requests.get(endpoints["models"], timeout=10).json()["data"][0]["id"] == inference_server.api_model
