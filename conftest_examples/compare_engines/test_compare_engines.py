"""The same prompts to every engine, the same answers and token counts: pytest conftest_examples/compare_engines

VLLM_BINARY=..., SGLANG_BINARY=... and TRANSFORMERS_BINARY=... name engines that are not on PATH, MODEL=... a folder
with SmolLM2-135M-Instruct. --infserver-backend vllm --infserver-backend llamacpp keeps two of the four. Answers are
collected test by test, so that no two engines have to run at the same time.
"""

import pytest
import requests

QUESTIONS = {
    "france": "What is the capital of France? Answer in one word.",
    "sum": "What is 2+2? Answer with a number only.",
}


@pytest.fixture(scope="session")
def answers():
    """What the first engine said, by question: (its name, answer, prompt tokens, completion tokens)."""
    return {}


@pytest.mark.parametrize("question", QUESTIONS)
def test_same_answer_on_every_engine(inference_server, answers, question):
    body = {
        "model": inference_server.api_model,
        "messages": [{"role": "user", "content": QUESTIONS[question]}],
        "temperature": 0,
        "max_tokens": 20,
    }
    response = requests.post(inference_server.list_endpoints()["chat"], json=body, timeout=120)
    response.raise_for_status()
    answer = response.json()
    usage = answer["usage"]
    found = answer["choices"][0]["message"]["content"].strip(), usage["prompt_tokens"], usage["completion_tokens"]
    print(f"\n{inference_server.name}: {found}")
    first, expected = answers.setdefault(question, (inference_server.name, found))
    assert found == expected, f"{inference_server.name} and {first} differ"
