"""The events of a streamed answer of OpenAI's API, put together as if it had not been streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def join_chunks(chunks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the chat completion, or completion, whose pieces these are.

    Args:
        chunks: The events, as mappings, without the last ``[DONE]``.
    """
    found = list(chunks)
    of_chat = any("delta" in part for chunk in found for part in chunk.get("choices") or ())
    return join_chat(found) if of_chat else _join(found, lambda index: {"index": index, "text": ""}, _add_text)


def join_chat(chunks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a chat completion whose choices are those of a stream.

    Args:
        chunks: The events, as mappings, without the last ``[DONE]``.
    """
    return _join(chunks, _empty_choice, _add_delta)


def _join(
    chunks: Iterable[Mapping[str, Any]],
    empty: Callable[[int], dict[str, Any]],
    add: Callable[[dict[str, Any], Mapping[str, Any]], None],
) -> dict[str, Any]:
    body: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        body.update({key: value for key, value in chunk.items() if key != "choices" and value is not None})
        for part in chunk.get("choices") or ():
            index = part.get("index", 0)
            choice = choices.setdefault(index, empty(index))
            choice["finish_reason"] = part.get("finish_reason") or choice.get("finish_reason")
            add(choice, part)
            _extend(choice, {key: part[key] for key in ("logprobs", "token_ids") if part.get(key)})
    if "object" in body:
        body["object"] = body["object"].removesuffix(".chunk")
    return {**body, "choices": [choices[index] for index in sorted(choices)]}


def _empty_choice(index: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, "reasoning_content": None, "tool_calls": None}
    return {"index": index, "finish_reason": None, "message": message}


def _add_text(choice: dict[str, Any], part: Mapping[str, Any]) -> None:
    choice["text"] += part.get("text") or ""


def _add_delta(choice: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Add a piece of a message to what has come before."""
    message, delta = choice["message"], part["delta"]
    for key in ("content", "reasoning_content"):
        if delta.get(key) is not None:
            message[key] = (message[key] or "") + delta[key]
    for piece in delta.get("tool_calls") or ():
        calls = message["tool_calls"] = message["tool_calls"] or []
        if piece["index"] >= len(calls):
            calls.append({"id": piece["id"], "type": "function", "function": {"name": "", "arguments": ""}})
        for key, text in piece["function"].items():
            calls[piece["index"]]["function"][key] += text or ""


def _extend(known: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add lists to those that are there, in mappings too."""
    for key, value in more.items():
        if isinstance(value, Mapping):
            _extend(known.setdefault(key, {}), value)
        elif isinstance(value, list):
            known[key] = [*(known.get(key) or []), *value]
        elif value is not None:
            known[key] = value
