"""Which models a server says that it has."""

from __future__ import annotations

import pytest

from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.shapes import shown


def test_list(ask: Ask) -> None:
    """`GET /v1/models` is a list of at least one model, each with an `id`.

    Source: OpenAI API reference, List models: an object `list` whose `data` are objects `model`.
    """
    answer = ask.object(ask.get("/v1/models"))
    assert answer.get("object") == "list", f"'object' is not 'list': {shown(answer)}"
    models = answer.get("data")
    assert isinstance(models, list) and models, f"'data' is no list of models: {shown(answer)}"  # noqa: PT018
    for model in models:
        assert isinstance(model.get("id"), str), f"a model has no 'id': {shown(model)}"
        assert model.get("object") == "model", f"a model's 'object' is not 'model': {shown(model)}"


@pytest.mark.conformance_full
def test_fields(ask: Ask) -> None:
    """Each model says when it was created, as a whole number of seconds, and who owns it.

    Source: OpenAI API reference, the model object: `created` and `owned_by` are required.
    """
    for model in ask.object(ask.get("/v1/models"))["data"]:
        assert isinstance(model.get("created"), int), f"'created' is no whole number: {shown(model)}"
        assert isinstance(model.get("owned_by"), str), f"'owned_by' is no text: {shown(model)}"


@pytest.mark.conformance_full
def test_retrieve(ask: Ask) -> None:
    """`GET /v1/models/{id}` describes the model of that id.

    Source: OpenAI API reference, Retrieve model.
    """
    answer = ask.object(ask.get(ask.model_path(ask.model)))
    assert answer.get("id") == ask.model, f"'id' is not {ask.model!r}: {shown(answer)}"


@pytest.mark.conformance_full
def test_retrieve_unknown(ask: Ask) -> None:
    """A model that is not there is answered with 404 and an error.

    Source: OpenAI API reference, Retrieve model, and error codes: 404, `model_not_found`.
    """
    ask.get(ask.model_path(ask.model))
    answer = ask.send("GET", "/v1/models/no-such-model")
    assert answer.status == 404, f"expected 404, not {answer.short}"
    assert isinstance(answer.json().get("error"), dict), f"no object 'error': {answer.short}"
