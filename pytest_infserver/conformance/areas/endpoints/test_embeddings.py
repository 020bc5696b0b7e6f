"""Embeddings."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import pytest

from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.shapes import shown

PATH = "/v1/embeddings"


def _embed(ask: Ask, what: Any, **extra: Any) -> list[dict[str, Any]]:
    answer = ask.object(ask.post(PATH, {"input": what, **extra}))
    data = answer.get("data")
    assert isinstance(data, list) and data, f"'data' is no list of embeddings: {shown(answer)}"  # noqa: PT018
    return data


def _near(one: list[float], other: list[float]) -> bool:
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=1e-2, abs_tol=1e-3) for a, b in zip(one, other, strict=True)
    )


def test_floats(ask: Ask) -> None:
    """An embedding is a list of numbers, with its `index` and the object `embedding`.

    Source: OpenAI API reference, the embedding object.
    """
    (one,) = _embed(ask, "Hello")
    numbers = one.get("embedding")
    assert isinstance(numbers, list) and numbers, f"'embedding' is no list: {shown(one)}"  # noqa: PT018
    assert all(isinstance(number, (int, float)) for number in numbers), f"not only numbers: {shown(one)}"
    assert one.get("index") == 0, f"'index' is not 0: {shown(one)}"
    assert one.get("object") == "embedding", f"'object' is not 'embedding': {shown(one)}"


@pytest.mark.conformance_full
def test_base64(ask: Ask) -> None:
    """With the encoding `base64` an embedding is the same numbers, as little-endian floats of 32 bits.

    Source: OpenAI API reference, `encoding_format`; openai's clients ask for it by default.
    """
    numbers = _embed(ask, "Hello", encoding_format="float")[0]["embedding"]
    packed = _embed(ask, "Hello", encoding_format="base64")[0]["embedding"]
    assert isinstance(packed, str), f"'embedding' is no text: {shown(packed)}"
    data = base64.b64decode(packed)
    assert len(data) == 4 * len(numbers), f"{len(data)} bytes for {len(numbers)} numbers"
    unpacked = list(struct.unpack(f"<{len(numbers)}f", data))
    assert _near(unpacked, numbers), f"{unpacked[:4]} are not {numbers[:4]}"


@pytest.mark.conformance_full
def test_order(ask: Ask) -> None:
    """A list of texts has their embeddings in the same order, each as it has alone.

    Source: OpenAI API reference, Create embeddings: `input`, and `index`.
    """
    texts = ["Hello", "The capital of France is Paris.", "42"]
    alone = [_embed(ask, one)[0]["embedding"] for one in texts]
    together = _embed(ask, texts)
    assert [one.get("index") for one in together] == [0, 1, 2], f"the order is {[one.get('index') for one in together]}"
    for number, one in enumerate(together):
        assert _near(one["embedding"], alone[number]), f"the embedding of text {number} is another one alone"


@pytest.mark.conformance_full
def test_dimensions(ask: Ask) -> None:
    """`dimensions` is how long an embedding is.

    Source: OpenAI API reference, `dimensions`: "only supported in" some models; others refuse it.
    """
    half = len(_embed(ask, "Hello")[0]["embedding"]) // 2
    answer = ask.send("POST", PATH, {"model": ask.model, "input": "Hello", "dimensions": half})
    if 400 <= answer.status < 500:
        return
    found = len(ask.object(ask.checked(answer))["data"][0]["embedding"])
    assert found == half, f"an embedding of {half} dimensions has {found}"


@pytest.mark.conformance_full
def test_usage(ask: Ask) -> None:
    """`usage` counts the tokens of the input.

    Source: OpenAI API reference, Create embeddings: `usage`.
    """
    counted = ask.object(ask.post(PATH, {"input": "Hello"})).get("usage") or {}
    assert counted.get("prompt_tokens", 0) >= 1, f"no tokens: {shown(counted)}"
    assert counted.get("total_tokens") == counted.get("prompt_tokens"), f"the total is another number: {shown(counted)}"
