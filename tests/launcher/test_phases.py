"""What the engines' log lines say of where a start is; the lines are those of the versions in the backends' files."""

from __future__ import annotations

import re
import time

import pytest

from pytest_infserver import InferenceServer, LlamaCppServer, SGLangServer, TransformersServer, VLLMServer
from pytest_infserver.launcher.startup.phases import Phase, newest_phase

LINES = [
    (
        VLLMServer,
        "(EngineCore pid=1) INFO 11-24 [core.py:133] Initializing a V1 LLM engine (v0.32.0)",
        "starting the engine",
    ),
    (VLLMServer, "(Worker pid=2) INFO 11-24 [cpu_model_runner.py:68] Starting to load model /m...", "loading weights"),
    (
        VLLMServer,
        "Loading safetensors checkpoint shards:  43% Completed | 3/7 [00:00<?, ?it/s]",
        "loading weights 43 %",
    ),
    (
        VLLMServer,
        "(Worker pid=2) INFO [default_loader.py:501] Loading weights took 0.33 seconds",
        "preparing the model",
    ),
    (VLLMServer, "INFO [backends.py:1] Dynamo bytecode transform time: 5.31 s", "compiling"),
    (VLLMServer, "INFO [backends.py:2] Compiling a graph for compile range (1, 8192) takes 9 s", "compiling"),
    (
        VLLMServer,
        "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  67%|██████▋   | 45/67",
        "capturing graphs 67 %",
    ),
    (VLLMServer, "INFO [kv_cache_utils.py:2327] CPU KV cache size: 46,592 tokens", "warming up"),
    (VLLMServer, "(APIServer pid=1) INFO [entry.py:140] Starting vLLM server on http://127.0.0.1:8000", "nearly ready"),
    (SGLangServer, "[2026-11-24 11:28:04] Init parallel begin.", "starting the engine"),
    (SGLangServer, "[2026-11-24 11:28:04] Init torch distributed begin.", "starting the engine"),
    (SGLangServer, "[2026-11-24 11:28:07] Load weight begin. avail mem=21.43 GB", "loading weights"),
    (SGLangServer, "Multi-thread loading shards:  43% Completed | 3/7 [00:00<?, ?it/s]", "loading weights 43 %"),
    (SGLangServer, "Loading safetensors checkpoint shards:  14% Completed | 1/7", "loading weights 14 %"),
    (SGLangServer, "[2026-11-24 11:28:10] KV Cache is allocated. dtype: torch.float32", "allocating the KV cache"),
    (
        SGLangServer,
        "[2026-11-24 11:28:10] Capture cuda graph begin. This can take up to several minutes.",
        "capturing graphs",
    ),
    (SGLangServer, "Capturing batches (bs=128 avail_mem=20.1 GB):  26%|██▌       | 6/23", "capturing graphs 26 %"),
    (SGLangServer, "[2026-11-24 11:28:10] INFO:     Application startup complete.", "warming up"),
    (SGLangServer, "[2026-11-24 11:28:12] The server is fired up and ready to roll!", "nearly ready"),
    (TransformersServer, "[transformers] Loading /models/m@main", "loading weights"),
    (TransformersServer, "Loading weights:  50%|█████     | 136/272 [00:00<00:00]", "loading weights 50 %"),
    (TransformersServer, "INFO:     Application startup complete.", "nearly ready"),
    (LlamaCppServer, "srv    load_model: loading model '/models/m.gguf'", "loading weights"),
    (LlamaCppServer, "common_init_from_params: warming up the model with an empty run", "warming up"),
    (LlamaCppServer, "main: server is listening on http://127.0.0.1:8000", "nearly ready"),
]


@pytest.mark.parametrize(("backend", "line", "phase"), LINES)
def test_a_line(backend: type[InferenceServer], line: str, phase: str) -> None:
    assert newest_phase([line.encode()], backend.phases) == phase


@pytest.mark.parametrize("backend", [VLLMServer, SGLangServer, TransformersServer, LlamaCppServer])
def test_lines_that_tell_nothing(backend: type[InferenceServer]) -> None:
    assert newest_phase([b"INFO nothing of note", b"", b"\xff\xfe"], backend.phases) is None


def test_the_last_line_counts_not_the_first_pattern() -> None:
    phases = (Phase(re.compile(rb"one (\d+)"), "one {} %"), Phase(re.compile(rb"two"), "two"))
    assert newest_phase([b"one 1", b"two", b"x"], phases) == "two"
    assert newest_phase([b"two", b"one 1", b"one 2"], phases) == "one 2 %"
    assert newest_phase([], phases) is None


def test_a_group_that_did_not_take_part_is_empty() -> None:
    assert newest_phase([b"weights"], (Phase(re.compile(rb"weights(?: (\d+))?"), "weights{}"),)) == "weights"


@pytest.mark.parametrize("backend", [VLLMServer, SGLangServer, TransformersServer, LlamaCppServer])
@pytest.mark.parametrize("unit", [b"Capturing CUDA graphs ", b"Capturing batches", b"1", b"Loading "])
def test_no_pattern_is_slow(backend: type[InferenceServer], unit: bytes) -> None:
    line = unit * (1024 // len(unit))
    begin = time.process_time()
    for _ in range(20):
        newest_phase([line], backend.phases)
    assert time.process_time() - begin < 2
