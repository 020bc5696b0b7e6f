"""Which documents fit a question best."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.shapes import shown

DOCUMENTS = ["Paris is the capital of France.", "Bread is made of flour.", "France is in Europe."]
BODY: dict[str, Any] = {"query": "What is the capital of France?", "documents": DOCUMENTS}


def _results(ask: Ask, **extra: Any) -> list[dict[str, Any]]:
    answer = ask.object(ask.post("/v1/rerank", {**BODY, **extra}))
    results = answer.get("results")
    assert isinstance(results, list), f"'results' is no list: {shown(answer)}"
    return results


@pytest.mark.conformance_full
def test_all(ask: Ask) -> None:
    """Each document has a result, with its index and its score.

    Source: Jina's and Cohere's rerank API, which vLLM and llama.cpp follow.
    """
    results = _results(ask)
    assert sorted(one.get("index", -1) for one in results) == [0, 1, 2], f"not one for each document: {shown(results)}"
    assert all(isinstance(one.get("relevance_score"), (int, float)) for one in results), f"no score: {shown(results)}"


@pytest.mark.conformance_full
def test_best_first(ask: Ask) -> None:
    """The document with the highest score comes first.

    Source: Jina's and Cohere's rerank API.
    """
    scores = [one["relevance_score"] for one in _results(ask)]
    assert scores == sorted(scores, reverse=True), f"the scores are {scores}"


@pytest.mark.conformance_full
def test_top_n(ask: Ask) -> None:
    """`top_n` is how many results there are.

    Source: Jina's and Cohere's rerank API.
    """
    results = _results(ask, top_n=1)
    assert len(results) == 1, f"{len(results)} results for top_n 1"
