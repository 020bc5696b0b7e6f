"""How the next token is chosen, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_infserver.conformance.asking.ask import COMPLETIONS, Ask
from pytest_infserver.conformance.asking.shapes import choice, content, message, shown, text
from pytest_infserver.conformance.asking.target import CHAT


@pytest.mark.conformance_full
@pytest.mark.parametrize("value", [0, 0.5, 2])
def test_temperature(ask: Ask, value: float) -> None:
    """Temperatures from 0 to 2 are taken.

    Source: OpenAI API reference, `temperature`: "between 0 and 2".
    """
    content(ask.chat(temperature=value))


def _refused(ask: Ask, **field: Any) -> None:
    ask.require(CHAT)
    answer = ask.send("POST", CHAT, {"model": ask.model, **ask.chat_body(**field)})
    assert 400 <= answer.status < 500, f"expected an error of the client's (4xx), not {answer.short}"


@pytest.mark.conformance_full
def test_negative_temperature(ask: Ask) -> None:
    """A temperature below 0 is refused.

    Source: OpenAI API description: `temperature` has the minimum 0.
    """
    _refused(ask, temperature=-1)


@pytest.mark.conformance_full
def test_too_large_top_p(ask: Ask) -> None:
    """A `top_p` above 1 is refused.

    Source: OpenAI API description: `top_p` has the maximum 1.
    """
    _refused(ask, top_p=1.5)


@pytest.mark.conformance_full
def test_no_choices(ask: Ask) -> None:
    """`n` of 0 is refused.

    Source: OpenAI API description: `n` has the minimum 1.
    """
    _refused(ask, n=0)


@pytest.mark.conformance_full
def test_too_large_penalty(ask: Ask) -> None:
    """A `frequency_penalty` above 2 is refused.

    Source: OpenAI API description: `frequency_penalty` has the maximum 2.
    """
    _refused(ask, frequency_penalty=3)


@pytest.mark.conformance_full
def test_too_many_top_logprobs(ask: Ask) -> None:
    """A `top_logprobs` that is far above 20 is refused.

    Source: OpenAI API description: `top_logprobs` has the maximum 20.
    """
    _refused(ask, logprobs=True, top_logprobs=1000, max_tokens=1)


@pytest.mark.conformance_full
def test_n(ask: Ask) -> None:
    """`n` of 2 has two choices, numbered 0 and 1.

    Source: OpenAI API reference, Create chat completion: `n`.
    """
    answer = ask.chat(n=2, temperature=1)
    indices = sorted(one.get("index") for one in answer["choices"])
    assert indices == [0, 1], f"the choices are numbered {indices}"
    content(answer, 1)


@pytest.mark.conformance_full
def test_logprobs(ask: Ask) -> None:
    """With `logprobs` each token of a chat has its logarithm, its bytes, and as many others as `top_logprobs` says.

    Source: OpenAI API reference, the chat completion object: `logprobs`.
    """
    answer = ask.chat(logprobs=True, top_logprobs=2, max_tokens=4)
    found = (choice(answer).get("logprobs") or {}).get("content")
    assert found, f"a choice has no 'logprobs' with a 'content': {shown(answer)}"
    for one in found:
        assert isinstance(one.get("token"), str), f"no 'token': {shown(one)}"
        assert one.get("logprob", 1) <= 0, f"no 'logprob' of 0 or less: {shown(one)}"
        assert isinstance(one.get("bytes"), list), f"no 'bytes': {shown(one)}"
        assert len(one.get("top_logprobs", ())) == 2, f"not 2 'top_logprobs': {shown(one)}"
    together = bytes(byte for one in found for byte in one["bytes"]).decode("utf-8", "replace")
    said = message(answer).get("content") or ""
    # A model's token of the end is no part of its text.
    assert together.startswith(said), f"the tokens make {together!r}, the text is {said!r}"


@pytest.mark.conformance_full
def test_logprobs_of_a_completion(ask: Ask) -> None:
    """With `logprobs` a completion has tokens, their logarithms, others and offsets, as many of each.

    Source: OpenAI API reference, the completion object: `logprobs`.
    """
    answer = ask.complete(logprobs=2, max_tokens=4)
    found = choice(answer).get("logprobs")
    assert isinstance(found, dict), f"a choice has no 'logprobs': {shown(answer)}"
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    lengths = {name: len(found.get(name) or ()) for name in names}
    assert len(set(lengths.values())) == 1, f"not as many of each: {lengths}"
    assert lengths["tokens"], f"there are no tokens: {shown(found)}"


@pytest.mark.conformance_full
def test_logit_bias(ask: Ask) -> None:
    """A `logit_bias` of 100 makes a token the answer.

    Source: OpenAI API reference, `logit_bias`: "values like -100 or 100 should result in a ban or exclusive selection".
    """
    ask.require(COMPLETIONS)
    one, other = (text(ask.complete(max_tokens=3, logit_bias={token: 100})) for token in ("70", "71"))
    assert one != other, f"the tokens 70 and 71 with a bias of 100 both make {one!r}"


@pytest.mark.conformance_full
@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
def test_penalties(ask: Ask, name: str) -> None:
    """Penalties from -2 to 2 are taken.

    Source: OpenAI API reference, `frequency_penalty` and `presence_penalty`: "between -2.0 and 2.0".
    """
    for value in (-2, 2):
        extra: dict[str, Any] = {name: value}
        content(ask.chat(**extra))
