"""Where an answer ends."""

from __future__ import annotations

import pytest

from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.shapes import choice, content, shown, streamed_text, text, usage
from pytest_infserver.conformance.asking.target import CHAT, Unclear

_PROMPT = "Count: one, two, three, four,"


def test_max_tokens(ask: Ask) -> None:
    """`max_tokens` bounds the tokens of an answer; one that it ends has the finish reason `length`.

    Source: OpenAI API reference, Create chat completion: `max_tokens`, and `finish_reason`.
    """
    answer = ask.chat("Tell me a long story.", max_tokens=5)
    count, reason = usage(answer)["completion_tokens"], choice(answer).get("finish_reason")
    assert count <= 5, f"{count} tokens for max_tokens 5"
    assert reason == ("length" if count == 5 else "stop"), f"{count} tokens have the finish reason {reason!r}"


def test_max_completion_tokens(ask: Ask) -> None:
    """`max_completion_tokens` bounds the tokens of an answer as `max_tokens` does.

    Source: OpenAI API reference, Create chat completion: `max_completion_tokens`, which replaces `max_tokens`.
    """
    answer = ask.chat("Tell me a long story.", max_tokens=None, max_completion_tokens=5)
    count = usage(answer)["completion_tokens"]
    assert count <= 5, f"{count} tokens for max_completion_tokens 5"


@pytest.mark.conformance_full
def test_one_token(ask: Ask) -> None:
    """`max_tokens` of 1 has one token.

    Source: OpenAI API description: `max_tokens` is a whole number; 1 is the usual question for a single token.
    """
    count = usage(ask.complete(_PROMPT, max_tokens=1))["completion_tokens"]
    assert count == 1, f"{count} tokens for max_tokens 1"


def _part(whole: str, start: int, length: int) -> str:
    """Return a part of a text that can be asked for: what stands for halves of letters cannot."""
    for at in range(start, len(whole) - length + 1):
        part = whole[at : at + length]
        if "\ufffd" not in part and part.strip():
            return part
    raise Unclear(f"the model's answer has nothing to stop at: {whole!r}")


def _long(ask: Ask) -> str:
    """Return an answer with enough letters to stop in."""
    whole = text(ask.complete(_PROMPT, max_tokens=24))
    if len(whole) < 12:
        raise Unclear(f"the model's answer is too short to stop in it: {whole!r}")
    return whole


def _stops(ask: Ask, whole: str, stop: str) -> None:
    answer = ask.complete(_PROMPT, max_tokens=24, stop=[stop])
    expected = whole[: whole.index(stop)]
    found = text(answer)
    assert found == expected, f"stop {stop!r} in {whole!r} has {found!r}, not {expected!r}"
    reason = choice(answer).get("finish_reason")
    assert reason == "stop", f"an answer that ended by 'stop' has the finish reason {reason!r}"


def test_stop(ask: Ask) -> None:
    """An answer ends before the first `stop` text, which is no part of it, with the finish reason `stop`.

    Source: OpenAI API reference, `stop`: "the returned text will not contain the stop sequence".
    """
    whole = _long(ask)
    _stops(ask, whole, _part(whole, len(whole) // 2, 1))


@pytest.mark.conformance_full
@pytest.mark.parametrize("length", [2, 3, 5, 7])
def test_stop_across_tokens(ask: Ask, length: int) -> None:
    """A `stop` text ends an answer wherever the borders of tokens are.

    Source: OpenAI API reference, `stop`: it is about the text, not about tokens.
    """
    whole = _long(ask)
    for start in (4, len(whole) // 2):
        _stops(ask, whole, _part(whole, start, length))


@pytest.mark.conformance_full
def test_stop_as_text(ask: Ask) -> None:
    """`stop` may be a single text instead of a list.

    Source: OpenAI API reference, `stop`: "string / array / null".
    """
    whole = _long(ask)
    stop = _part(whole, 6, 3)
    found = text(ask.complete(_PROMPT, max_tokens=24, stop=stop))
    assert found == whole[: whole.index(stop)], f"stop {stop!r} in {whole!r} has {found!r}"


@pytest.mark.conformance_full
def test_stop_in_a_stream(ask: Ask) -> None:
    """A stream says nothing of a `stop` text, not even its beginning.

    Source: OpenAI API reference, `stop` and `stream`.
    """
    whole = content(ask.chat("Tell me a long story.", max_tokens=24))
    if len(whole) < 12:
        raise Unclear(f"the model's answer is too short to stop in it: {whole!r}")
    stop = _part(whole, 6, 4)
    streamed = streamed_text(ask.chat_chunks("Tell me a long story.", max_tokens=24, stop=[stop]))
    expected = whole[: whole.index(stop)]
    assert streamed == expected, f"stop {stop!r} in {whole!r} streams {streamed!r}, not {expected!r}"


@pytest.mark.conformance_full
def test_no_stop(ask: Ask) -> None:
    """A `stop` of null, or of a text that does not come, changes nothing.

    Source: OpenAI API reference, `stop`: "defaults to null".
    """
    whole = content(ask.chat())
    answer = ask.post(CHAT, {**ask.chat_body(), "stop": None}).json()
    assert content(answer) == whole, f"with a stop of null: {shown(answer)}, without {whole!r}"
    assert content(ask.chat(stop=["\u2603\u2603\u2603"])) == whole, "a stop that does not come changes the answer"
