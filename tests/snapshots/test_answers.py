"""Which two answers count as the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_infserver.snapshots.answers import Comparison, plain_answer


def chat(text: str = "Paris", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}, **more}
    return {
        "id": "x1",
        "created": 17,
        "object": "chat.completion",
        "model": "m",
        "choices": [choice],
        "usage": {"n": 1},
    }


def differences(now: Any, stored: Any, **settings: Any) -> list[str]:
    return Comparison(**settings).differences(plain_answer(now), plain_answer(stored))


def test_what_each_request_has_anew_does_not_count() -> None:
    other = {**chat(), "id": "x2", "created": 18, "system_fingerprint": "fp", "usage": {"n": 9}, "new_field": None}
    assert differences(other, chat()) == []
    assert differences(other, chat(), ignore=()) == ["usage.n: 9, stored 1"]
    assert differences(chat(), {**chat(), "model": "n"}, ignore=("model",)) == ["usage.n"][:0]


def test_a_text_is_compared_exactly() -> None:
    [line] = differences(chat("Paris."), chat())
    assert line == 'choices[0].message.content: "Paris.", stored "Paris"'
    assert differences(chat(), {**chat(), "choices": []}) != []
    assert differences({**chat(), "extra": 1}, chat()) == ["extra: 1, not stored"]
    assert differences(chat(), {**chat(), "extra": 1}) == ["extra: missing, stored 1"]
    # True is no 1.
    assert differences({"n": 1}, {"n": True}) == ["n: 1, stored true"]


def logprobs(*values: float) -> dict[str, Any]:
    content = [{"token": f"t{i}", "logprob": value, "top_logprobs": []} for i, value in enumerate(values)]
    return chat(logprobs={"content": content})


@pytest.mark.parametrize(
    ("now", "stored", "rtol", "same"),
    [
        ((-1.0, -2.0), (-1.15, -2.3), 0.2, True),
        ((-1.0, -2.0), (-1.0, -2.6), 0.2, False),
        ((-1.0, -2.0), (-1.0, -2.6), 0.3, True),
        # Of a sure token the share is of no meaning.
        ((-0.0001,), (-0.01,), 0.2, True),
        ((-1.0,), (-1.0001,), 0.0, False),
        ((-1.0,), (-1.0, -2.0), 0.2, False),
    ],
)
def test_log_probabilities_have_a_tolerance(
    now: tuple[float, ...], stored: tuple[float, ...], rtol: float, same: bool
) -> None:
    assert (differences(logprobs(*now), logprobs(*stored), rtol=rtol) == []) is same


@pytest.mark.parametrize("of_chat", [True, False])
def test_the_last_of_the_likeliest_tokens_may_change_places(of_chat: bool) -> None:
    def answer(**tops: float) -> dict[str, Any]:
        if of_chat:
            entries = [{"token": name, "logprob": value} for name, value in tops.items()]
            return chat(logprobs={"content": [{"token": "a", "logprob": -0.1, "top_logprobs": entries}]})
        return {"choices": [{"text": "a", "logprobs": {"tokens": ["a"], "top_logprobs": [tops]}}]}

    assert differences(answer(a=-0.1, c=-3.1), answer(a=-0.1, b=-3.0)) == []
    [line] = differences(answer(a=-1.9), answer(a=-0.1, b=-3.0))
    assert line.endswith("a: -1.9, stored -0.1")
    assert len(differences(answer(x=-0.1), answer(a=-0.1))) == 1


def test_token_ids_are_compared_as_far_as_both_go() -> None:
    assert differences({"token_ids": [1, 2, 3]}, {"token_ids": [1, 2]}) == []
    assert differences({"token_ids": [1]}, {"token_ids": [1, 2]}) == []
    assert differences({"token_ids": [1, 9]}, {"token_ids": [1, 2]}) == ["token_ids[1]: 9, stored 2"]
    # What is not called so is a list like another.
    assert differences({"steps": [1, 2, 3]}, {"steps": [1, 2]}) == ["steps: 3 of them, stored 2"]


def chunk(part: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [{"index": 0, **part}], **more}


def test_a_stream_is_like_the_whole_answer() -> None:
    def lp(token: str) -> dict[str, Any]:
        return {"content": [{"token": token, "logprob": -1.0, "top_logprobs": []}]}

    whole = chat("Paris", logprobs={"content": [*lp("Pa")["content"], *lp("ris")["content"]]})
    pieces = [
        chunk({"delta": {"role": "assistant", "content": ""}, "finish_reason": None}),
        chunk({"delta": {"content": "Pa"}, "logprobs": lp("Pa")}),
        chunk({"delta": {"content": "ris"}, "logprobs": lp("ris")}),
        chunk({"delta": {}, "finish_reason": "stop"}),
        {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [], "usage": {"n": 1}},
    ]
    assert differences(pieces, whole, ignore=()) == []
    assert differences(iter(pieces), whole) == []
    pieces[1]["choices"][0]["delta"]["content"] = "Po"
    assert differences(pieces, whole) == ['choices[0].message.content: "Poris", stored "Paris"']


def test_a_stream_of_a_completion_is_like_the_whole_one() -> None:
    def part(text: str) -> dict[str, Any]:
        return {"text": text, "token_ids": [len(text)], "logprobs": {"tokens": [text], "token_logprobs": [-1.0]}}

    whole = {
        "object": "text_completion",
        "choices": [
            {
                "index": 0,
                "text": "a bc",
                "finish_reason": "length",
                "token_ids": [2, 2],
                "logprobs": {"tokens": ["a ", "bc"], "token_logprobs": [-1.1, -0.9]},
            }
        ],
    }
    pieces = [{"object": "text_completion", "choices": [{"index": 0, **part(text)}]} for text in ("a ", "bc")]
    pieces.append({"object": "text_completion", "choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
    assert differences(pieces, whole) == []


def test_ids_of_tool_calls_are_not_kept() -> None:
    def answer(name: str) -> dict[str, Any]:
        call = {"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}}
        return {"choices": [{"message": {"tool_calls": [call]}}]}

    assert plain_answer(answer("call-1")) == plain_answer(answer("call-2"))


def test_answers_of_clients() -> None:
    class Answer:
        headers = {"content-type": "application/json"}  # noqa: RUF012
        text = ""

        def json(self) -> Any:
            return chat()

    class Stream(Answer):
        headers = {"content-type": "text/event-stream; charset=utf-8"}  # noqa: RUF012
        text = (
            "".join(f"data: {json.dumps(one)}\n\n" for one in [chunk({"delta": {"content": "Paris"}})])
            + "data: [DONE]\n"
        )

    class Model:
        def model_dump(self, mode: str) -> Any:
            return chat() if mode == "json" else None

    assert differences(Answer(), chat()) == differences(Model(), chat()) == []
    assert plain_answer(Stream())["choices"][0]["message"]["content"] == "Paris"
    with pytest.raises(TypeError, match="await it before"):
        plain_answer(object())
