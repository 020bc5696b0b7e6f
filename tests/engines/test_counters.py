"""What real engines count, against the usage that they tell their clients; llama.cpp needs no provisioned engine."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests

from pytest_infserver import InferenceServer, create_server
from pytest_infserver.reporting.record import engine_metrics
from pytest_infserver.reporting.record.engine_metrics import EngineMetrics, difference
from pytest_infserver.system.http.body import Connection

pytestmark = pytest.mark.usefixtures("nothing_left")

Make = Callable[..., InferenceServer]
LLAMA_HTTP_IDLE = 5.0
"""Seconds after which llama.cpp and uvicorn close an idle connection."""
PATIENT = 30.0


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineMetrics]:
    """Read patiently: on a machine that is busy with other things every engine is slow now and then."""
    monkeypatch.setattr(engine_metrics, "_TIMEOUT", PATIENT)
    monkeypatch.setattr(engine_metrics, "_SLOW", PATIENT)
    made = EngineMetrics()
    yield made
    made.close()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Note each question for metrics, and the status of its answer."""
    answers: list[tuple[str, int]] = []
    get = Connection.get

    def noted(self: Connection, path: str, *arguments: Any) -> tuple[int, bytes]:
        status, body = get(self, path, *arguments)
        answers.append((path, status))
        return status, body

    monkeypatch.setattr(Connection, "get", noted)
    return answers


@pytest.fixture
def make_llama(tmp_path: Path, nothing_left: None) -> Iterator[Make]:
    """Make llama.cpp servers with the tiny model: ``make_llama({"metrics": True})``."""
    pytest.importorskip("xllamacpp")
    made: list[InferenceServer] = []

    def make(arguments: Mapping[str, Any]) -> InferenceServer:
        config = {"server_args": dict(arguments)}
        server = create_server("llamacpp", model="builtin:tiny", output_dir=str(tmp_path), config=config)
        made.append(server)
        return server.start()

    yield make
    for server in made:
        server.stop()


def complete(server: InferenceServer, tokens: int, **body: Any) -> dict[str, int]:
    """Have ``tokens`` tokens generated; return the usage."""
    headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    question = {"model": server.model, "prompt": "Hello", "max_tokens": tokens, "ignore_eos": True, **body}
    if body.get("stream"):
        question["stream_options"] = {"include_usage": True}
    answer = requests.post(server.url_for("/v1/completions"), json=question, headers=headers, timeout=300)
    answer.raise_for_status()
    if not body.get("stream"):
        return dict(answer.json()["usage"])
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    return next(dict(usage) for event in reversed(events) if (usage := json.loads(event).get("usage")))


def refused(server: InferenceServer) -> None:
    body = {"model": server.model, "prompt": "Hello " * 20000, "max_tokens": 1}
    assert requests.post(server.url_for("/v1/completions"), json=body, timeout=300).status_code == 400


def agrees_with_the_usage(server: InferenceServer, metrics: EngineMetrics, rounds: int) -> dict[str, float]:
    """Let a server work and compare what it counts with what it tells; return what it has counted."""
    before = metrics.read(server)
    usages = []
    for number in range(1, rounds + 1):
        first = metrics.read(server)
        usage = complete(server, number, stream=number % 2 == 0, prompt="Hello " * number)
        counted = difference(first, metrics.read(server))
        # At once, after every single one: nothing comes late.
        assert counted is not None
        assert counted["generated_tokens"] == usage["completion_tokens"] == number
        assert counted["prompt_tokens"] == usage["prompt_tokens"]
        assert counted.get("requests") in (None, 1)
        usages.append(usage)
    refused(server)
    total = difference(before, metrics.read(server))
    assert total is not None
    assert total["prompt_tokens"] == sum(usage["prompt_tokens"] for usage in usages)
    assert total["generated_tokens"] == rounds * (rounds + 1) / 2
    return total


def test_llama_counts_the_tokens(make_llama: Make, metrics: EngineMetrics) -> None:
    server = make_llama({"metrics": True, "api-key": "sk-secret"})
    before = metrics.read(server)
    usages = [complete(server, 7) for _ in range(5)]
    after = metrics.read(server)
    # The prompt is the same each time, and comes from the cache after the first one.
    assert usages[0]["prompt_tokens"] > 1
    assert difference(before, after) == {
        "prompt_tokens": 5 * usages[0]["prompt_tokens"],
        "generated_tokens": 5 * 7,
    }
    assert difference(after, metrics.read(server)) == {"prompt_tokens": 0, "generated_tokens": 0}


