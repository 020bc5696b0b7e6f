"""Answers that come piece by piece."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from pytest_infserver.conformance.asking.ask import COMPLETIONS, Ask
from pytest_infserver.conformance.asking.shapes import (
    choice,
    content,
    deltas,
    finish_reasons,
    shown,
    streamed_text,
    text,
    usage,
)
from pytest_infserver.conformance.asking.target import CHAT, NotAsked, Unclear

COUNTED: dict[str, Any] = {"stream_options": {"include_usage": True}}
_CUT_OFF = 8
"""More streams than servers with few slots answer at the same time."""
_LONG = 200
_STORY = "Tell me a long story."


def test_framing(ask: Ask) -> None:
    """A stream has the content type `text/event-stream`, and each event but the last is a JSON object `...chunk`.

    Source: OpenAI API reference, streaming: server-sent events; the standard of these says how they are framed.
    """
    for chunk in ask.chat_chunks():
        kind = chunk.get("object")
        assert kind == "chat.completion.chunk", f"'object' is {kind!r} in {shown(chunk)}"


def test_done(ask: Ask) -> None:
    """The last event of a stream is `[DONE]`, and there is one of it.

    Source: OpenAI API reference, `stream`: "terminated by a data: [DONE] message".
    """
    events = [event.data for event in ask.events(CHAT, ask.chat_body())]
    assert events[-1] == "[DONE]", f"the last event is {events[-1][:200]}"
    assert events.count("[DONE]") == 1, f"{events.count('[DONE]')} events are [DONE]"


def test_one_role(ask: Ask) -> None:
    """The role is said once, in the first delta, and is `assistant`.

    Source: OpenAI API reference, the chat completion chunk object, and what openai's clients accumulate.
    """
    roles = [delta.get("role") for delta in deltas(ask.chat_chunks())]
    assert roles, "no chunk has a delta"
    assert roles[0] == "assistant", f"the first delta's role is {roles[0]!r}"
    assert not any(roles[1:]), f"the role is said {sum(map(bool, roles))} times"


def test_finish_reason(ask: Ask) -> None:
    """One chunk has a finish reason, and nothing is said after it.

    Source: OpenAI API reference, the chat completion chunk object: `finish_reason`.
    """
    chunks = [chunk for chunk in ask.chat_chunks() if chunk.get("choices")]
    reasons = finish_reasons(chunks)
    assert len(reasons) == 1, f"the finish reasons are {reasons}"
    assert reasons[0] in ("stop", "length"), f"the finish reason is {reasons[0]!r}"
    assert choice(chunks[-1]).get("finish_reason"), f"after the finish reason comes {shown(chunks[-1])}"


def test_same_text(ask: Ask) -> None:
    """The deltas of a chat make the text that the same request has without `stream`, at temperature 0.

    Source: OpenAI API reference, `stream`: the answer is the same, sent as it is generated.
    """
    whole = content(ask.chat(max_tokens=16))
    streamed = streamed_text(ask.chat_chunks(max_tokens=16))
    assert streamed == whole, f"streamed {streamed!r}, whole {whole!r}"


def test_completion(ask: Ask) -> None:
    """The pieces of a streamed completion make the text that it has without `stream`, and end with `[DONE]`.

    Source: OpenAI API reference, Create completion: `stream`.
    """
    whole = text(ask.complete())
    events = ask.events(COMPLETIONS, {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0})
    pieces = [one for event in events if event.data != "[DONE]" for one in event.json().get("choices") or ()]
    streamed = "".join(one.get("text") or "" for one in pieces)
    assert streamed == whole, f"streamed {streamed!r}, whole {whole!r}"
    assert events[-1].data == "[DONE]", f"the last event is {events[-1].data[:200]}"


def test_usage_chunk(ask: Ask) -> None:
    """With `stream_options` `include_usage` the last chunk has `usage` and no choices.

    Source: OpenAI API reference, `stream_options`: "an additional chunk will be streamed before the data: [DONE]".
    """
    chunks = ask.chat_chunks(**COUNTED)
    found = usage(chunks[-1])
    assert chunks[-1].get("choices") == [], (
        f"'choices' of the chunk with the usage is no empty list: {shown(chunks[-1])}"
    )
    total = found["prompt_tokens"] + found["completion_tokens"]
    assert found["total_tokens"] == total, f"the total is not the sum of both: {shown(found)}"
    assert found["completion_tokens"] >= 1, f"no token was counted: {shown(found)}"


@pytest.mark.conformance_full
def test_same_usage(ask: Ask) -> None:
    """A streamed answer counts the same tokens as the same answer without `stream`, at temperature 0.

    Source: OpenAI API reference, `stream_options`: "the token usage statistics for the entire request".
    """
    whole, streamed = usage(ask.chat()), usage(ask.chat_chunks(**COUNTED)[-1])
    for name in ("prompt_tokens", "completion_tokens"):
        assert streamed[name] == whole[name], f"{name}: streamed {streamed[name]}, whole {whole[name]}"


@pytest.mark.conformance_full
def test_no_usage_unless_asked(ask: Ask) -> None:
    """Without `stream_options` no chunk has a `usage`, and each has a choice.

    Source: OpenAI API reference, `stream_options`: only then there is a chunk with an empty list of choices.
    """
    for chunk in ask.chat_chunks():
        assert not chunk.get("usage"), f"a chunk has a 'usage': {shown(chunk)}"
        assert chunk.get("choices"), f"a chunk has no choice: {shown(chunk)}"


@pytest.mark.conformance_full
def test_one_id(ask: Ask) -> None:
    """All chunks of a stream have the same `id`, `created` and `model`.

    Source: OpenAI API reference, the chat completion chunk object: "each chunk has the same ID", "the same timestamp".
    """
    chunks = ask.chat_chunks(**COUNTED)
    for name in ("id", "created", "model"):
        values = {chunk.get(name) for chunk in chunks}
        assert len(values) == 1, f"{name!r} has the values {sorted(map(repr, values))}"
        assert values != {None}, f"the chunks have no {name!r}"


@pytest.mark.conformance_full
def test_letters_are_whole(ask: Ask) -> None:
    """No delta has a part of a letter: what the whole answer has no replacement character for has none streamed.

    Source: JSON is Unicode, and clients show deltas as they come.
    """
    body: dict[str, Any] = ask.chat_body("Repeat: 👋🏽 你好 Grüße 👋🏽 你好", max_tokens=24)
    whole = content(ask.chat(body["messages"], max_tokens=24))
    streamed = streamed_text(ask.chunks(CHAT, body))
    assert streamed.count("\ufffd") <= whole.count("\ufffd"), f"streamed {streamed!r}, whole {whole!r}"


@pytest.mark.conformance_full
def test_cancelling_frees_the_slot(ask: Ask) -> None:
    """Streams that their clients close keep nobody waiting: the next one begins before one could have ended.

    Source: every client closes the connection when its user cancels.
    """
    whole, long = _timed(lambda: ask.chat(_STORY, max_tokens=_LONG))
    short = min(_timed(lambda: ask.chat(max_tokens=1))[0] for _ in range(3))
    if choice(long).get("finish_reason") != "length":
        raise Unclear(f"the model came to its end before {_LONG} tokens: {shown(long)}")
    if whole < _CUT_OFF * short:
        raise Unclear(f"{_LONG} tokens take {whole:.3f} s, one takes {short:.3f} s: too little to tell")
    wait = _longest_wait(ask)
    if wait >= whole / 2:
        # Something else may have kept the machine busy.
        wait = _longest_wait(ask)
    assert wait < whole / 2, (
        f"one of {_CUT_OFF} streams that were closed, or the answer after them, had to wait for {wait:.1f} s; "
        f"a whole answer of {_LONG} tokens takes {whole:.1f} s"
    )


def _longest_wait(ask: Ask) -> float:
    """Return how long it took until one of the streams began, or the answer after them was there."""

    def cut() -> None:
        with ask.cut_off(CHAT, ask.chat_body(_STORY, max_tokens=_LONG)) as stream:
            assert stream.status == 200, f"a stream was answered with {stream.answer().short}"
            next(stream.pieces(), b"")

    try:
        return max(_timed(one)[0] for one in [*[cut] * _CUT_OFF, lambda: content(ask.chat())])
    except NotAsked as error:
        raise AssertionError(f"after streams that were closed: {error}") from None


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long a call takes, and what it returns."""
    begin = time.monotonic()
    result = call()
    return time.monotonic() - begin, result
