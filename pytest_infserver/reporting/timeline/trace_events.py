"""`trace.json`: the run in the Trace Event Format, for Perfetto, beside the traces of profilers.

Each server is a process: a thread with its life (boot with its phases, ready, stopping), threads with the tests on it,
counters for memory and heartbeats. Times are microseconds since ``baseTimeNanoseconds``, a moment that is the same in
the traces of PyTorch's profiler: put together in one archive, Perfetto shows them on one axis.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from pytest_infserver.reporting.timeline.payload import BAD, MAX_NAME
from pytest_infserver.reporting.timeline.rows import rows
from pytest_infserver.reporting.timeline.shape import known
from pytest_infserver.reporting.timeline.text import plain

Event = dict[str, Any]
Test = Mapping[str, Any]
Use = Mapping[str, Any]
"""What a test knows of one of its servers; nothing where it has none."""

PIDS = 5_000_000
"""The first server's process; no real one has such a number."""
LIFE = 1
"""The thread of a server's life."""
TESTS = 10
"""The first thread of tests; those that overlap go on in the next ones."""
PERIOD = 7889238
"""Seconds: PyTorch's profiler counts from the last multiple of this since the epoch, some three months."""
_ABOUT = ("pytest_infserver", "pytest", "python", "platform")
_MOMENTS = ("launched", "ready", "stopping", "ended")
_LATEST = 9 * 10**15
"""Microseconds, as nanoseconds still a number of 64 bits."""
_UNNAMED = "(no name)"
"""Perfetto refuses an empty name."""
_MAX_ID = 1000
_MAX_MESSAGE = 2000


