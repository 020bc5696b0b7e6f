"""Clean lives of a real server in debug mode: not one finding."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from pytest_infserver import LlamaCppServer

pytestmark = pytest.mark.usefixtures("hard_limit", "nothing_left")


@pytest.mark.parametrize("cycles", [10, pytest.param(50, marks=pytest.mark.nightly)])
def test_clean_cycles_of_llamacpp_two_at_a_time(tmp_path: Path, cycles: int) -> None:
    said: list[str] = []
    body = {"prompt": "Hello", "max_tokens": 4}
    left = threading.Semaphore(cycles)

    def live(name: str) -> int:
        lived = 0
        server = LlamaCppServer(model="builtin:tiny", name=name, output_dir=tmp_path, debug_mode=True)
        server.on_warning = said.append
        while left.acquire(blocking=False):
            with server:
                assert requests.post(server.url_for("/v1/completions"), json=body, timeout=60).ok
            report = server.leak_report
            assert report is not None
            assert report.findings == ()
            assert all("GPU" in note for note in report.not_checked)
            lived += 1
        return lived

    with ThreadPoolExecutor() as threads:
        lived = list(threads.map(live, ["a", "b"]))
    assert sum(lived) == cycles
    assert min(lived) > 0
    assert said == []
