"""What each engine answers when the plugin has started it; all tests of one engine share one server.

SGLang runs with stubbed kernels here: its command line, processes, HTTP and shutdown are the real ones, its arithmetic
is PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable

import openai
import pytest

from pytest_infserver import InferenceServer

from .answers import CHECKS


@pytest.mark.parametrize("check", [pytest.param(check, id=check.__name__) for check in CHECKS])
def test_answers(inference_server: InferenceServer, check: Callable[[InferenceServer], None]) -> None:
    check(inference_server)


def test_client(inference_server: InferenceServer, inference_client: openai.OpenAI) -> None:
    answer = inference_client.chat.completions.create(
        model=inference_server.model, messages=[{"role": "user", "content": "Hello"}], max_tokens=4
    )
    assert answer.choices[0].message.content


@pytest.mark.backend("vllm")
def test_an_option_that_vllm_has_dropped_was_left_out(inference_server: InferenceServer) -> None:
    assert "--disable-log-requests" in inference_server.get_launch_command()
    assert "--disable-log-requests" not in inference_server.command().argv
