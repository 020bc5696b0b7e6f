"""Answers that are JSON, and of a schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.schemas import closed, problem_of
from pytest_infserver.conformance.asking.shapes import choice, content, finish_reasons, streamed_text
from pytest_infserver.conformance.asking.target import CHAT, Unclear

_ENOUGH = 128
"""Tokens for the longest answer of these schemas, with some blanks."""

ENUM = closed(answer={"type": "string", "enum": ["yes", "no"]})
NESTED = closed(person=closed(kind={"type": "string", "enum": ["cat", "dog"]}, alive={"type": "boolean"}))
NUMBERS = closed(count={"type": "integer", "enum": [7, 42]}, share={"type": "number", "enum": [0.5, -1.25]})
ARRAY = closed(
    colours={"type": "array", "items": {"type": "string", "enum": ["red", "blue"]}, "minItems": 2, "maxItems": 2}
)
UNICODE = closed(größe={"type": "string", "enum": ["groß", "小", "👋"]})


def response_format(schema: Mapping[str, Any], name: str = "answer") -> dict[str, Any]:
    """Return what asks for an answer of a schema."""
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}


def _fits(ask: Ask, schema: Mapping[str, Any]) -> None:
    answer = ask.chat("Answer in JSON.", response_format=response_format(schema), max_tokens=_ENOUGH)
    _check(content(answer), choice(answer).get("finish_reason"), schema)


def _check(said: str, reason: object, schema: Mapping[str, Any]) -> None:
    if reason == "length" and said.lstrip().startswith("{"):
        raise Unclear(f"the model did not come to an end in {_ENOUGH} tokens: {said[:200]!r}")
    try:
        value = json.loads(said)
    except ValueError:
        raise AssertionError(f"the answer is not JSON: {said[:300]!r}") from None
    problem = problem_of(value, schema)
    assert problem is None, f"{problem}: {said[:300]!r}"


@pytest.mark.conformance_full
def test_json_object(ask: Ask) -> None:
    """With the response format `json_object` an answer is a JSON object.

    Source: OpenAI API reference, `response_format`: "ensures the message the model generates is valid JSON".
    """
    answer = ask.chat(
        'Answer with the JSON object {"answer": 42}.', response_format={"type": "json_object"}, max_tokens=_ENOUGH
    )
    _check(content(answer), choice(answer).get("finish_reason"), {"type": "object"})


def test_enum(ask: Ask) -> None:
    """With a strict schema of an enum an answer is an object with one of its values.

    Source: OpenAI API reference, `response_format`, `json_schema`; the guide to structured outputs.
    """
    _fits(ask, ENUM)


@pytest.mark.conformance_full
def test_nested(ask: Ask) -> None:
    """Objects within objects are of their schema.

    Source: OpenAI's guide to structured outputs: nested objects, booleans, `additionalProperties: false`.
    """
    _fits(ask, NESTED)


@pytest.mark.conformance_full
def test_numbers(ask: Ask) -> None:
    """Numbers are of their schema.

    Source: OpenAI's guide to structured outputs: number, integer, enum.
    """
    _fits(ask, NUMBERS)


@pytest.mark.conformance_full
def test_array(ask: Ask) -> None:
    """Arrays have as many items as their schema says, each of its schema.

    Source: OpenAI's guide to structured outputs: arrays, `minItems` and `maxItems`.
    """
    _fits(ask, ARRAY)


@pytest.mark.conformance_full
def test_unicode(ask: Ask) -> None:
    """Names and values beyond ASCII are of their schema.

    Source: RFC 8259, JSON; JSON Schema.
    """
    _fits(ask, UNICODE)


@pytest.mark.conformance_full
def test_streamed(ask: Ask) -> None:
    """A streamed answer is of its schema, too.

    Source: OpenAI's guide to structured outputs: streaming.
    """
    chunks = ask.chat_chunks("Answer in JSON.", response_format=response_format(ENUM), max_tokens=_ENOUGH)
    _check(streamed_text(chunks), next(iter(finish_reasons(chunks)), None), ENUM)


@pytest.mark.conformance_full
def test_wrong_schema(ask: Ask) -> None:
    """A schema that is none is refused as a mistake of the client's.

    Source: OpenAI API reference, errors: 400, `invalid_request_error`.
    """
    ask.chat("Answer in JSON.", response_format=response_format(ENUM), max_tokens=_ENOUGH)
    body = ask.chat_body(response_format=response_format({"type": "no-such-type"}))
    answer = ask.send("POST", CHAT, {"model": ask.model, **body})
    assert 400 <= answer.status < 500, f"expected an error of the client's (4xx), not {answer.short}"
