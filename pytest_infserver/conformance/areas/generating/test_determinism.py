"""When answers are the same, and when they are not."""

from __future__ import annotations

import pytest

from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.shapes import content
from pytest_infserver.conformance.asking.target import CHAT

_SEEDS = range(6)


def test_alone(ask: Ask) -> None:
    """At temperature 0 the same request has the same answer.

    Source: OpenAI API reference, `temperature`: lower values are more deterministic; every test suite relies on 0.
    """
    first, second = (content(ask.chat(max_tokens=16)) for _ in range(2))
    assert first == second, f"first {first!r}, then {second!r}"


@pytest.mark.conformance_full
def test_in_a_batch(ask: Ask) -> None:
    """At temperature 0 a request has the same answer beside others as alone.

    Source: users' expectation; batches may change the last bits of numbers, and so an answer.
    """
    alone = content(ask.chat(max_tokens=16))
    others = ["Name three colours.", "Count to nine.", "What is the capital of France?"]
    answers = ask.at_once(CHAT, [ask.chat_body(max_tokens=16), *(ask.chat_body(one, max_tokens=16) for one in others)])
    beside = content(answers[0].json())
    assert beside == alone, f"alone {alone!r}, beside others {beside!r}"


@pytest.mark.conformance_full
def test_seed(ask: Ask) -> None:
    """With the same `seed` the same request has the same answer, at temperature 1.

    Source: OpenAI API reference, `seed`: "repeated requests with the same seed ... should return the same result".
    """
    first, second = (content(ask.chat(temperature=1, seed=42, max_tokens=16)) for _ in range(2))
    assert first == second, f"first {first!r}, then {second!r}"


@pytest.mark.conformance_full
def test_other_seeds(ask: Ask) -> None:
    """With other seeds there are other answers, at temperature 1.

    Source: OpenAI API reference, `seed` and `temperature`.
    """
    answers = {content(ask.chat("Tell me a story.", temperature=1, seed=seed, max_tokens=16)) for seed in _SEEDS}
    assert len(answers) > 1, f"{len(_SEEDS)} seeds have one answer: {answers.pop()!r}"
