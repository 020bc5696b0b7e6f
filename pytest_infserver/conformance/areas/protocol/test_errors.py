"""What a server says of requests that are wrong."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.exchange import Answer
from pytest_infserver.conformance.asking.shapes import content
from pytest_infserver.conformance.asking.target import CHAT, NotAsked, NotOffered, Unclear

_HUGE = 32 << 20
_LONGEST = 1 << 20
"""Tokens of the longest context that a question is made for."""


def _error(answer: Answer, *statuses: int) -> dict[str, Any]:
    expected = " or ".join(map(str, statuses))
    assert answer.status in statuses, f"expected {expected}, not {answer.short}"
    error = answer.json().get("error")
    assert isinstance(error, dict), f"no object 'error': {answer.short}"
    assert isinstance(error.get("message"), str) and error["message"], f"no 'message' in 'error': {answer.short}"  # noqa: PT018
    return error


def _wrong(ask: Ask, body: Any, *statuses: int) -> dict[str, Any]:
    ask.require(CHAT)
    return _error(ask.send("POST", CHAT, body), *statuses)


def test_unknown_model(ask: Ask) -> None:
    """A model that is not there is answered with 404 and an error.

    Source: OpenAI API reference, error codes: 404, `model_not_found`.
    """
    _wrong(ask, {"model": "no-such-model", **ask.chat_body()}, 404)


def test_bad_json(ask: Ask) -> None:
    """What is no JSON is answered with 400 and an error.

    Source: OpenAI API reference, error codes: 400, "we could not parse the JSON body of your request".
    """
    _wrong(ask, b'{"model": ', 400)


def test_wrong_type(ask: Ask) -> None:
    """A field of the wrong type is answered with 400 or 422 and an error.

    Source: OpenAI API reference, error codes: 400, `invalid_request_error`; clients treat 422 alike.
    """
    _wrong(ask, {"model": ask.model, "messages": "Hello", "max_tokens": 2}, 400, 422)


def test_missing_messages(ask: Ask) -> None:
    """A chat without messages is answered with 400 or 422 and an error.

    Source: OpenAI API description: `messages` is required.
    """
    _wrong(ask, {"model": ask.model, "max_tokens": 2}, 400, 422)


@pytest.mark.conformance_full
def test_no_messages(ask: Ask) -> None:
    """A chat with an empty list of messages is answered with 400 or 422 and an error.

    Source: OpenAI API description: `messages` has at least one item.
    """
    _wrong(ask, {"model": ask.model, "messages": [], "max_tokens": 2}, 400, 422)


@pytest.mark.conformance_full
def test_unknown_role(ask: Ask) -> None:
    """A role that there is not is answered with 400 or 422 and an error.

    Source: OpenAI API description: `role` is one of an enum.
    """
    _wrong(
        ask, {"model": ask.model, "messages": [{"role": "no-such-role", "content": "Hi"}], "max_tokens": 2}, 400, 422
    )


def test_shape(ask: Ask) -> None:
    """An error has a message and a type; its code and param are there, if only as null.

    Source: OpenAI API description, Error: `code`, `message`, `param` and `type` are required.
    """
    error = _wrong(ask, {"model": ask.model, "messages": "Hello", "max_tokens": 2}, 400, 422)
    missing = [name for name in ("type", "code", "param") if name not in error]
    assert not missing, f"'error' has no {', '.join(missing)}: {error}"


def _context(ask: Ask) -> int | None:
    """Return how many tokens the model's context has, where the list of models tells."""
    with contextlib.suppress(AssertionError, LookupError, TypeError, AttributeError):
        model = ask.send("GET", "/v1/models").json()["data"][0]
        meta = model.get("meta") or {}
        told = [model.get("max_model_len"), meta.get("n_ctx"), meta.get("n_ctx_train")]
        return max((one for one in told if isinstance(one, int) and one <= _LONGEST), default=None)
    return None


@pytest.mark.conformance_full
def test_too_long(ask: Ask) -> None:
    """A chat that is longer than the model's context is answered with 400 and an error.

    Source: OpenAI API reference, error codes: 400, `context_length_exceeded`.
    """
    length = _context(ask)
    if length is None:
        # One without a limit would work on the question for hours.
        raise Unclear("GET /v1/models does not say how long the model's context is")
    _wrong(ask, {"model": ask.model, **ask.chat_body("word " * 2 * length)}, 400)


@pytest.mark.conformance_full
def test_wrong_method(ask: Ask) -> None:
    """GET of an endpoint that takes POST is answered with 405.

    Source: RFC 9110, 405; OpenAI's API answers so.
    """
    ask.require(CHAT)
    answer = ask.send("GET", CHAT)
    assert answer.status == 405, f"expected 405, not {answer.short}"


@pytest.mark.conformance_full
def test_unknown_path(ask: Ask) -> None:
    """A path that is not there is answered with 404.

    Source: RFC 9110, 404.
    """
    answer = ask.send("GET", "/v1/no-such-path")
    assert answer.status == 404, f"expected 404, not {answer.short}"


@pytest.mark.conformance_full
def test_missing_key(ask: Ask) -> None:
    """A server that has a key answers a request without one with 401 and an error.

    Source: OpenAI API reference, error codes: 401.
    """
    if not ask.target.address.headers:
        raise NotOffered("the server has no key")
    ask.require(CHAT)
    _error(ask.send("POST", CHAT, {"model": ask.model, **ask.chat_body()}, with_key=False), 401)


@pytest.mark.conformance_full
def test_huge_body(ask: Ask) -> None:
    """A body of 32 MB that is no chat is refused as a mistake of the client's, and the server goes on.

    Source: RFC 9110, 413; a server that others reach must bear it.
    """
    ask.require(CHAT)
    try:
        answer = ask.send("POST", CHAT, b'{"model": "' + b"x" * _HUGE)
    except NotAsked as error:
        raise AssertionError(str(error)) from None
    assert 400 <= answer.status < 500, f"expected an error of the client's (4xx), not {answer.short}"
    content(ask.chat())
