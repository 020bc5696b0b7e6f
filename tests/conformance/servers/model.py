"""The stand-in's model: it says words that follow from the prompt; a token is a word with the blank before it."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Mapping
from typing import Any, Protocol

MODEL = "stand-in"
CONTEXT = 1000
LENGTH = 20
"""Tokens after which the model comes to its end by itself."""


class Wrong(Exception):
    """A request that is refused."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Faults(Protocol):
    """What a model knows of its server.

    Attributes:
        wrong: Names of what it does wrong.
        count: Numbers its answers.
        schema: The first one that it was asked for.
    """

    wrong: frozenset[str]
    count: itertools.count[int]
    schema: Any


def words(prompt: str, count: int, seed: object) -> list[str]:
    """Return the model's answer."""
    found = []
    for number in range(count):
        digest = hashlib.sha256(f"{prompt}|{seed}|{number}".encode()).hexdigest()
        found.append(f" {''.join(chr(97 + int(letter, 16)) for letter in digest[:5])}")
    return found


def instance(schema: Mapping[str, Any]) -> Any:
    """Return a value of a schema.

    Raises:
        Wrong: It is none.
    """
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        return {name: instance(one) for name, one in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance(schema["items"])] * schema.get("minItems", 0)
    if kind in ("string", "boolean", "integer", "number"):
        return {"string": "text", "boolean": True, "integer": 1, "number": 0.5}[kind]
    raise Wrong(400, f"unknown type {kind}")


def pieces(text: str) -> list[str]:
    return [text[at : at + 4] for at in range(0, len(text), 4)]


class Model:
    """Answers of the model, with the faults of the server."""

    server: Faults

    def has(self, wrong: str) -> bool:
        return wrong in self.server.wrong

    def count(self, prompt: str) -> int:
        return len(prompt.split()) + 3

    def prompt_of(self, body: Mapping[str, Any]) -> str:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Wrong(200 if self.has("any type") else 400, "'messages' must be a list")
        said = [str(body["system"])] if body.get("system") and not self.has("no system") else []
        for one in messages:
            if one.get("role") not in ("system", "developer", "user", "assistant", "tool"):
                raise Wrong(200 if self.has("any role") else 400, "unknown role")
            if one["role"] == "system" and self.has("no system"):
                continue
            content = one.get("content") or ""
            if isinstance(content, list):
                taken = 0 if self.has("no parts") else 1 if self.has("first part") else len(content)
                content = " ".join(part["text"] for part in content[:taken])
            said.append(content)
        said = said[-1:] if self.has("last only") else said
        return " ".join(said)

    def tokens(self, prompt: str, body: Mapping[str, Any], index: int = 0) -> tuple[list[str], str, int]:
        """Return the tokens of an answer, its finish reason, and how many there were."""
        if self.count(prompt) > CONTEXT and not self.has("no context"):
            raise Wrong(400, "too long")
        for name, least, most in (("temperature", 0, 2), ("top_p", 0, 1), ("frequency_penalty", -2, 2)):
            if not least <= body.get(name, 1) <= most and f"any {name}" not in self.server.wrong:
                raise Wrong(400, f"{name} is out of range")
        limit = body.get("max_tokens", body.get("max_completion_tokens", body.get("max_output_tokens", 16)))
        if self.has("no limit"):
            limit = 50
        if self.has("max_completion_tokens") and "max_completion_tokens" in body:
            limit = 50
        found = self.all_tokens(prompt, body, index, limit)
        reason = "length" if len(found) > limit else "stop"
        found = found[:limit]
        count = len(found)
        text = "".join(found)
        stops = body.get("stop") or body.get("stop_sequences") or []
        stops = [stops] if isinstance(stops, str) else stops
        hits = [(text.index(stop), stop) for stop in stops if stop in text]
        if hits and not self.has("no stop"):
            at, stop = min(hits)
            cut = text[: at + len(stop)] if self.has("stop stays") else text[:at]
            found, reason = pieces(cut), f"stop:{stop}"
        return found, reason, count

    def all_tokens(self, prompt: str, body: Mapping[str, Any], index: int, limit: int) -> list[str]:
        schema = (body.get("response_format") or {}).get("json_schema")
        if schema is not None and not self.has("no schema"):
            if self.server.schema is None or not self.has("first schema"):
                self.server.schema = schema["schema"]
            value = instance(self.server.schema)
            instance(schema["schema"])
            if self.has("cut off"):
                return ["{", *[" "] * limit]
            return pieces(json.dumps({} if self.has("empty object") else value))
        if (body.get("response_format") or {}).get("type") == "json_object" and not self.has("no schema"):
            return pieces('{"answer": 42}')
        bias = body.get("logit_bias") or {}
        if bias and not self.has("no bias"):
            return [f" w{next(iter(bias))}"] * (limit + 1)
        seed: object = None
        if body.get("temperature", 1) > 0 and not self.has("one seed"):
            seed = (body.get("seed", random.random()), index)
        if self.has("random") or (self.has("no seed") and seed is not None):
            seed = random.random()
        length = LENGTH
        if "story" in prompt and not self.has("short story"):
            length = 400
        return words(prompt, length, seed)

    def counted(self, prompt: str, body: Mapping[str, Any]) -> int:
        """Return how many tokens a prompt counts as; where requests are mixed up another one's.

        Those that the suite sends beside others want more than 2 tokens: no clock decides which are mixed up.
        """
        return self.count("another" if self.has("mixed") and body.get("max_tokens", 0) > 2 else prompt)

    def new_id(self) -> str:
        return "same" if self.has("one id") else f"id-{next(self.server.count)}"

    def usage(self, prompt: int, answer: int) -> dict[str, int]:
        total = prompt + answer + self.has("total")
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": total}
