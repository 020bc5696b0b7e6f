"""Text to tokens and back, where a server has that."""

from __future__ import annotations

import pytest

from pytest_infserver.conformance.asking.ask import Ask
from pytest_infserver.conformance.asking.shapes import shown

_TEXTS = ("Hello world", "Grüße, 你好 👋🏽", "  two blanks\n\tand a tab")


@pytest.mark.conformance_full
@pytest.mark.parametrize("said", _TEXTS, ids=["ascii", "unicode", "blanks"])
def test_round_trip(ask: Ask, said: str) -> None:
    """`/detokenize` gives back the text whose tokens `/tokenize` has told.

    Source: the endpoints of llama.cpp (`content`), of vLLM and SGLang (`prompt`), which take each other's fields.
    """
    body = {"prompt": said, "content": said, "add_special_tokens": False, "add_special": False}
    tokens = ask.object(ask.post("/tokenize", body)).get("tokens")
    assert isinstance(tokens, list) and tokens, f"'tokens' is no list: {shown(tokens)}"  # noqa: PT018
    answer = ask.object(ask.post("/detokenize", {"tokens": tokens}))
    back = next((answer[name] for name in ("content", "prompt", "text") if isinstance(answer.get(name), str)), None)
    assert back is not None, f"no text: {shown(answer)}"
    # Some tokenizers put a blank before the first word.
    assert back in (said, f" {said}"), f"{said!r} became {back!r}"
