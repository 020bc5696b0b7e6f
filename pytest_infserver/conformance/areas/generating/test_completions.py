"""Completions of a text."""

from __future__ import annotations

import pytest

from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.shapes import choice, shown, text, usage


def test_answer(ask: Ask) -> None:
    """A completion is an object `text_completion` with `id`, `created`, `model`, and a text with its finish reason.

    Source: OpenAI API reference, the completion object.
    """
    answer = ask.complete()
    text(answer)
    assert answer.get("object") == "text_completion", f"'object' is not 'text_completion': {shown(answer)}"
    assert isinstance(answer.get("id"), str) and answer["id"], f"no 'id': {shown(answer)}"  # noqa: PT018
    assert isinstance(answer.get("created"), int), f"'created' is no whole number: {shown(answer)}"
    assert isinstance(answer.get("model"), str), f"no 'model': {shown(answer)}"
    reason = choice(answer).get("finish_reason")
    assert reason in ("stop", "length"), f"the finish reason is {reason!r}"


def test_usage(ask: Ask) -> None:
    """`usage` counts the tokens of prompt and completion, and both together.

    Source: OpenAI API reference, the completion object: `usage`.
    """
    found = usage(ask.complete(max_tokens=4))
    total = found["prompt_tokens"] + found["completion_tokens"]
    assert found["total_tokens"] == total, f"the total is not the sum of both: {shown(found)}"
    assert found["prompt_tokens"] >= 1, f"the prompt has no tokens: {shown(found)}"
    assert 1 <= found["completion_tokens"] <= 4, f"not 1 to 4 tokens for max_tokens 4: {shown(found)}"


@pytest.mark.conformance_full
def test_several_prompts(ask: Ask) -> None:
    """A list of prompts has a choice for each, numbered in their order, with the texts that each has alone.

    Source: OpenAI API reference, Create completion: `prompt` may be an array of strings.
    """
    prompts = ["Once upon a time", "The capital of France"]
    # Few tokens: side by side the last bits of numbers may be others than alone.
    alone = [text(ask.complete(prompt, max_tokens=2)) for prompt in prompts]
    answer = ask.complete(prompts, max_tokens=2)
    choices = sorted(answer.get("choices") or (), key=lambda one: one["index"])
    assert [one["index"] for one in choices] == [0, 1], f"the choices are not 0 and 1: {shown(answer)}"
    assert [one["text"] for one in choices] == alone, f"not the texts {shown(alone)}: {shown(answer)}"


@pytest.mark.conformance_full
def test_tokens_as_prompt(ask: Ask) -> None:
    """A prompt may be a list of tokens, each of which counts as one.

    Source: OpenAI API reference, Create completion: `prompt` may be an array of tokens.
    """
    found = usage(ask.complete([100, 101, 102], max_tokens=2))
    # Some engines put the token of the beginning before them.
    assert found["prompt_tokens"] in (3, 4), f"three tokens were counted as {found['prompt_tokens']}"


@pytest.mark.conformance_full
def test_echo(ask: Ask) -> None:
    """With `echo` the text begins with the prompt.

    Source: OpenAI API reference, Create completion: `echo`.
    """
    answer = ask.complete("One two three", echo=True)
    assert text(answer).strip().startswith("One two three"), f"the prompt is not in the text: {shown(answer)}"
