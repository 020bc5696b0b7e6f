"""`trace.json` by the rules of the Trace Event Format. Perfetto itself: tests/engines/test_trace_in_perfetto.py."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from reporting.timeline.records import sample_record, with_odd_values

from pytest_infserver.reporting.record.run_files import RunFiles
from pytest_infserver.reporting.timeline.trace_events import LIFE, PERIOD, PIDS, TESTS, trace_events, trace_text

Event = dict[str, Any]


def check(trace: dict[str, Any]) -> list[Event]:
    """Assert what every trace must keep to, and return its events."""
    text = json.dumps(trace, allow_nan=False)
    assert json.loads(text) == trace
    text.encode("ascii")
    assert "\\ud8" not in text
    names: set[tuple[int, int]] = set()
    for event in trace["traceEvents"]:
        assert event["ph"] in "MXiC"
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["name"], str)
        assert event["name"]
        assert event["args"].get("name") != ""
        assert isinstance(event["ts"], int)
        assert 0 <= event["ts"] + event.get("dur", 0) < 2**63 / 1000
        assert event["ts"] >= 0
        assert isinstance(event["args"], dict)
        if event["ph"] == "X":
            assert isinstance(event["dur"], int)
            assert event["dur"] >= 0
        if event["ph"] == "i":
            assert event["s"] in "gpt"
        if event["ph"] == "C":
            assert all(isinstance(value, (int, float)) for value in event["args"].values())
        if event["name"] == "thread_name":
            names.add((event["pid"], event["tid"]))
    assert {(event["pid"], event["tid"]) for event in slices(trace)} <= names
    check_nesting(trace)
    return trace["traceEvents"]


def slices(trace: dict[str, Any]) -> list[Event]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def check_nesting(trace: dict[str, Any]) -> None:
    """Assert that of two slices of one thread that overlap the one holds the other."""
    threads = defaultdict(list)
    for event in slices(trace):
        threads[event["pid"], event["tid"]].append(event)
    for events in threads.values():
        stack: list[int] = []
        for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
            while stack and stack[-1] <= event["ts"]:
                stack.pop()
            end = event["ts"] + event["dur"]
            assert not stack or end <= stack[-1], event
            stack.append(end)


def test_servers_are_processes_and_tests_are_slices_with_their_phases() -> None:
    record = sample_record()
    trace = trace_events(record)
    events = check(trace)
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {PIDS: "llama-tp1", PIDS + 1: "llama-tp2", PIDS + 2: "staging", PIDS + 3: "tests without a server"}
    base = trace["baseTimeNanoseconds"] // 1000
    tests = {
        (event["name"].removeprefix("FAILED ").removeprefix("ERROR "), event["ts"] + base, event["dur"])
        for event in slices(trace)
        if event["cat"] == "test"
    }
    assert len(tests) == len(record["tests"])
    for test in record["tests"]:
        begin, end = round(test["started"] * 1e6), round(test["ended"] * 1e6)
        assert (test["id"], begin, end - begin) in tests
    [first] = [event for event in slices(trace) if record["tests"][0]["id"] in event["name"]]
    at = events.index(first)
    inner = events[at + 1 : at + 4]
    assert [event["name"] for event in inner] == ["setup", "call", "teardown"]
    assert inner[2]["ts"] + inner[2]["dur"] == first["ts"] + first["dur"]
    assert first["args"]["outcome"] == "passed"
    assert first["args"]["prompt_tokens"] == record["tests"][0]["servers"][0]["metrics"]["prompt_tokens"]


def test_a_life_has_its_boot_and_a_death_and_a_restart_their_marks() -> None:
    record = sample_record()
    events = check(trace_events(record))
    life = [event for event in events if event["pid"] == PIDS and event["tid"] == LIFE]
    named = [event["name"] for event in life if event["ph"] in "Xi"]
    assert named[:7] == [
        "boot",
        "importing",
        "loading weights",
        "compiling",
        "capturing CUDA graphs",
        "starting HTTP",
        "ready",
    ]
    assert "died: killed by SIGKILL (by the kernel for memory)" in named
    assert named.count("boot") == 2
    assert named.count("restart") == 1
    assert named[-1] == "stopping"
    counters = {event["name"] for event in events if event["ph"] == "C"}
    assert counters == {"memory (bytes)", "GPU memory (bytes)", "heartbeat (ms)"}
    assert sum(event["name"] == "heartbeat failed" for event in events) == 2


def test_a_life_on_a_cluster_says_on_which_node_it_was() -> None:
    record = sample_record()
    assert not [event for event in check(trace_events(record)) if "node" in event["args"]]
    first, again = record["servers"][0]["lives"]
    first["node"], again["node"] = "gpu-1 (10.0.0.7)", "gpu-2 (10.0.0.8)"
    told = [
        (event["name"].partition(":")[0], event["args"]["node"])
        for event in check(trace_events(record))
        if "node" in event["args"]
    ]
    assert told == [
        *((name, "gpu-1 (10.0.0.7)") for name in ("boot", "ready", "died")),
        *((name, "gpu-2 (10.0.0.8)") for name in ("boot", "ready", "stopping")),
    ]


def test_tests_at_the_same_time_are_on_threads_of_their_own() -> None:
    record = sample_record(200, workers=8)
    events = check(trace_events(record))
    threads = {event["tid"] for event in events if event.get("cat") == "test" and event["pid"] == PIDS}
    assert threads == set(range(TESTS, TESTS + len(threads)))
    assert 4 <= len(threads) <= 8


def test_times_count_from_where_pytorchs_profiler_counts() -> None:
    record = sample_record()
    trace = trace_events(record)
    assert trace["baseTimeNanoseconds"] % (PERIOD * 10**9) == 0
    assert 0 <= record["started"] - trace["baseTimeNanoseconds"] / 1e9 < PERIOD


def test_a_server_from_before_the_period_is_cut_off_at_its_begin() -> None:
    record = sample_record()
    life = record["servers"][1]["lives"][0]
    life.update(launched=record["started"] - 2 * PERIOD, ready=record["started"] - PERIOD, taken_over=True)
    events = check(trace_events(record))
    [ready] = [event for event in events if event["pid"] == PIDS + 1 and event["name"] == "ready"]
    base = trace_events(record)["baseTimeNanoseconds"] / 1e9
    assert ready["ts"] == 0
    assert ready["dur"] == pytest.approx((life["stopping"] - base) * 1e6, abs=1)


def test_what_still_runs_goes_on_to_the_end() -> None:
    record = sample_record()
    life = record["servers"][1]["lives"][0]
    life.update(stopping=None, ended=None, end="kept")
    events = check(trace_events(record))
    [ready] = [event for event in events if event["pid"] == PIDS + 1 and event["name"] == "ready"]
    assert ready["dur"] == pytest.approx((record["ended"] - life["ready"]) * 1e6, abs=1)


def test_a_server_that_was_never_ready_has_a_boot_that_failed() -> None:
    record = sample_record(0)
    ended = record["servers"][1]["lives"][0]["launched"] + 9
    record["servers"][1]["lives"][0].update(ready=None, stopping=None, ended=ended, end="failed", how="exit code 3")
    events = check(trace_events(record))
    mine = [event for event in events if event["pid"] == PIDS + 1 and event["ph"] in "Xi"]
    [boot] = [event for event in mine if event["name"] == "boot"]
    assert boot["dur"] == 9_000_000
    assert [event["ts"] for event in mine if event["name"] == "failed: exit code 3"] == [boot["ts"] + boot["dur"]]


@pytest.mark.parametrize("seed", range(60))
def test_no_value_breaks_the_trace(seed: int) -> None:
    check(trace_events(with_odd_values(sample_record(20, points=8), seed)))


def test_an_empty_record_is_an_empty_trace() -> None:
    assert check(trace_events({})) == []


def test_the_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = RunFiles(tmp_path)
    path = files.write("trace.json", lambda: trace_text(sample_record()))
    before = path.read_bytes()
    check(json.loads(before))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        files.write("trace.json", lambda: trace_text(sample_record(20)))
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == [".run.lock", "trace.json"]
