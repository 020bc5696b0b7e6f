"""The parts of requests and answers; an answer without them fails with words that say what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def user(content: Any) -> dict[str, Any]:
    """Return a message of the user's."""
    return {"role": "user", "content": content}


def choice(answer: Mapping[str, Any], index: int = 0) -> dict[str, Any]:
    """Return a choice of an answer."""
    choices = answer.get("choices")
    assert isinstance(choices, list) and len(choices) > index, f"no choice {index} in {shown(answer)}"  # noqa: PT018
    one = choices[index]
    assert isinstance(one, dict), f"a choice is no object: {shown(answer)}"
    return one


def message(answer: Mapping[str, Any], index: int = 0) -> dict[str, Any]:
    """Return the message of a chat's choice."""
    found = choice(answer, index).get("message")
    assert isinstance(found, dict), f"a choice has no message: {shown(answer)}"
    return found


def content(answer: Mapping[str, Any], index: int = 0) -> str:
    """Return the text of a chat's choice."""
    found = message(answer, index).get("content")
    assert isinstance(found, str), f"a message has no text in 'content': {shown(answer)}"
    return found


def text(answer: Mapping[str, Any], index: int = 0) -> str:
    """Return the text of a completion's choice."""
    found = choice(answer, index).get("text")
    assert isinstance(found, str), f"a choice has no 'text': {shown(answer)}"
    return found


def usage(answer: Mapping[str, Any]) -> dict[str, int]:
    """Return how many tokens an answer has counted."""
    found = answer.get("usage")
    assert isinstance(found, dict), f"no 'usage' in {shown(answer)}"
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert isinstance(found.get(name), int), f"'usage' has no number {name!r}: {shown(found)}"
    return found


def deltas(chunks: Sequence[Mapping[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    """Return the deltas of one choice of a streamed chat, in order."""
    found = []
    for chunk in chunks:
        for one in chunk.get("choices") or ():
            if one.get("index", 0) == index and isinstance(one.get("delta"), dict):
                found.append(one["delta"])
    return found


def streamed_text(chunks: Sequence[Mapping[str, Any]]) -> str:
    """Return the text that the deltas of a chat make together."""
    return "".join(delta.get("content") or "" for delta in deltas(chunks))


def finish_reasons(chunks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the finish reasons of all chunks."""
    return [one["finish_reason"] for chunk in chunks for one in chunk.get("choices") or () if one.get("finish_reason")]


def shown(value: Any) -> str:
    """Return the beginning of a value as JSON, for messages."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 400 else f"{text[:400]}..."
