"""Records of runs that never were, as `reporting/recorder.py` makes them: large, small, and hostile ones."""

from __future__ import annotations

import copy
import random
from typing import Any

BEGIN = 1764150000.123
LOG_LINE = "(EngineCore pid={pid}) INFO 11-26 10:{minute:02}:{second:02} [loggers.py:248] Engine 000: Avg prompt throughput: {a:.1f} tokens/s, Avg generation throughput: {b:.1f} tokens/s, Running: 1 reqs, Waiting: 0 reqs, GPU KV cache usage: {c:.1f}%\n"  # noqa: E501
FAILURE = (
    "\x1b[31m(EngineCore pid=4711) ERROR\x1b[0m 11-26 10:01:02 [core.py:842] EngineCore encountered a fatal error.\n"
    "(EngineCore pid=4711) ERROR 11-26 10:01:02 [core.py:842] Traceback (most recent call last):\n"
    '(EngineCore pid=4711) ERROR 11-26 10:01:02 [core.py:842]   File "vllm/v1/engine/core.py", line 833, in run\n'
    "(EngineCore pid=4711) ERROR 11-26 10:01:02 [core.py:842] torch.AcceleratorError: CUDA error: an illegal memory"
    " access was encountered\n"
)

VLLM_PHASES = (
    (0.04, "importing"),
    (0.2, "loading weights"),
    (0.62, "compiling"),
    (0.8, "capturing CUDA graphs"),
    (0.96, "starting HTTP"),
)
SGLANG_PHASES = ((0.05, "importing"), (0.35, "loading weights"), (0.75, "warming up"))
FILES = (
    "tests/generation/test_chat_completions.py",
    "tests/generation/test_structured_output.py",
    "tests/generation/test_sampling_parameters.py",
    "tests/regression/test_long_contexts.py",
    "tests/serving/test_streaming_and_cancellation.py",
)
NAMES = (
    "test_answers_are_deterministic_for_a_fixed_seed[{server}-temperature=0.0-max_tokens={n}]",
    "test_json_schema_is_respected[{server}-nested-objects-{n}]",
    "TestStreaming::test_first_token_arrives_before_the_last[{server}-{n}]",
    "test_stop_strings_are_not_in_the_answer[{server}-stop={n}]",
    "test_logprobs_agree_with_the_reference_implementation[{server}-top_logprobs={n}]",
)
MESSAGES = (
    "AssertionError: assert 'Paris' in 'The capital of France is Lyon, a city on the Rhône.'",
    "requests.exceptions.ConnectionError: ('Connection aborted.', RemoteDisconnected('Remote end closed connection'))",
)

DETAILS = [
    {
        "title": "Failure",
        "text": ">       assert 'Paris' in answer\nE       AssertionError: assert 'Paris' in 'The capital of France is"
        " Lyon, a city on the Rhône.'\n\ntest_chat_completions.py:12: AssertionError",
    },
    {"title": "Captured stdout call", "text": "asked: What is the capital of France?\n"},
]


