"""`trace.json` in the real Perfetto: every slice, mark and counter arrives where it belongs; and beside PyTorch's."""

from __future__ import annotations

import json
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from reporting.timeline.records import sample_record, with_odd_values

from pytest_infserver.reporting.timeline.trace_events import trace_text

from .provision import environment

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from .perfetto import Perfetto

pytestmark = [pytest.mark.engine("chromium")]

PROFILE = """
import sys, time, torch
from torch.profiler import ProfilerActivity, profile

with profile(activities=[ProfilerActivity.CPU]) as profiler:
    for _ in range(5):
        torch.ones(64, 64) @ torch.ones(64, 64)
        time.sleep(0.01)
profiler.export_chrome_trace(sys.argv[1])
"""


@pytest.fixture(scope="module")
def perfetto(running: Browser) -> Iterator[Callable[..., Perfetto]]:
    from .perfetto import opened, served

    with served() as address:
        yield lambda trace, slices: opened(running, address, trace, slices)


@pytest.fixture
def show(perfetto: Callable[..., Perfetto], tmp_path: Path) -> Callable[[dict[str, Any]], tuple[Perfetto, list[Any]]]:
    def go(record: dict[str, Any]) -> tuple[Perfetto, list[Any]]:
        path = tmp_path / "trace.json"
        path.write_text(trace_text(record))
        events = json.loads(path.read_text())["traceEvents"]
        return perfetto(path, sum(event["ph"] in "Xi" for event in events)), events

    return go


def test_all_of_the_trace_arrives(show: Callable[..., tuple[Perfetto, list[Any]]]) -> None:
    record = sample_record(400, servers=5, workers=8, points=200)
    trace, events = show(record)
    assert trace.complaints() == []
    for phase, table in (("Xi", "slice"), ("C", "counter")):
        count = sum(event["ph"] in phase for event in events)
        assert trace.ask(f"select count(*) from {table}") == [[count]]
    names = [name for [name] in trace.ask("select distinct name from process where name is not null order by pid")]
    assert names == [*(server["name"] for server in record["servers"]), "tests without a server"]
    tests = trace.ask("select ts, dur, name from slice where category = 'test' order by ts, name")
    written = [event for event in events if event.get("cat") == "test"]
    assert tests == sorted([event["ts"] * 1000, event["dur"] * 1000, event["name"]] for event in written)
    assert len(tests) == 400
    # Nested where they belong: each phase in its test or boot, each test and boot in nothing.
    wrong = "select count(*) from slice child join slice parent on child.parent_id = parent.id where "
    assert trace.ask(f"{wrong} child.category = 'phase' and parent.category not in ('test', 'server')") == [[0]]
    assert trace.ask("select count(*) from slice where category = 'phase' and parent_id is null") == [[0]]
    assert trace.ask("select count(*) from slice where category = 'test' and parent_id is not null") == [[0]]
    [[outcome]] = trace.ask(
        "select display_value from args join slice using (arg_set_id) "
        "where slice.name like 'ERROR %' and key = 'args.outcome' limit 1"
    )
    assert outcome == "error"
    [[died]] = trace.ask("select name from slice where name like 'died%'")
    assert died == "died: killed by SIGKILL (by the kernel for memory)"


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (2, 5))])
def test_odd_values_do_not_spoil_the_trace(show: Callable[..., tuple[Perfetto, list[Any]]], seed: int) -> None:
    trace, events = show(with_odd_values(sample_record(60, points=20), seed))
    assert trace.complaints() == []
    assert trace.ask("select count(*) from slice") == [[sum(event["ph"] in "Xi" for event in events)]]


@pytest.mark.engine("transformers", "chromium")
def test_in_one_archive_with_pytorchs_trace_both_are_on_one_axis(
    perfetto: Callable[..., Perfetto], tmp_path: Path
) -> None:
    begin = time.time()
    torch = tmp_path / "torch.pt.trace.json"
    python = environment("transformers") / "bin" / "python"
    subprocess.run([python, "-c", PROFILE, torch], check=True, timeout=300, capture_output=True)
    end = time.time()
    record = sample_record(1, servers=1, workers=1)
    record.update(started=begin, ended=end)
    # The test during which the profile was made.
    record["tests"][0].update(started=round(begin, 3), ended=round(end, 3))
    (tmp_path / "trace.json").write_text(trace_text(record))
    both = tmp_path / "both.zip"
    with zipfile.ZipFile(both, "w") as archive:
        for path in (tmp_path / "trace.json", torch):
            archive.write(path, path.name)
    trace = perfetto(both, 20)
    assert trace.complaints() == []
    [[test, length]] = trace.ask("select ts, dur from slice where category = 'test'")
    [[first, last, count]] = trace.ask("select min(ts), max(ts + dur), count(*) from slice where name = 'aten::matmul'")
    assert count == 5
    assert test < first < last < test + length
