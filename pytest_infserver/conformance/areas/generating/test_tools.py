"""Tools that a model may call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.schemas import closed, problem_of
from pytest_infserver.conformance.asking.shapes import choice, content, deltas, message, shown, user
from pytest_infserver.conformance.asking.target import CHAT, Unclear

_ENOUGH = 128
_PARAMETERS = closed(city={"type": "string", "enum": ["Paris", "Rome"]})
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather in a city.", "parameters": _PARAMETERS},
}
_FORCED = {"type": "function", "function": {"name": "get_weather"}}
_QUESTION = "What is the weather in Paris?"


def _calls(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    calls = message(answer).get("tool_calls") or []
    # What has said something else before was free to.
    if not calls and not message(answer).get("content") and choice(answer).get("finish_reason") == "length":
        raise Unclear(f"the model did not come to an end in {_ENOUGH} tokens: {shown(answer)}")
    assert isinstance(calls, list), f"'tool_calls' is no list: {shown(answer)}"
    return calls


def _check_call(call: Mapping[str, Any]) -> None:
    assert isinstance(call.get("id"), str) and call["id"], f"a call has no 'id': {shown(call)}"  # noqa: PT018
    assert call.get("type") == "function", f"a call's type is not 'function': {shown(call)}"
    function = call.get("function") or {}
    assert function.get("name") == "get_weather", f"a call of another function: {shown(call)}"
    _check_arguments(function.get("arguments"))


def _check_arguments(arguments: object) -> None:
    assert isinstance(arguments, str), f"'arguments' is no text: {arguments!r}"
    try:
        value = json.loads(arguments)
    except ValueError:
        raise AssertionError(f"'arguments' is not JSON: {arguments!r}") from None
    problem = problem_of(value, _PARAMETERS, "'arguments'")
    assert problem is None, problem


def _ask(ask: Ask, tool_choice: object, **extra: Any) -> dict[str, Any]:
    return ask.chat(_QUESTION, tools=[TOOL], tool_choice=tool_choice, max_tokens=_ENOUGH, **extra)


def test_forced(ask: Ask) -> None:
    """A tool that `tool_choice` names is called, with arguments of its schema.

    Source: OpenAI API reference, `tool_choice`: "forces the model to call that tool".
    """
    answer = _ask(ask, _FORCED)
    calls = _calls(answer)
    assert len(calls) == 1, f"{len(calls)} calls: {shown(answer)}"
    _check_call(calls[0])


@pytest.mark.conformance_full
def test_required(ask: Ask) -> None:
    """With the `tool_choice` `required` a tool is called.

    Source: OpenAI API reference, `tool_choice`: "required means the model must call one or more tools".
    """
    answer = _ask(ask, "required")
    calls = _calls(answer)
    assert calls, f"no call: {shown(answer)}"
    for call in calls:
        _check_call(call)


@pytest.mark.conformance_full
def test_auto(ask: Ask) -> None:
    """With the `tool_choice` `auto` an answer is a text or calls; the finish reason `tool_calls` goes with calls.

    Source: OpenAI API reference, `tool_choice` and `finish_reason`.
    """
    answer = _ask(ask, "auto")
    calls, reason = message(answer).get("tool_calls") or [], choice(answer).get("finish_reason")
    assert calls or isinstance(message(answer).get("content"), str), f"neither text nor call: {shown(answer)}"
    assert (reason == "tool_calls") == bool(calls), f"{len(calls)} calls have the finish reason {reason!r}"


def test_none(ask: Ask) -> None:
    """With the `tool_choice` `none` no tool is called.

    Source: OpenAI API reference, `tool_choice`: "none means the model will not call any tool".
    """
    answer = ask.chat(_QUESTION, tools=[TOOL], tool_choice="none")
    assert not message(answer).get("tool_calls"), f"a tool was called: {shown(answer)}"
    content(answer)


@pytest.mark.conformance_full
def test_not_parallel(ask: Ask) -> None:
    """Without parallel calls there is one at most.

    Source: OpenAI API reference, `parallel_tool_calls`.
    """
    answer = _ask(ask, "required", parallel_tool_calls=False)
    calls = _calls(answer)
    assert len(calls) == 1, f"{len(calls)} calls: {shown(answer)}"


@pytest.mark.conformance_full
def test_parallel(ask: Ask) -> None:
    """Calls that come together are whole, and have an id each.

    Source: OpenAI's guide to function calling: parallel calls; each result names the id of its call.
    """
    question = "What is the weather in Paris and in Rome? Ask for both."
    answer = ask.chat(question, tools=[TOOL], tool_choice="required", parallel_tool_calls=True, max_tokens=_ENOUGH)
    calls = _calls(answer)
    if len(calls) < 2:
        raise Unclear(f"the model did not make two calls at once: {shown(answer)}")
    for call in calls:
        _check_call(call)
    ids = [call["id"] for call in calls]
    assert len(set(ids)) == len(ids), f"the ids of {len(calls)} calls are {ids}"


@pytest.mark.conformance_full
def test_streamed(ask: Ask) -> None:
    """The pieces of a streamed call make its arguments; its id, type and name are said once.

    Source: OpenAI API reference, the chat completion chunk object: `tool_calls` with their `index`.
    """
    chunks = ask.chat_chunks(_QUESTION, tools=[TOOL], tool_choice=_FORCED, max_tokens=_ENOUGH)
    pieces = [one for delta in deltas(chunks) for one in delta.get("tool_calls") or ()]
    assert pieces, f"no piece of a call in {len(chunks)} chunks, the last of which is {shown(chunks[-1])}"
    assert {one.get("index") for one in pieces} == {0}, f"the pieces of one call are numbered {shown(pieces)}"
    names = [one["function"]["name"] for one in pieces if (one.get("function") or {}).get("name")]
    assert names == ["get_weather"], f"the name is said as {names}"
    ids = [one["id"] for one in pieces if one.get("id")]
    assert len(set(ids)) == 1, f"the id is said as {ids}"
    _check_arguments("".join((one.get("function") or {}).get("arguments") or "" for one in pieces))


def test_result(ask: Ask) -> None:
    """The result of a call may be sent back, and is answered.

    Source: OpenAI's guide to function calling: a message of the role `tool` with the call's id.
    """
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
    messages = [
        user(_QUESTION),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "17 degrees"},
    ]
    content(ask.chat(messages, tools=[TOOL], tool_choice="none"))


@pytest.mark.conformance_full
def test_several_results(ask: Ask) -> None:
    """The results of several calls may be sent back, one message for each, and are answered.

    Source: OpenAI's guide to function calling: a message of the role `tool` for each call of the assistant's message.
    """
    cities = {"call_1": "Paris", "call_2": "Rome"}
    calls, results = [], []
    for name, city in cities.items():
        function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
        calls.append({"id": name, "type": "function", "function": function})
        results.append({"role": "tool", "tool_call_id": name, "content": f"{city}: 17 degrees"})
    messages = [user(_QUESTION), {"role": "assistant", "content": None, "tool_calls": calls}, *results]
    content(ask.chat(messages, tools=[TOOL], tool_choice="none"))


@pytest.mark.conformance_full
def test_unknown(ask: Ask) -> None:
    """A `tool_choice` of a tool that is not there is refused as a mistake of the client's.

    Source: OpenAI API reference, errors: 400, `invalid_request_error`.
    """
    _ask(ask, _FORCED)
    body = ask.chat_body(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "no_such_tool"}})
    answer = ask.send("POST", CHAT, {"model": ask.model, **body})
    assert 400 <= answer.status < 500, f"expected an error of the client's (4xx), not {answer.short}"