def sample_record(
    tests: int = 118, *, servers: int = 3, workers: int = 2, points: int = 90, seed: int = 7
) -> dict[str, Any]:
    """Return the record of a run of so many tests.

    The first server dies and is launched again; with three or more the last one was running before the run.

    Args:
        tests: How many, some of them without a server.
        servers: How many.
        workers: How many ran tests.
        points: How often memory and heartbeat were looked at, for each server.
        seed: Another one makes another run.
    """
    chance = random.Random(seed)
    boots = [round(chance.uniform(18, 30) * (1.4 if index == 1 else 1), 3) for index in range(servers)]
    each = max(0.05, 60 / max(tests, 1) * workers)
    names = ["llama-tp1", "llama-tp2", "sgl", "fleet", *(f"server-{index}" for index in range(4, servers))][:servers]
    if servers > 2:
        names[-1] = "staging"
    made, clocks = [], [BEGIN + 1.2 + (boots[0] if servers else 0) + 0.02 * worker for worker in range(workers)]
    dead_at = BEGIN + 1.2 + (boots[0] if servers else 0) + each * tests / workers * 0.1
    revived_at = dead_at + 0.4 + (boots[0] if servers else 0) * 0.6
    for index in range(tests):
        worker = index % workers
        place = min(index * servers // max(tests, 1), servers - 1)
        begin = clocks[worker]
        name = names[place] if servers else ""
        without = servers == 0 or index % 17 == 5
        if not without:
            begin = max(begin, BEGIN + 1.2 + boots[place]) if name != "staging" else begin
        if servers > 0 and name == names[0] and not without and dead_at <= begin < revived_at:
            begin = revived_at + chance.uniform(0, 0.05)
        length = round(each * chance.lognormvariate(-0.35, 0.6), 3)
        killed = servers > 0 and name == names[0] and not without and begin <= dead_at < begin + length
        if killed:
            length = dead_at - begin + 0.08
        outcome = _outcome(chance, killed)
        setup, teardown = min(0.012, length * 0.1), min(0.03, length * 0.15)
        text = NAMES[index % len(NAMES)].format(server=name, n=index + 1)
        if without:
            text = f"test_the_tokenizer_of_the_reference_agrees[{index}]"
        uses = (
            []
            if without
            else [_use(chance, name, index, begin > dead_at and place == 0, workers > 1 and index % 3 > 0)]
        )
        made.append(
            {
                "id": f"{FILES[index * len(FILES) // max(tests, 1)]}::{text}",
                "outcome": outcome,
                "started": round(begin, 3),
                "ended": round(begin + length, 3),
                "wait_seconds": 0.0,
                "setup_seconds": round(setup, 3),
                "call_seconds": round(length - setup - teardown, 3),
                "teardown_seconds": round(teardown, 3),
                "worker": f"gw{worker}" if workers > 1 else None,
                "message": MESSAGES[1 if killed else 0] if outcome in ("failed", "error") else None,
                "details": copy.deepcopy(DETAILS) if outcome in ("failed", "error") else [],
                "servers": uses,
                "loads": [],
                "scores": [],
                "artifacts": [f"../profiles/{name}/{index}.svg"] if index % 50 == 7 and not without else [],
            }
        )
        clocks[worker] = begin + length + 0.01
    last = max([BEGIN + 30, *(test["ended"] for test in made)])
    return {
        "schema_version": 1,
        "pytest_infserver": "0.1.0",
        "pytest": "9.2.0",
        "python": "3.11.7",
        "platform": "Linux-6.1-x86_64",
        "started": BEGIN,
        "ended": round(last + 4, 3),
        "exit_status": 1 if any(test["outcome"] in ("failed", "error") for test in made) else 0,
        "workers": workers,
        "cluster": None,
        "outcomes": {
            outcome: count
            for outcome in ("passed", "failed", "error", "skipped", "xfailed")
            if (count := sum(test["outcome"] == outcome for test in made))
        },
        "servers": [
            _server(chance, name, index, boots[index], (dead_at, revived_at), last, made, points)
            for index, name in enumerate(names)
        ],
        "tests": made,
        "incidents": [f"{names[0]}: died during a test: killed by SIGKILL; restarted (1 of 3)"] if servers else [],
        "errors": [],
    }


def _outcome(chance: random.Random, killed: bool) -> str:
    if killed:
        return "error"
    return chance.choices(["passed", "failed", "skipped", "xfailed"], [92, 3, 4, 1])[0]


def _use(chance: random.Random, name: str, index: int, again: bool, shared: bool) -> dict[str, Any]:
    return {
        "name": name,
        "launch": 2 if again else 1,
        "log_start": 20000 + index * 900,
        "log_end": 20000 + index * 900 + chance.randrange(0, 1500),
        "shared": shared,
        "metrics": {
            "prompt_tokens": chance.randrange(10, 900),
            "generated_tokens": chance.randrange(1, 256),
            "requests": chance.randrange(1, 4),
            "errors": 0,
        },
    }


def _server(
    chance: random.Random,
    name: str,
    index: int,
    boot: float,
    death: tuple[float, float],
    last: float,
    tests: list[dict[str, Any]],
    points: int,
) -> dict[str, Any]:
    mine = [test for test in tests if any(use["name"] == name for use in test["servers"])]
    attached = name == "staging"
    launched = None if attached else round(BEGIN + 0.9 + 0.1 * index, 3)
    ready = BEGIN if launched is None else round(launched + boot, 3)
    stopped = round(max([ready + 1, *(test["ended"] for test in mine)]) + 0.2, 3)
    phases = SGLANG_PHASES if name == "sgl" else VLLM_PHASES
    life = {
        "launch": 1,
        "pid": None if attached else 4711 + index,
        "node": None,
        "launched": launched,
        "ready": ready,
        "stopping": None if attached else stopped,
        "ended": None if attached else round(stopped + 2.4, 3),
        "phases": [] if launched is None else [[round(launched + boot * at, 3), phase] for at, phase in phases],
        "end": None if attached else "stopped",
        "how": None if attached else "exit code 0",
        "cause": None,
        "asleep": [],
        "taken_over": False,
    }
    known = [life]
    if index == 0 and not attached:
        dead, revived = death
        end = max(stopped, revived + 1)
        first = {**life, "stopping": None, "ended": round(dead, 3), "end": "died"}
        first.update(
            how="killed by SIGKILL (by the kernel for memory)", cause="torch.OutOfMemoryError: CUDA out of memory"
        )
        again = {**life, "launch": 2, "pid": 5712, "launched": round(dead + 0.4, 3), "ready": round(revived, 3)}
        span = revived - dead - 0.4
        again["phases"] = [[round(dead + 0.4 + span * at, 3), phase] for at, phase in phases]
        known = [first, {**again, "stopping": round(end, 3), "ended": round(end + 2.4, 3)}]
    end = known[-1]["ended"] or last
    begin = launched or BEGIN
    moments = [round(begin + (end - begin) * number / max(points, 1), 3) for number in range(points)]
    memory = [[at, *_memory(chance, known, at, attached)] for at in moments]
    beats = [at for at in moments if any((life["ready"] or end) <= at <= (life["ended"] or end) for life in known)]
    missed = {len(beats) // 3, len(beats) // 3 + 1} if index == 1 else set()
    samples = [
        [at, None if number in missed else round(chance.lognormvariate(-5.6, 0.7), 4)]
        for number, at in enumerate(beats)
    ]
    latencies = sorted(latency for _, latency in samples if latency is not None)
    return {
        "name": name,
        "backend": "sglang" if name == "sgl" else "vllm",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "url": f"http://127.0.0.1:{8000 + index}",
        "attached": attached,
        "command": None if attached else f"vllm serve meta-llama/Llama-3.1-8B-Instruct --port {8000 + index}",
        "log": None if attached else f"{name}/server.log",
        "folder": name,
        "lives": known,
        "tests": len(mine),
        "failed": sum(test["outcome"] in ("failed", "error") for test in mine),
        "restarts": len(known) - 1,
        "ready_seconds": None if attached else boot,
        "stop_seconds": None if attached else 2.4,
        "peak_rss_bytes": max((rss for _, rss, _ in memory if rss), default=None),
        "peak_gpu_bytes": max((gpu for _, _, gpu in memory if gpu), default=None),
        "memory": [] if attached else memory,
        "heartbeat": {
            "count": len(samples),
            "failed": len(missed) if len(beats) > 3 else 0,
            "p50_seconds": latencies[len(latencies) // 2] if latencies else None,
            "p99_seconds": latencies[int(len(latencies) * 0.99)] if latencies else None,
            "samples": samples,
        },
        "leaks": [{"kind": "shm", "text": "/dev/shm/sglang_loads_1, 4 KiB, of no process; removed", "fails": False}]
        if name == "sgl"
        else [],
        "artifacts": [f"../profiles/{name}/server.nsys-rep"] if index == 1 else [],
        "metrics": {
            key: sum(use["metrics"][key] for test in mine for use in test["servers"])
            for key in ("prompt_tokens", "generated_tokens", "requests", "errors")
        },
    }


def _memory(chance: random.Random, known: list[dict[str, Any]], at: float, attached: bool) -> tuple[Any, Any]:
    for life in known:
        if attached or life["launched"] is None or not life["launched"] <= at <= life["ended"]:
            continue
        share = min(1.0, (at - life["launched"]) / max(life["ready"] - life["launched"], 0.1))
        rss = (0.4 + 3.4 * min(1.0, share * 1.3) + chance.uniform(0, 0.25)) * 1e9
        return round(rss), None if share < 0.2 else round((2 + 60 * min(1.0, share)) * 1e9)
    return None, None


def sample_excerpt(record: dict[str, Any]) -> Any:
    """Return what reads the logs of a sample: a failed test's tells of the failure."""
    starts = {
        use["log_start"]
        for test in record["tests"]
        if test["outcome"] in ("failed", "error")
        for use in test["servers"]
    }

    def excerpt(name: str, start: int, end: int, limit: int) -> str:
        chance = random.Random(start)
        lines = [FAILURE] if start in starts else []
        while sum(map(len, lines)) < min(end - start, limit):
            values = {"a": chance.uniform(0, 900), "b": chance.uniform(0, 99), "c": chance.uniform(0, 9)}
            lines.append(LOG_LINE.format(pid=4711, minute=start % 60, second=len(lines) % 60, **values))
        return "".join(lines)[-limit:]

    return excerpt


ODD: tuple[Any, ...] = (None, True, -1, 0, 10**30, 1e300, float("nan"), float("inf"), [], [None], {}, {"a": 1})
ODD += ("", "\0\x1b[31m\ud800</script>")


def with_odd_values(record: Any, seed: int) -> Any:
    """Return a record in which some values, leaves and branches, are what nobody would expect there."""
    chance = random.Random(seed)
    often = chance.choice((0.01, 0.05, 0.3))

    def change(value: Any, depth: int) -> Any:
        if depth and chance.random() < often:
            # Times that contradict each other are the likeliest of them.
            return round(BEGIN + chance.uniform(-20, 90), 3) if chance.random() < 0.5 else chance.choice(ODD)
        if isinstance(value, dict):
            return {key: change(part, depth + 1) for key, part in value.items()}
        return [change(part, depth + 1) for part in value] if isinstance(value, list) else value

    return change(record, 0)
