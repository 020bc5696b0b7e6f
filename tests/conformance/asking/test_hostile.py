"""Whatever a server does, a request has an end, and the suite says what it could not ask."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.exchange import NoAnswer, Request, opened, send
from pytest_infserver.conformance.asking.target import CHAT, NotAsked
from pytest_infserver.system.http.fetch import Limits

from ..conftest import ask_of, statements
from ..servers import hostile

SHORT = 0.4
"""Limit of a request that is never answered."""


@pytest.fixture
def nobody() -> Iterator[str]:
    """A URL where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (hostile.silent, "had no whole answer within 0.4 s"),
        (hostile.hangs_in_a_stream, r"had no whole answer within 0.4 s \(after 6\d bytes of the body\)"),
        (hostile.drips, "had no whole answer within 0.4 s"),
        (hostile.floods, "was answered with more than 100000 bytes"),
        (hostile.cuts, r"not whole HTTP \(IncompleteRead\) \(after 6\d bytes of the body\)"),
        (hostile.talks, r"not whole HTTP \(BadStatusLine\)"),
        (hostile.redirects, r"sent on \(307\) to http://127.0.0.1:1/v1: ask there"),
        (hostile.wants_a_key, r"the server wants a key \(401\): --infserver-set api_key_env=VARIABLE"),
    ],
)
@pytest.mark.parametrize("key", ["chat.answer", "streaming.framing", "errors.bad_json"])
def test_a_statement_has_an_end(answer: hostile.Answer, said: str, key: str) -> None:
    seconds = SHORT if "0.4 s" in said else 20.0
    with hostile.hostile(answer) as url:
        ask = ask_of(url, seconds, 100_000)
        ask.target.model = "any"
        with pytest.raises(NotAsked, match=said):
            statements()[key](ask)


def test_nobody_is_there(nobody: str) -> None:
    with pytest.raises(NotAsked, match="GET /v1/models was refused: nobody listens there"):
        statements()["chat.answer"](ask_of(nobody))


def test_a_server_that_speaks_tls(certificate: Path) -> None:
    with hostile.hostile(hostile.talks, certificate) as url:
        with pytest.raises(NotAsked, match=r"it speaks TLS: write https://127\.0\.0\.1:"):
            statements()["models.list"](ask_of(url))
        with pytest.raises(NotAsked, match="its certificate is not trusted: name it by SSL_CERT_FILE"):
            statements()["models.list"](ask_of(url.replace("http:", "https:")))


def test_a_server_that_does_not_speak_tls() -> None:
    with (
        hostile.hostile(hostile.talks) as url,
        pytest.raises(NotAsked, match="does it speak plain HTTP"),
    ):
        statements()["models.list"](ask_of(url.replace("http:", "https:")))


def test_json_that_is_nested_too_deeply() -> None:
    with hostile.hostile(hostile.deep) as url, pytest.raises(AssertionError, match="the answer is not JSON"):
        ask_of(url).get("/v1/models").json()


def test_what_was_said_before_a_hang_can_be_read() -> None:
    with hostile.hostile(hostile.hangs_in_a_stream) as url:
        ask = ask_of(url)
        with opened(ask.target.address, Request("POST", CHAT, {}), Limits(SHORT, 1000)) as stream:
            pieces = stream.pieces()
            assert next(pieces).startswith(b"data: ")
            with pytest.raises(NoAnswer, match="had no whole answer"):
                next(pieces)


def test_nothing_more_is_asked_of_a_server_that_is_silent() -> None:
    with hostile.hostile(hostile.silent) as url:
        target = ask_of(url, SHORT).target
        for _ in range(3):
            with pytest.raises(NotAsked):
                Ask(target).send("GET", "/v1/models")
        with pytest.raises(NotAsked, match="did not answer 3 tests in a row: nothing more was asked"):
            target.look()


def test_the_next_test_looks_whether_the_server_answers_again(nobody: str) -> None:
    target = ask_of(nobody).target
    with pytest.raises(NotAsked):
        Ask(target).send("GET", "/v1/models")
    with pytest.raises(NotAsked, match="the server does not answer any more: GET /v1/models was refused"):
        target.look()
    assert target.silent == 2
    with hostile.hostile(hostile.wants_a_key) as url:
        target.address = ask_of(url).target.address
        target.look()
    assert target.silent == 0


def test_a_huge_body_that_is_refused_early() -> None:
    """The answer is read though the server has closed before it had the body."""
    with hostile.hostile(hostile.wants_a_key) as url:
        request = Request("POST", CHAT, b"x" * (8 << 20))
        try:
            answer = send(ask_of(url).target.address, request, Limits(20.0, 1000))
        except NoAnswer as error:
            # The system may throw an answer away with a connection that was reset.
            assert "reset" in str(error) or "closed" in str(error)  # noqa: PT017
        else:
            assert answer.status == 401
