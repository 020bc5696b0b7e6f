"""What a model thinks before it answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.shapes import deltas, message, shown
from pytest_infserver.conformance.asking.target import NotOffered

_NAMES = ("reasoning_content", "reasoning")


def _thought(part: Mapping[str, Any]) -> Any:
    return next((part[name] for name in _NAMES if part.get(name)), None)


@pytest.mark.conformance_full
def test_apart_from_the_answer(ask: Ask) -> None:
    """What a model thinks is in `reasoning_content` or `reasoning`, as text, and not in `content`.

    Source: what DeepSeek's API began and vLLM, SGLang and llama.cpp have; litellm and LangChain read it.
    """
    answer = ask.chat("What is 2 + 2?", max_tokens=64)
    said = message(answer)
    thought = _thought(said)
    text = said.get("content") or ""
    assert "<think>" not in text, f"a thought is in the content: {shown(answer)}"
    if thought is None:
        raise NotOffered("the model did not think before its answer")
    assert isinstance(thought, str), f"a thought is no text: {shown(answer)}"


@pytest.mark.conformance_full
def test_streamed(ask: Ask) -> None:
    """In a stream a thought comes before the answer.

    Source: as for a whole answer.
    """
    found = deltas(ask.chat_chunks("What is 2 + 2?", max_tokens=64))
    thinking = [number for number, delta in enumerate(found) if _thought(delta)]
    answering = [number for number, delta in enumerate(found) if delta.get("content")]
    if not thinking:
        raise NotOffered("the model did not think before its answer")
    assert not answering or max(thinking) < min(answering), "a thought comes after the beginning of the answer"
