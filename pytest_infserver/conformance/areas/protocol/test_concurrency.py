"""Several requests at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pytest_infserver.conformance.areas.generating.test_structured import response_format
from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.events import events_of
from pytest_infserver.conformance.asking.schemas import closed
from pytest_infserver.conformance.asking.shapes import choice, content, finish_reasons, usage
from pytest_infserver.conformance.asking.target import CHAT, NotAsked, NotOffered, Unclear

_TOGETHER = 6
_WORDS = (1, 5, 10, 15, 20, 25)
"""How long the prompts are: each is known by the tokens that it has."""


def _prompts() -> list[str]:
    return ["word " * count for count in _WORDS]


def test_no_mixing(ask: Ask) -> None:
    """Requests at the same time have each the answer to their own prompt, as the tokens of these tell.

    Source: what a server is for; clients cannot see it.
    """
    alone = [usage(ask.chat(prompt, max_tokens=2))["prompt_tokens"] for prompt in _prompts()]
    answers = ask.at_once(CHAT, [ask.chat_body(prompt, max_tokens=4) for prompt in _prompts()])
    together = [usage(answer.json())["prompt_tokens"] for answer in answers]
    assert together == alone, f"tokens of the prompts alone {alone}, at the same time {together}"
    ids = {answer.json().get("id") for answer in answers}
    assert len(ids) == len(answers), f"{len(answers)} answers have {len(ids)} ids"


@pytest.mark.conformance_full
def test_canaries(ask: Ask) -> None:
    """Each request's answer has the word that only its own schema allows.

    Source: what a server is for; clients cannot see it.
    """
    words = [f"canary-{number}" for number in range(_TOGETHER)]
    schemas = [closed(word={"type": "string", "enum": [word]}) for word in words]
    bodies: list[dict[str, Any]] = [
        ask.chat_body("Answer in JSON.", response_format=response_format(schema), max_tokens=64) for schema in schemas
    ]
    ask.chat("Answer in JSON.", response_format=response_format(schemas[0]), max_tokens=64)
    answers = [answer.json() for answer in ask.at_once(CHAT, bodies)]
    said = [content(answer) for answer in answers]
    for number, word in enumerate(words):
        others = [one for one in words if one != word and one in said[number]]
        assert not others, f"the answer to the request for {word} has {', '.join(others)}: {said[number]!r}"
        if choice(answers[number]).get("finish_reason") == "length":
            raise Unclear(f"the model did not come to an end in 64 tokens: {said[number]!r}")
        assert word in said[number], f"the answer to the request for {word} is {said[number]!r}"


@pytest.mark.conformance_full
def test_streams(ask: Ask) -> None:
    """Streams at the same time have an id each, and are whole.

    Source: OpenAI API reference, the chat completion chunk object: "each chunk has the same ID".
    """
    bodies = [{**ask.chat_body(prompt, max_tokens=8), "stream": True} for prompt in _prompts()]
    ids = set()
    for answer in ask.at_once(CHAT, bodies):
        chunks = [event.json() for event in events_of(answer.body) if event.data != "[DONE]"]
        own = {chunk.get("id") for chunk in chunks}
        assert len(own) == 1, f"one stream has the ids {sorted(map(str, own))}"
        assert len(finish_reasons(chunks)) == 1, f"one stream has the finish reasons {finish_reasons(chunks)}"
        ids |= own
    assert len(ids) == _TOGETHER, f"{_TOGETHER} streams have {len(ids)} ids"


@pytest.mark.conformance_full
def test_cancelling_under_load(ask: Ask) -> None:
    """Streams that are closed do not disturb those beside them.

    Source: every client closes the connection when its user cancels.
    """
    alone = [usage(ask.chat(prompt, max_tokens=2))["prompt_tokens"] for prompt in _prompts()]

    def cancel(_: int) -> None:
        with ask.cut_off(CHAT, ask.chat_body(max_tokens=200)) as stream:
            next(stream.pieces(), b"")

    with ThreadPoolExecutor(_TOGETHER) as pool:
        cancelled = pool.map(cancel, range(_TOGETHER))
        answers = ask.at_once(CHAT, [ask.chat_body(prompt, max_tokens=8) for prompt in _prompts()])
        list(cancelled)
    together = [usage(answer.json())["prompt_tokens"] for answer in answers]
    assert together == alone, f"tokens of the prompts alone {alone}, beside cancelled streams {together}"


def _while_busy(ask: Ask, path: str) -> None:
    """GET something while the server generates."""
    first = ask.send("GET", path)
    if first.status != 200:
        raise NotOffered(f"GET {path} was answered with {first.short}")
    with ask.cut_off(CHAT, ask.chat_body("Tell me a long story.", max_tokens=200)) as stream:
        next(stream.pieces(), b"")
        try:
            answer = ask.send("GET", path)
        except NotAsked as error:
            raise AssertionError(f"while it generates: {error}") from None
    assert answer.status == 200, f"while it generates: {answer.short}"


@pytest.mark.conformance_full
def test_health_while_busy(ask: Ask) -> None:
    """A server that generates is healthy.

    Source: probes of Kubernetes and of load balancers, which take a server out that is not.
    """
    _while_busy(ask, "/health")


@pytest.mark.conformance_full
def test_metrics_while_busy(ask: Ask) -> None:
    """A server that generates tells its metrics.

    Source: Prometheus, which asks every few seconds.
    """
    _while_busy(ask, "/metrics")
