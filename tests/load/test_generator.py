"""Loads on a stand-in, good and bad, through the generator's own process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from pytest_infserver import InferenceServerError, create_server
from pytest_infserver.load.running import LoadInterrupted

SHORT = {"prompt_tokens": 20, "output_tokens": 8, "requests": 12}


def seen(server):
    import requests

    return requests.get(server.url_for("/seen"), timeout=20).json()


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("how", [{"concurrency": 3}, {"rate": 200.0}])
def test_each_way_to_send(instant, api, how) -> None:
    server = instant()
    found = server.load(**SHORT, **how, api=api, warmup=2, extra_body={"top_k": 3})
    assert (found.completed, found.failed) == (12, 0), found.failures
    assert found.ttft.count == found.e2e.count == 12
    assert sum(one.output_tokens for one in found.samples) == 12 * 8
    assert all(one.prompt_tokens == 20 for one in found.samples)
    assert found.prompts == "the server's tokenizer"
    assert 0 < found.generator_share
    bodies = seen(server)
    assert len(bodies) == 14
    assert {body["top_k"] for body in bodies} == {3}
    assert all(body["stream_options"] == {"include_usage": True} for body in bodies)


def test_whole_answers_and_a_duration(instant) -> None:
    found = instant("--no-tokenizer").load(duration=0.3, concurrency=2, stream=False, output_tokens=3)
    assert found.completed > 2
    assert found.ttft.count == 0
    assert found.seconds >= 0.3
    assert "no tokenizer endpoint" in found.prompts


def test_parts_of_several_tokens_are_counted_as_usage_says(instant) -> None:
    found = instant("--gap", "0.002", "--tokens-per-chunk", "4").load(**SHORT)
    assert found.itl.count <= 12
    assert sum(one.output_tokens for one in found.samples) == 12 * 8
    # Four tokens in 8 ms are 2 ms for each, not 8.
    assert found.tpot.p50 < 0.9 * found.itl.p50


@pytest.mark.parametrize(
    ("fault", "kind", "text"),
    [
        ("error", "status 500", "out of pixie dust"),
        ("garbage", "garbage", "no JSON"),
        ("close", "cut off", ""),
        ("endless", "endless", "of an answer of at most 8 tokens"),
    ],
)
def test_bad_answers_are_failures_of_their_kind(instant, fault, kind, text) -> None:
    found = instant("--fault", fault, "--healthy", "4").load(**SHORT, concurrency=2)
    assert (found.completed, found.failed) == (4, 8)
    assert list(found.failures) == [kind]
    assert found.failures[kind][0] == 8
    assert text in found.failures[kind][1]
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_stream_that_never_ends_ends_at_the_limit(instant) -> None:
    found = instant("--fault", "endless").load(requests=2, output_tokens=4000, prompt_tokens=1, timeout=0.5)
    # The answer itself is quick: what never ends comes after it.
    assert found.failures["timeout"] == (2, "not complete after 0.5 s")


def test_answers_without_usage_have_no_number_of_tokens(instant) -> None:
    found = instant("--fault", "no-usage").load(**SHORT)
    assert found.failed == 0
    assert not found.output_tokens_per_second > 0


def test_a_workload_longer_than_the_context(instant) -> None:
    found = instant("--context", "24").load(**SHORT)
    assert found.failures == {"status 400": (12, "the context is 24 tokens")}


@pytest.mark.parametrize("how", [{"concurrency": 4, "duration": 60.0}, {"rate": 100.0, "duration": 60.0}])
def test_a_server_that_stops_in_the_middle(instant, how) -> None:
    server = instant("--fault", "exit", "--healthy", "10")
    found = server.load(prompt_tokens=5, output_tokens=4, **how)
    assert found.completed >= 5
    assert found.failures["no connection"][0] >= 20
    assert found.interrupted == "the server could not be reached any more"
    assert found.seconds < 60


def test_a_server_that_does_not_run(instant) -> None:
    server = instant()
    server.stop()
    with pytest.raises(InferenceServerError, match="does not run"):
        server.load()


def test_a_key_a_prefix_and_what_secrets_become(instant, monkeypatch) -> None:
    server = instant("--context", "1", api_key="abcdefghij-secret")
    found = server.load(requests=1)
    assert "abcdefghij-secret" not in json.dumps(found.as_dict())


def test_ctrl_c_gives_the_result_so_far(instant) -> None:
    server = instant("--gap", "0.01")
    timer = threading.Thread(target=lambda: (wait_for_requests(server), os.kill(os.getpid(), signal.SIGINT)))
    timer.start()
    with pytest.raises(LoadInterrupted) as caught:
        server.load(duration=100.0, concurrency=2, output_tokens=10)
    timer.join()
    found = caught.value.result
    assert isinstance(caught.value, KeyboardInterrupt)
    assert found.completed >= 1
    assert found.interrupted == "interrupted"
    assert "ended early: interrupted" in found.notes


def test_ctrl_c_before_anything_is_measured(instant) -> None:
    server = instant("--gap", "0.01")
    timer = threading.Thread(target=lambda: (wait_for_requests(server), os.kill(os.getpid(), signal.SIGINT)))
    timer.start()
    with pytest.raises(LoadInterrupted) as caught:
        server.load(requests=1, concurrency=8, warmup=20, prompt_tokens=5, output_tokens=100_000)
    timer.join()
    found = caught.value.result
    assert "no request was sent" in found.notes
    # What it says at its end: it did not have to be ended.
    assert found.prompts == "the server's tokenizer"
    json.dumps(found.as_dict(), allow_nan=False)


def wait_for_requests(server):
    while len(seen(server)) < 6:
        time.sleep(0.05)


def test_the_generator_ends_with_whoever_has_started_it(instant, tmp_path: Path) -> None:
    server = instant("--gap", "0.01")
    code = (
        "from pytest_infserver import create_server\n"
        f"create_server('remote', url={server.server_url!r}).start().load(duration=100.0)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    wait_for_requests(server)
    child.kill()
    child.wait()
    # That nothing is left is what the fixture nothing_left looks at.


def test_patches_of_the_test_reach_nothing(instant, monkeypatch) -> None:
    server = instant(model="mine")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("patched"))
    monkeypatch.setattr(time, "monotonic", lambda: 7.0)
    assert server.load(requests=3).completed == 3


def test_an_attached_server_that_is_gone(instant) -> None:
    server = instant()
    attached = create_server("remote", url=server.server_url).start()
    assert attached.load(requests=2).completed == 2
    server.stop()
    found = attached.load(requests=50)
    assert found.completed == 0
    assert found.failures["no connection"][0] >= 20