def test_llama_agrees_with_the_usage(make_llama: Make, metrics: EngineMetrics) -> None:
    assert set(agrees_with_the_usage(make_llama({"metrics": True}), metrics, 20)) == {
        "prompt_tokens",
        "generated_tokens",
    }


def test_llama_without_metrics_is_asked_once(
    make_llama: Make, metrics: EngineMetrics, asked: list[tuple[str, int]]
) -> None:
    server = make_llama({})
    assert [metrics.read(server) for _ in range(3)] == [None] * 3
    assert asked == [("/metrics", 501)]


def test_llama_that_is_killed_and_started_again(make_llama: Make, metrics: EngineMetrics) -> None:
    server = make_llama({"metrics": True})
    complete(server, 2)
    before = metrics.read(server)
    assert before is not None
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    # Before anybody knows of its death, and afterwards; neither waits as long as one that does not answer.
    begin = time.monotonic()
    assert metrics.read(server) is None
    assert time.monotonic() - begin < PATIENT
    assert server.wait_death(60)
    assert metrics.read(server) is None
    server.start()
    complete(server, 9)
    counted = difference(before, metrics.read(server))
    assert counted is not None
    assert counted["generated_tokens"] == 9


def test_llama_that_is_stopped_for_a_moment_costs_two_slow_readings(make_llama: Make) -> None:
    server = make_llama({"metrics": True})
    metrics = EngineMetrics()
    assert metrics.read(server) is not None
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        assert [metrics.read(server) for _ in range(200)] == [None] * 200
        # Two of them wait, 2 s each.
        assert time.monotonic() - begin < 100
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert complete(server, 3)["completion_tokens"] == 3
    metrics.close()


def test_an_idle_connection_is_in_nobodys_way(make_llama: Make, metrics: EngineMetrics) -> None:
    # Its only thread would wait for the end of the connection.
    server = make_llama({"metrics": True, "threads-http": 1})

    def ask() -> None:
        assert metrics.read(server) is not None

    def restart() -> None:
        server.start()
        ask()

    assert is_quick(lambda: complete(server, 1), before=ask)
    assert is_quick(server.stop, before=restart)


def is_quick(action: Callable[[], object], before: Callable[[], object]) -> bool:
    """Return whether something does not wait for an idle connection; once more if the machine may have been busy."""
    for _ in range(4):
        before()
        begin = time.monotonic()
        action()
        if time.monotonic() - begin < LLAMA_HTTP_IDLE - 1:
            return True
    return False


def test_a_connection_that_llama_has_closed(make_llama: Make, metrics: EngineMetrics) -> None:
    server = make_llama({"metrics": True})
    # It closes a connection after 100 requests, and after 5 s without one.
    readings = [metrics.read(server) for _ in range(250)]
    time.sleep(LLAMA_HTTP_IDLE + 1)
    readings.append(metrics.read(server))
    assert None not in readings


@pytest.mark.infserver(exclusive=True)
@pytest.mark.backend("vllm", "sglang")
def test_engine_agrees_with_the_usage(inference_server: InferenceServer, metrics: EngineMetrics) -> None:
    counted = agrees_with_the_usage(inference_server, metrics, 10)
    assert counted["requests"] == 10
    assert counted["errors"] == 1


@pytest.mark.backend("vllm")
def test_vllm_is_asked_for_a_selection_after_the_first_time(
    inference_server: InferenceServer, metrics: EngineMetrics, asked: list[tuple[str, int]]
) -> None:
    assert None not in [metrics.read(inference_server) for _ in range(3)]
    first, *others = asked
    assert first == ("/metrics", 200)
    assert len(others) == 2
    assert all("name[]=" in path and status == 200 for path, status in others), others


@pytest.mark.nightly
@pytest.mark.engine("vllm")
def test_vllm_with_several_api_servers(make_server: Make, metrics: EngineMetrics) -> None:
    """They share their counters through files, and cannot select."""
    with make_server("vllm", {"api-server-count": 2}) as server:
        counted = agrees_with_the_usage(server, metrics, 6)
        assert counted["requests"] == 6
        assert counted["errors"] == 1


@pytest.mark.backend("transformers")
def test_transformers_has_none_and_is_asked_once(
    inference_server: InferenceServer, metrics: EngineMetrics, asked: list[tuple[str, int]]
) -> None:
    assert [metrics.read(inference_server) for _ in range(3)] == [None] * 3
    assert asked == [("/metrics", 404)]
