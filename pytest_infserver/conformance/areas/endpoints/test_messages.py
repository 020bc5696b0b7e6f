"""Anthropic's Messages API, where a server has it."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.shapes import shown, user
from pytest_infserver.conformance.asking.target import Unclear

PATH = "/v1/messages"
_BODY: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "messages": [user("Say hello.")]}
_HEADERS = {"anthropic-version": "2023-06-01"}


def _ask(ask: Ask, **extra: Any) -> dict[str, Any]:
    return ask.object(ask.post(PATH, {**_BODY, **extra}, headers=_HEADERS))


def _text(answer: dict[str, Any]) -> str:
    blocks = answer.get("content")
    assert isinstance(blocks, list), f"'content' is no list of blocks: {shown(answer)}"
    return "".join(block.get("text", "") for block in blocks if block.get("type") == "text")


def _input(answer: dict[str, Any]) -> int:
    """Return the tokens of the input; those that were in a cache are counted apart."""
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    return sum((answer.get("usage") or {}).get(name) or 0 for name in names)


def test_answer(ask: Ask) -> None:
    """An answer is of type `message` and role `assistant`, with blocks of content and a reason of its end.

    Source: Anthropic API reference, Create a message.
    """
    answer = _ask(ask)
    assert answer.get("type") == "message", f"'type' is not 'message': {shown(answer)}"
    assert answer.get("role") == "assistant", f"'role' is not 'assistant': {shown(answer)}"
    assert _text(answer), f"no text: {shown(answer)}"
    reason = answer.get("stop_reason")
    assert reason in ("end_turn", "max_tokens"), f"'stop_reason' is {reason!r}"


@pytest.mark.conformance_full
def test_usage(ask: Ask) -> None:
    """`usage` counts the tokens of input and output.

    Source: Anthropic API reference, the message object: `usage`.
    """
    counted = _ask(ask).get("usage") or {}
    assert counted.get("input_tokens", 0) >= 1, f"no 'input_tokens': {shown(counted)}"
    assert 1 <= counted.get("output_tokens", 0) <= 8, f"not 1 to 8 'output_tokens': {shown(counted)}"


@pytest.mark.conformance_full
def test_system(ask: Ask) -> None:
    """`system` is taken, and is part of the input.

    Source: Anthropic API reference, Create a message: `system`.
    """
    without, beside = (_input(_ask(ask, **extra)) for extra in ({}, {"system": "Answer in French."}))
    assert without != beside, f"the input has {beside} tokens with and without 'system'"


@pytest.mark.conformance_full
def test_stop_sequence(ask: Ask) -> None:
    """An answer that a stop sequence ends says which one.

    Source: Anthropic API reference, the message object: `stop_reason` and `stop_sequence`.
    """
    whole = _text(_ask(ask))
    stop = whole.strip()[2:4]
    if not stop.strip():
        raise Unclear(f"the model's answer is too short to stop in it: {whole!r}")
    answer = _ask(ask, stop_sequences=[stop])
    assert _text(answer) == whole[: whole.index(stop)], f"{stop!r} in {whole!r} has {_text(answer)!r}"
    assert answer.get("stop_reason") == "stop_sequence", f"'stop_reason' is {answer.get('stop_reason')!r}"
    assert answer.get("stop_sequence") == stop, f"'stop_sequence' is {answer.get('stop_sequence')!r}"


@pytest.mark.conformance_full
def test_streamed(ask: Ask) -> None:
    """The events of a stream come in their order, from `message_start` to `message_stop`.

    Source: Anthropic API reference, streaming messages: event flow.
    """
    events = [event for event in ask.events(PATH, _BODY) if event.name != "ping"]
    names = [event.name for event in events]
    assert names[0] == "message_start", f"the first event is {names[0]!r}"
    assert names[-2:] == ["message_delta", "message_stop"], f"the last events are {names[-2:]}"
    assert "content_block_delta" in names, f"no event 'content_block_delta': {names}"
    for event in events:
        assert event.json().get("type") == event.name, f"an event {event.name!r} is {event.data[:200]}"


@pytest.mark.conformance_full
def test_count_tokens(ask: Ask) -> None:
    """`/v1/messages/count_tokens` counts the input as a message does.

    Source: Anthropic API reference, Count tokens in a message.
    """
    counted = ask.object(ask.post(f"{PATH}/count_tokens", {"messages": _BODY["messages"]}, headers=_HEADERS))
    expected = _input(_ask(ask))
    assert counted.get("input_tokens") == expected, f"{shown(counted)}, and a message counts {expected}"


@pytest.mark.conformance_full
def test_error(ask: Ask) -> None:
    """An error is of type `error`, with an object `error` that has type and message.

    Source: Anthropic API reference, errors: shapes.
    """
    ask.require(PATH, _BODY)
    answer = ask.send("POST", PATH, {"model": ask.model, "max_tokens": 8}, headers=_HEADERS)
    assert 400 <= answer.status < 500, f"expected an error of the client's (4xx), not {answer.short}"
    told = answer.json()
    assert told.get("type") == "error", f"'type' is not 'error': {answer.short}"
    error = told.get("error") or {}
    assert isinstance(error.get("message"), str), f"no 'message' in 'error': {answer.short}"
    assert isinstance(error.get("type"), str), f"no 'type' in 'error': {answer.short}"
