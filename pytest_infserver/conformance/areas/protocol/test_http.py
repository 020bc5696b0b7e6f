"""HTTP itself."""

from __future__ import annotations

import contextlib
import json

import pytest

from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.exchange import NoAnswer, Request, send
from pytest_infserver.conformance.asking.shapes import content
from pytest_infserver.conformance.asking.target import CHAT, NotAsked, NotOffered

_ORIGIN = {"Origin": "http://localhost:3000"}
_PREFLIGHT = {**_ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}


def test_content_type(ask: Ask) -> None:
    """An answer has the content type `application/json`.

    Source: OpenAI API description: responses are `application/json`.
    """
    kind = ask.post(CHAT, ask.chat_body()).headers.get("content-type", "")
    assert kind.partition(";")[0].strip() == "application/json", f"the content type is {kind!r}"


def test_keep_alive(ask: Ask) -> None:
    """A connection may be used for a second request.

    Source: RFC 9112, persistent connections; clients keep a pool of them.
    """
    ask.require(CHAT)
    request = Request("POST", CHAT, {"model": ask.model, **ask.chat_body()})
    ask.asked.append(request)
    address, limits = ask.target.address, ask.target.limits
    try:
        with contextlib.closing(address.http_connection(limits.seconds)) as connection:
            first = send(address, request, limits, connection)
            assert first.kept_open, "the server closes the connection after an answer"
            opened = connection.sock
            second = send(address, request, limits, connection)
            assert connection.sock is opened, "the connection was opened anew for the second request"
    except NoAnswer as error:
        raise NotAsked(f"POST {CHAT}, twice over one connection, {error}") from None
    assert content(second.json()) == content(first.json()), f"first {first.short}, then {second.short}"


@pytest.mark.conformance_full
def test_head(ask: Ask) -> None:
    """HEAD of what GET answers has the same status and no body, or is answered with 405.

    Source: RFC 9110, HEAD.
    """
    ask.get("/v1/models")
    answer = ask.send("HEAD", "/v1/models")
    assert answer.status in (200, 405), f"expected 200 or 405, not {answer.short}"
    assert not answer.body, f"HEAD has a body of {len(answer.body)} bytes"


@pytest.mark.conformance_full
def test_preflight(ask: Ask) -> None:
    """A browser's question before a POST from another origin is answered, with the origin that may ask.

    Source: the Fetch standard, CORS preflight; needed by every page that asks a server itself.
    """
    answer = ask.send("OPTIONS", CHAT, headers=_PREFLIGHT)
    allowed = answer.headers.get("access-control-allow-origin")
    if allowed is None:
        raise NotOffered(f"OPTIONS {CHAT} allows no other origin ({answer.status})")
    assert answer.status in (200, 204), f"expected 200 or 204, not {answer.short}"
    assert allowed in ("*", _ORIGIN["Origin"]), f"another origin is allowed: {allowed!r}"


@pytest.mark.conformance_full
def test_origin(ask: Ask) -> None:
    """An answer to a request from another origin says that the origin may read it.

    Source: the Fetch standard, CORS.
    """
    answer = ask.post(CHAT, ask.chat_body(), headers=_ORIGIN)
    allowed = answer.headers.get("access-control-allow-origin")
    if allowed is None:
        raise NotOffered(f"POST {CHAT} allows no other origin")
    assert allowed in ("*", _ORIGIN["Origin"]), f"another origin is allowed: {allowed!r}"


@pytest.mark.conformance_full
def test_chunked_upload(ask: Ask) -> None:
    """A body in chunks, without a length, is taken.

    Source: RFC 9112, chunked transfer coding: "a recipient MUST be able to parse" it.
    """
    content(ask.object(ask.post(CHAT, ask.chat_body(), chunked=True)))


@pytest.mark.conformance_full
def test_continue(ask: Ask) -> None:
    """A request with `Expect: 100-continue` is answered.

    Source: RFC 9110, Expect; curl sends it with long bodies.
    """
    content(ask.object(ask.post(CHAT, ask.chat_body(), expects=True)))


@pytest.mark.conformance_full
def test_charset(ask: Ask) -> None:
    """The content type may name the charset.

    Source: many clients send `application/json; charset=utf-8`.
    """
    headers = {"Content-Type": "application/json; charset=utf-8"}
    content(ask.object(ask.post(CHAT, ask.chat_body("Grüße"), headers=headers)))


@pytest.mark.conformance_full
def test_wrong_content_type(ask: Ask) -> None:
    """A body that says that it is plain text is no server error: it is taken, or refused as the client's mistake.

    Source: RFC 9110, 415.
    """
    ask.require(CHAT)
    body = {"model": ask.model, **ask.chat_body()}
    answer = ask.send("POST", CHAT, body, headers={"Content-Type": "text/plain"})
    assert answer.status == 200 or 400 <= answer.status < 500, f"expected 200 or 4xx, not {answer.short}"


@pytest.mark.conformance_full
def test_unknown_field(ask: Ask) -> None:
    """A field that a server does not know is no server error: it is ignored, or refused as the client's mistake.

    Source: clients send fields of newer versions of the API.
    """
    ask.require(CHAT)
    body = json.dumps({"model": ask.model, **ask.chat_body(), "no_such_field": {"a": 1}}).encode()
    answer = ask.send("POST", CHAT, body)
    assert answer.status == 200 or 400 <= answer.status < 500, f"expected 200 or 4xx, not {answer.short}"
