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
from .conftest import title, tree

RANKS = {
    "vllm": ("VLLM::EngineCore", "VLLM::Worker_TP0", "VLLM::Worker_TP1"),
    "sglang": ("scheduler_TP0", "scheduler_TP1", "sglang::detokenizer"),
}
"""Words of the titles of the processes on two ranks."""


@pytest.mark.parametrize("check", [pytest.param(check, id=check.__name__) for check in CHECKS])
def test_answers(inference_server: InferenceServer, check: Callable[[InferenceServer], None]) -> None:
    check(inference_server)


def test_client(inference_server: InferenceServer, inference_client: openai.OpenAI) -> None:
    answer = inference_client.chat.completions.create(
        model=inference_server.model, messages=[{"role": "user", "content": "Hello"}], max_tokens=6, temperature=0
    )
    assert answer.choices[0].message.content


@pytest.mark.backend("vllm")
def test_an_option_that_vllm_has_dropped_was_left_out(inference_server: InferenceServer) -> None:
    assert "--disable-log-requests" in inference_server.get_launch_command()
    assert "--disable-log-requests" not in inference_server.command().argv


@pytest.mark.backend(*RANKS)
def test_each_rank_has_its_process(inference_server: InferenceServer) -> None:
    titles = " ".join(map(title, tree(inference_server)))
    assert all(name in titles for name in RANKS[inference_server.get_backend_name()]), titles
