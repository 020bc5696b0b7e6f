"""Clean lives of a real server in debug mode: not one finding."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from pytest_infserver import LlamaCppServer

pytestmark = pytest.mark.usefixtures("hard_limit", "nothing_left")

CYCLES = 50


def test_fifty_clean_cycles_of_llamacpp_two_at_a_time(tmp_path: Path) -> None:
    said: list[str] = []
    body = {"prompt": "Hello", "max_tokens": 4}
    started = threading.Semaphore(CYCLES)

    def live(name: str) -> int:
        cycles = 0
        server = LlamaCppServer(model="builtin:tiny", name=name, output_dir=tmp_path, debug_mode=True)
        server.on_warning = said.append
        while started.acquire(blocking=False):
            with server:
                assert requests.post(server.url_for("/v1/completions"), json=body, timeout=60).ok
            report = server.leak_report
            assert report is not None
            assert report.findings == ()
            assert all("GPU" in note for note in report.not_checked)
            cycles += 1
        return cycles

    with ThreadPoolExecutor() as threads:
        cycles = list(threads.map(live, ["a", "b"]))
    assert sum(cycles) == CYCLES
    assert min(cycles) > 0
    assert said == []
