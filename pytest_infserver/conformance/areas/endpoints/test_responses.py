"""The Responses API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.events import Event
from pytest_infserver.conformance.asking.shapes import shown

PATH = "/v1/responses"
_BODY: dict[str, Any] = {"input": "Say hello.", "max_output_tokens": 16, "temperature": 0}


def _text(answer: Mapping[str, Any]) -> str:
    output = answer.get("output")
    assert isinstance(output, list), f"'output' is no list: {shown(answer)}"
    messages = [one for one in output if one.get("type") == "message"]
    assert messages, f"no message in 'output': {shown(answer)}"
    parts = [part for one in messages for part in one.get("content") or ()]
    assert all(part.get("type") in ("output_text", "refusal") for part in parts), f"unknown parts: {shown(messages)}"
    return "".join(part.get("text", "") for part in parts)


def _events(ask: Ask) -> list[Event]:
    return [event for event in ask.events(PATH, _BODY) if event.data != "[DONE]"]


def test_answer(ask: Ask) -> None:
    """An answer is an object `response` with a status, and a message of parts `output_text`.

    Source: OpenAI API reference, the response object.
    """
    answer = ask.object(ask.post(PATH, _BODY))
    assert answer.get("object") == "response", f"'object' is not 'response': {shown(answer)}"
    assert answer.get("status") in ("completed", "incomplete"), f"the status is {answer.get('status')!r}"
    assert isinstance(answer.get("id"), str), f"no 'id': {shown(answer)}"
    assert _text(answer), f"no text: {shown(answer)}"


@pytest.mark.conformance_full
def test_cut_off(ask: Ask) -> None:
    """An answer that `max_output_tokens` ends is incomplete, and says why.

    Source: OpenAI API reference, the response object: `status` and `incomplete_details`.
    """
    body = {**_BODY, "input": "Tell me a long story.", "max_output_tokens": 16}
    answer = ask.object(ask.post(PATH, body))
    counted = (answer.get("usage") or {}).get("output_tokens", 0)
    assert counted <= 16, f"{counted} tokens for max_output_tokens 16"
    if counted == 16:
        status, details = answer.get("status"), answer.get("incomplete_details") or {}
        assert status == "incomplete", f"an answer that was cut off has the status {status!r}"
        assert details.get("reason") == "max_output_tokens", f"'incomplete_details' is {shown(details)}"


@pytest.mark.conformance_full
def test_usage(ask: Ask) -> None:
    """`usage` counts the tokens of input and output, and both together.

    Source: OpenAI API reference, the response object: `usage`.
    """
    counted = ask.object(ask.post(PATH, _BODY)).get("usage")
    assert isinstance(counted, dict), "there is no 'usage'"
    total = counted.get("input_tokens", 0) + counted.get("output_tokens", 0)
    assert counted.get("input_tokens", 0) >= 1, f"no 'input_tokens': {shown(counted)}"
    assert counted.get("total_tokens") == total, f"the total is not the sum of both: {shown(counted)}"


@pytest.mark.conformance_full
def test_messages_as_input(ask: Ask) -> None:
    """`input` may be a list of messages, with instructions beside it.

    Source: OpenAI API reference, Create a model response: `input` and `instructions`.
    """
    messages = [{"role": "user", "content": [{"type": "input_text", "text": "Say hello."}]}]
    assert _text(ask.object(ask.post(PATH, {**_BODY, "input": messages, "instructions": "Be brief."})))


@pytest.mark.conformance_full
def test_streamed(ask: Ask) -> None:
    """A stream begins with `response.created` and ends with `response.completed` or `response.incomplete`.

    Source: OpenAI API reference, streaming events of responses; each has its type as name, too.
    """
    events = _events(ask)
    kinds = [event.json().get("type") for event in events]
    assert kinds[0] == "response.created", f"the first event is {kinds[0]!r}"
    assert kinds[-1] in ("response.completed", "response.incomplete"), f"the last event is {kinds[-1]!r}"
    assert [event.name for event in events] == kinds, f"not each event has its type as name: {events[0]}"


@pytest.mark.conformance_full
def test_streamed_text(ask: Ask) -> None:
    """The deltas of a stream make the text of the response that its last event has.

    Source: OpenAI API reference, `response.output_text.delta`.
    """
    events = [event.json() for event in _events(ask)]
    deltas = "".join(one.get("delta", "") for one in events if one.get("type") == "response.output_text.delta")
    last = events[-1].get("response")
    assert isinstance(last, dict), f"the last event has no response: {shown(events[-1])}"
    assert deltas == _text(last), f"the deltas make {deltas!r}, the text is {_text(last)!r}"


@pytest.mark.conformance_full
def test_order_of_events(ask: Ask) -> None:
    """The events of a stream are numbered from 0 or 1 on, without a gap.

    Source: OpenAI API reference, streaming events of responses: `sequence_number`.
    """
    numbers = [event.json().get("sequence_number") for event in _events(ask)]
    expected = [list(range(first, first + len(numbers))) for first in (0, 1)]
    assert numbers in expected, f"the events are numbered {numbers[:20]}"


@pytest.mark.conformance_full
def test_unknown_previous(ask: Ask) -> None:
    """A previous response that is not there is an error of the client's.

    Source: OpenAI API reference, `previous_response_id`, and errors.
    """
    ask.require(PATH, _BODY)
    body = {"model": ask.model, **_BODY, "previous_response_id": "resp_no_such_response"}
    answer = ask.send("POST", PATH, body)
    assert 400 <= answer.status < 500, f"expected an error of the client's (4xx), not {answer.short}"
