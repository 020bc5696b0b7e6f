"""Chats: roles and what messages may be."""

from __future__ import annotations

import json

import pytest

from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.shapes import choice, content, message, shown, usage, user


def test_answer(ask: Ask) -> None:
    """A chat is an object `chat.completion` with `id`, `created`, `model`, and a message with its finish reason.

    Source: OpenAI API reference, the chat completion object.
    """
    answer = ask.chat()
    content(answer)
    assert answer.get("object") == "chat.completion", f"'object' is not 'chat.completion': {shown(answer)}"
    assert isinstance(answer.get("id"), str) and answer["id"], f"no 'id': {shown(answer)}"  # noqa: PT018
    assert isinstance(answer.get("created"), int), f"'created' is no whole number: {shown(answer)}"
    assert isinstance(answer.get("model"), str), f"no 'model': {shown(answer)}"
    assert message(answer).get("role") == "assistant", f"the role is not 'assistant': {shown(answer)}"
    assert choice(answer).get("index") == 0, f"the choice's index is not 0: {shown(answer)}"
    reason = choice(answer).get("finish_reason")
    assert reason in ("stop", "length"), f"the finish reason is {reason!r}"


def test_usage(ask: Ask) -> None:
    """`usage` counts the tokens of prompt and answer, and both together.

    Source: OpenAI API reference, the chat completion object: `usage`.
    """
    found = usage(ask.chat(max_tokens=4))
    total = found["prompt_tokens"] + found["completion_tokens"]
    assert found["total_tokens"] == total, f"the total is not the sum of both: {shown(found)}"
    assert 1 <= found["completion_tokens"] <= 4, f"not 1 to 4 tokens for max_tokens 4: {shown(found)}"


def test_system(ask: Ask) -> None:
    """A system message before the user's is taken, and is part of the prompt.

    Source: OpenAI API reference, Create chat completion: system messages.
    """
    alone = usage(ask.chat())
    both = usage(ask.chat([{"role": "system", "content": "You answer in one word, in French."}, user("Say hello.")]))
    more = both["prompt_tokens"] - alone["prompt_tokens"]
    # A template may have a system message of its own, which is left out then.
    assert more != 0, f"the prompt has {both['prompt_tokens']} tokens with and without the system message"


@pytest.mark.conformance_full
def test_system_only(ask: Ask) -> None:
    """A chat of a system message alone is answered.

    Source: OpenAI API reference, Create chat completion: `messages` has at least one message, of any role.
    """
    content(ask.chat([{"role": "system", "content": "You say hello."}]))


@pytest.mark.conformance_full
def test_developer(ask: Ask) -> None:
    """A message of the role `developer` is taken, as one of the role `system` is.

    Source: OpenAI API reference, Create chat completion: developer messages.
    """
    content(ask.chat([{"role": "developer", "content": "Answer in one word."}, user("Say hello.")]))


def test_several_turns(ask: Ask) -> None:
    """A chat of several turns is answered, and all of them are part of the prompt.

    Source: OpenAI API reference, Create chat completion: "a list of messages comprising the conversation so far".
    """
    last = user("Say hello.")
    turns = [user("My name is Ada."), {"role": "assistant", "content": "Hello Ada."}, last]
    short, long = usage(ask.chat([last])), usage(ask.chat(turns))
    assert long["prompt_tokens"] > short["prompt_tokens"], f"three messages are no longer than one: {shown(long)}"


@pytest.mark.conformance_full
def test_name(ask: Ask) -> None:
    """A message may have the name of who says it.

    Source: OpenAI API reference, Create chat completion: `name`, optional.
    """
    content(ask.chat([{**user("Say hello."), "name": "ada"}]))


def test_parts(ask: Ask) -> None:
    """A message may be a list of parts of type `text`.

    Source: OpenAI API reference, Create chat completion: `content` may be an array of content parts.
    """
    content(ask.chat([user([{"type": "text", "text": "Say hello."}])]))


@pytest.mark.conformance_full
def test_several_parts(ask: Ask) -> None:
    """All parts of a message are part of the prompt.

    Source: OpenAI API reference, Create chat completion: `content` may be an array of content parts.
    """
    parts = [{"type": "text", "text": text} for text in ("Say hello.", "Say it in French.", "Then say goodbye.")]
    one, all_of_them = (usage(ask.chat([user(parts[:count])]))["prompt_tokens"] for count in (1, len(parts)))
    assert all_of_them > one + 4, f"one part is a prompt of {one} tokens, three are one of {all_of_them}"


@pytest.mark.conformance_full
def test_part_means_the_text(ask: Ask) -> None:
    """A message of one part of type `text` means the same as that text.

    Source: LangChain, LlamaIndex and litellm send either form for the same message.
    """
    plain = usage(ask.chat())["prompt_tokens"]
    part = usage(ask.chat([user([{"type": "text", "text": "Say hello."}])]))["prompt_tokens"]
    assert plain == part, f"the text has {plain} tokens of a prompt, the same text as a part {part}"


@pytest.mark.conformance_full
def test_empty_message(ask: Ask) -> None:
    """An empty message is answered.

    Source: OpenAI API description: `content` is a string, without a least length.
    """
    content(ask.chat([user("")]))


@pytest.mark.conformance_full
def test_long_message(ask: Ask) -> None:
    """A message of some hundred words is taken whole.

    Source: OpenAI API description: `content` is a string, without a greatest length below the model's context.
    """
    short, long = (usage(ask.chat("word " * count, max_tokens=2))["prompt_tokens"] for count in (50, 150))
    assert long - short >= 100, f"100 words more are {long - short} tokens more"


def test_unicode(ask: Ask) -> None:
    """Letters beyond ASCII and emoji are the same to a server whether they are sent as they are or escaped.

    Source: RFC 8259, JSON: both are the same string.
    """
    said = "Grüße, 你好, 👋🏽"
    plain = ask.chat(said)
    body = {"model": ask.model, **ask.chat_body(said)}
    escaped = json.dumps(body).encode("ascii")
    other = ask.object(ask.checked(ask.send("POST", "/v1/chat/completions", escaped)))
    assert usage(other)["prompt_tokens"] == usage(plain)["prompt_tokens"], (
        f"{usage(plain)['prompt_tokens']} tokens as it is, {usage(other)['prompt_tokens']} escaped"
    )
    assert content(other) == content(plain), f"{content(plain)!r} as it is, {content(other)!r} escaped"
