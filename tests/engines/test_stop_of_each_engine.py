"""The stop of each engine in debug mode, when no other test needs it any more; this file comes after theirs."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from pytest_infserver import InferenceServer

from .conftest import all_gone, phases_in_the_log, tree

PHASES = {
    "vllm": {"starting the engine", "loading weights", "loading weights 100 %", "preparing the model", "warming up"},
    "sglang": {
        "starting the engine",
        "loading weights",
        "loading weights 100 %",
        "allocating the KV cache",
        "warming up",
    },
    "transformers": {"loading weights", "loading weights 100 %"},
}


def last_end(server: InferenceServer) -> dict[str, Any]:
    """Return what the journal says of the last stop."""
    events = [json.loads(line) for line in server.log_path.with_name("events.jsonl").read_text().splitlines()]
    return dict([event for event in events if event["event"] == "stopped"][-1])


@pytest.mark.infserver(exclusive=True)
def test_nothing_is_left_after_the_stop(inference_server: InferenceServer) -> None:
    backend = inference_server.get_backend_name()
    assert phases_in_the_log(inference_server) >= PHASES[backend]
    processes = tree(inference_server)
    # What it must not leave is an error.
    inference_server.stop()
    assert all_gone(processes)
    leaks = last_end(inference_server).get("leaks", [])
    assert not [leak for leak in leaks if leak["fails"]]
    kinds = {leak["kind"] for leak in leaks}
    if backend == "transformers":
        assert not leaks
    elif backend == "sglang":
        assert not kinds & {"process", "port"}
    else:
        assert kinds <= {"shm", "socket", "file"}
        # Where the CPU has AVX-512, two objects more: one for each worker, and nothing else in /dev/shm.
        shared = [re.findall(r"-cpushm_(\d)", leak["text"])[:1] for leak in leaks if leak["kind"] == "shm"]
        assert sorted(shared) in ([], [["0"], ["1"]]), leaks
