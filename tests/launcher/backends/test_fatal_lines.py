"""Log lines after which an engine will not become ready, and lines of a start that goes well."""

from __future__ import annotations

import pytest

from pytest_infserver import InferenceServer, LlamaCppServer, SGLangServer, TransformersServer, VLLMServer


@pytest.mark.parametrize(
    ("backend", "line", "fatal"),
    [
        (VLLMServer, "RuntimeError: Engine core initialization failed. See root cause above.", True),
        (VLLMServer, "(EngineCore pid=7) INFO 11-22 19:01:02 [core.py:93] Initializing a V1 LLM engine", False),
        (SGLangServer, "[2026-11-22 19:01:02] Scheduler hit an exception: Traceback (most recent call last):", True),
        (SGLangServer, "[2026-11-22 19:01:02] The server is fired up and ready to roll!", False),
        (LlamaCppServer, "0.00.005.333 E srv          init: exiting due to model loading error", True),
        (LlamaCppServer, "start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8000", True),
        (LlamaCppServer, "0.00.007.587 I srv          init: loading model", False),
        (TransformersServer, "ERROR: [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000)", True),
        (TransformersServer, "INFO:     Application startup complete.", False),
    ],
)
def test_fatal_lines(backend: type[InferenceServer], line: str, fatal: bool) -> None:
    assert any(pattern.search(line.encode()) for pattern in backend.fatal_patterns) is fatal