def trace_events(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the trace, JSON types only.

    Args:
        record: What `run.json` has.
    """
    record = known(record)
    base = int((record["started"] or 0) // PERIOD) * PERIOD
    return {
        "displayTimeUnit": "ms",
        "baseTimeNanoseconds": base * 10**9,
        "otherData": {name: plain(record[name], MAX_NAME) for name in _ABOUT},
        "traceEvents": [_since(base * 10**6, event) for event in _events(record)],
    }


def trace_text(record: Mapping[str, Any]) -> str:
    """Return the trace as it stands in the file."""
    return json.dumps(trace_events(record), allow_nan=False, separators=(",", ":"))


def _events(record: Mapping[str, Any]) -> list[Event]:
    """Return all events, with times since the epoch."""
    servers = record["servers"]
    end = _end(record)
    lanes = _lanes(record["tests"], {server["name"] for server in servers})
    events: list[Event] = []
    for pid, server in enumerate(servers, PIDS):
        labels = [plain(server[name], MAX_NAME) for name in ("backend", "model") if server[name]]
        events += _process(pid, plain(server["name"], MAX_NAME) or _UNNAMED, " ".join(labels))
        events += _life(pid, server, end)
        events += _counters(pid, server)
        events += _tests(pid, lanes.get((server["name"],), []))
    alone = lanes.get((), [])
    if alone:
        pid = PIDS + len(servers)
        events += [*_process(pid, "tests without a server", ""), *_tests(pid, alone)]
    return events


def _since(base: int, event: Event) -> Event:
    """Return an event with times since a moment; what was before that, of a server that was kept, is cut off."""
    if event["ph"] != "M":
        begin = event["ts"] - base
        event["ts"] = min(max(begin, 0), _LATEST)
        if "dur" in event:
            event["dur"] = min(max(begin + event["dur"], 0), _LATEST) - event["ts"]
    return event


def _us(moment: float | None) -> int | None:
    return None if moment is None else round(moment * 1e6)


def _end(record: Mapping[str, Any]) -> int:
    moments = [record["started"], record["ended"], *(test["ended"] for test in record["tests"])]
    for life in (life for server in record["servers"] for life in server["lives"]):
        moments += [life[name] for name in _MOMENTS]
    return max((moment for moment in map(_us, moments) if moment is not None), default=0)


def _lanes(tests: Iterable[Test], names: set[str | None]) -> dict[tuple[str | None, ...], list[tuple[Test, Use]]]:
    """Return the tests of each server with what they know of it, in the order of time; (): those without one."""
    lanes: dict[tuple[str | None, ...], list[tuple[Test, Use]]] = {}
    timed = [test for test in tests if test["started"] is not None and test["ended"] is not None]
    for test in sorted(timed, key=lambda test: test["started"]):
        uses: dict[tuple[str | None, ...], Use] = {
            (use["name"],): use for use in test["servers"] if use["name"] in names
        }
        for lane, use in (uses or {(): {}}).items():
            lanes.setdefault(lane, []).append((test, use))
    return lanes


def _process(pid: int, name: str, labels: str) -> list[Event]:
    return [
        _metadata(pid, 0, "process_name", name=name),
        _metadata(pid, 0, "process_labels", labels=labels),
        _metadata(pid, 0, "process_sort_index", sort_index=pid),
    ]


def _thread(pid: int, tid: int, name: str) -> list[Event]:
    return [
        _metadata(pid, tid, "thread_name", name=name),
        _metadata(pid, tid, "thread_sort_index", sort_index=tid),
    ]


def _metadata(pid: int, tid: int, kind: str, **arguments: Any) -> Event:
    return {"ph": "M", "pid": pid, "tid": tid, "ts": 0, "name": kind, "cat": "__metadata", "args": arguments}


def _slice(pid: int, tid: int, name: str, kind: str, span: tuple[int, int], **arguments: Any) -> Event:
    given = {key: value for key, value in arguments.items() if value is not None}
    begin, end = span
    event = {"ph": "X", "pid": pid, "tid": tid, "ts": begin, "dur": end - begin, "name": name, "cat": kind}
    return {**event, "args": given}


def _instant(pid: int, tid: int, name: str, at: int, **arguments: Any) -> Event:
    given = {key: value for key, value in arguments.items() if value}
    return {"ph": "i", "s": "p", "pid": pid, "tid": tid, "ts": at, "name": name, "cat": "server", "args": given}


def _counter(pid: int, name: str, at: int, value: float) -> Event:
    return {"ph": "C", "pid": pid, "tid": 0, "ts": at, "name": name, "cat": "server", "args": {"value": value}}


def _life(pid: int, server: Mapping[str, Any], run_end: int) -> list[Event]:
    events = _thread(pid, LIFE, "attached" if server["attached"] else "life")
    before = None
    for number, life in enumerate(server["lives"]):
        moments = [_us(life[name]) for name in _MOMENTS]
        told = [moment for moment in moments if moment is not None]
        if not told:
            continue
        # A life begins when the one before has ended, whatever a clock that was set back says.
        first = max(told[0], before or told[0])
        end = max(moments[3] if moments[3] is not None else run_end, first)
        launched, ready, stopping = (None if one is None else min(max(one, first), end) for one in moments[:3])
        before = end
        how = {key: plain(life[key], _MAX_MESSAGE) for key in ("node", "end", "how", "cause") if life[key]}
        if launched is not None:
            booted = next(moment for moment in (ready, stopping, end) if moment is not None)
            events += _boot(pid, life, (launched, max(launched, booted)), restart=number > 0)
        if ready is not None:
            until = max(ready, end if stopping is None else stopping)
            about = {"root_pid": life["pid"], "node": how.get("node")}
            events.append(_slice(pid, LIFE, "ready", "server", (ready, until), **about))
            for begin, woken in life["asleep"]:
                span = (_us(moment) for moment in (begin, woken))
                asleep, awake = (until if moment is None else min(max(moment, ready), until) for moment in span)
                events.append(_slice(pid, LIFE, "asleep", "phase", (asleep, max(asleep, awake))))
        if stopping is not None:
            events.append(_slice(pid, LIFE, "stopping", "server", (max(stopping, ready or 0), end), **how))
        if life["end"] in ("died", "failed"):
            words = f"{life['end']}: {how['how']}" if "how" in how else life["end"]
            events.append(_instant(pid, LIFE, words, end, **how))
    return events


def _boot(pid: int, life: Mapping[str, Any], span: tuple[int, int], *, restart: bool) -> list[Event]:
    launch, node = life["launch"], life["node"] and plain(life["node"], _MAX_MESSAGE)
    taken_over = bool(life["taken_over"])
    events = [_slice(pid, LIFE, "boot", "server", span, launch=launch, node=node, taken_over=taken_over)]
    phases = [(round(at * 1e6), plain(name, MAX_NAME) or _UNNAMED) for at, name in life["phases"]]
    begins = sorted((min(max(at, span[0]), span[1]), name) for at, name in phases)
    for (at, name), (following, _) in pairwise([*begins, (span[1], "")]):
        events.append(_slice(pid, LIFE, name, "phase", (at, following)))
    if restart:
        events.append(_instant(pid, LIFE, "restart", span[0], launch=launch))
    return events


def _counters(pid: int, server: Mapping[str, Any]) -> list[Event]:
    events = []
    for moment, resident, gpu in server["memory"]:
        for name, value in (("memory (bytes)", resident), ("GPU memory (bytes)", gpu)):
            if value is not None:
                events.append(_counter(pid, name, round(moment * 1e6), value))
    for moment, latency in server["heartbeat"]["samples"]:
        at = round(moment * 1e6)
        if latency is None:
            events.append(_instant(pid, LIFE, "heartbeat failed", at))
        else:
            events.append(_counter(pid, "heartbeat (ms)", at, round(latency * 1000, 3)))
    return events


def _tests(pid: int, tests: list[tuple[Test, Use]]) -> list[Event]:
    spans = [(round(test["started"] * 1e6), round(test["ended"] * 1e6)) for test, _ in tests]
    spans = [(begin, max(begin, end)) for begin, end in spans]
    chosen = rows(spans)
    events: list[Event] = []
    for row in range(max(chosen, default=-1) + 1):
        events += _thread(pid, TESTS + row, "tests" if row == 0 else f"tests {row + 1}")
    for (test, use), span, row in zip(tests, spans, chosen, strict=True):
        events += _test(pid, TESTS + row, test, use, span)
    return events


def _test(pid: int, tid: int, test: Test, use: Use, span: tuple[int, int]) -> list[Event]:
    name = plain(test["id"], _MAX_ID) or _UNNAMED
    outcome = plain(test["outcome"], 40)
    arguments = {
        "outcome": outcome,
        "worker": test["worker"] and plain(test["worker"], MAX_NAME),
        "message": test["message"] and plain(test["message"], _MAX_MESSAGE),
        **{key: use[key] for key in ("launch", "shared", "log_start", "log_end") if key in use},
        **use.get("metrics", {}),
    }
    # Failed ones are to be found by their names' colours, which go by the names.
    title = f"{outcome.upper()} {name}" if outcome in BAD else name
    events = [_slice(pid, tid, title, "test", span, **arguments)]
    # What a test waits for comes before its setup.
    end = span[1]
    for phase in ("teardown", "call", "setup"):
        seconds = test[f"{phase}_seconds"]
        if seconds is not None:
            begin = max(span[0], end - max(0, round(seconds * 1e6)))
            events.insert(1, _slice(pid, tid, phase, "phase", (begin, end)))
            end = begin
    return events
