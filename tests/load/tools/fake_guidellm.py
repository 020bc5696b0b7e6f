"""A stand-in for the command guidellm: it sends nothing, and writes a report in the form of guidellm 0.8.1.

What it does besides is told by the variable FAKE_GUIDELLM: ``errors``, ``garbage``, ``other-form``, ``early``,
``exit``, ``hang``. Its configuration and environment are copied to the folder FAKE_GUIDELLM_SEEN.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

START = 1796136519.5
STATUS_500 = "HTTPStatusError(\"Server error '500 Internal Server Error' for url 'http://127.0.0.1:8000/v1/completions'\\nmore\")"


def row(number: int, tokens: int, prompt_tokens: int, streams: bool, early: bool, error: str | None) -> dict:
    """Return a request: one every 10 ms from 0.1 s on, first token after 20 ms, one more each 2 ms."""
    sent = START + 0.1 + 0.01 * number
    first = sent + 0.02
    last = first + 0.002 * (tokens - 1)
    good = error is None
    seen = good and streams
    return {
        "type_": "generative_request_stats",
        "request_id": f"request {number}",
        "response_id": None,
        "request_args": None,
        "output": None,
        "info": {
            "status": "completed" if good else "errored",
            "scheduler_start_time": START,
            "timings": {
                "targeted_start": -0.9 if early else sent - 0.005,
                "queued": START,
                "dequeued": sent - 0.002,
                "resolve_start": sent - 0.001,
                "request_start": sent,
                "first_request_iteration": first if seen else None,
                "first_token_iteration": first if seen else None,
                "last_token_iteration": last if seen else None,
                "token_iterations": tokens if seen else 0,
                "request_end": last + 0.001 if good else None,
                "resolve_end": last + 0.0011,
                "finalized": last + 0.002,
            },
            "error": error,
            "traceback": None if good else "Traceback (most recent call last):",
        },
        "input_metrics": {"text_tokens": prompt_tokens, "total_tokens": prompt_tokens},
        "output_metrics": {"total_tokens": tokens if good else None},
        "prompt_tokens": prompt_tokens if good else None,
        "output_tokens": tokens if good else None,
    }


def main() -> int:
    assert sys.argv[1] == "run"
    mode = os.environ.get("FAKE_GUIDELLM", "")
    config = json.loads(Path(sys.argv[sys.argv.index("-c") + 1]).read_text())
    spec = config["spec"]
    prompts = [json.loads(line) for line in Path(spec["data"][0]["path"]).read_text().splitlines()]
    seen = Path(os.environ["FAKE_GUIDELLM_SEEN"])
    seen.mkdir(exist_ok=True)
    (seen / "spec.json").write_text(json.dumps(spec))
    (seen / "prompts.json").write_text(json.dumps(prompts))
    (seen / "environment.json").write_text(json.dumps(dict(os.environ)))
    if mode == "exit":
        print("Traceback (most recent call last):\nConnectError: All connection attempts failed", file=sys.stderr)
        return 1
    if mode == "hang":
        # As guidellm does: with processes of its own.
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (seen / "hangs").touch()
        time.sleep(600)
        child.kill()
    out = Path(spec["outputs"][0]["path"])
    if mode == "garbage":
        out.write_text('{"benchmarks": [')
        return 0
    counts = [one["count"] for one in spec["constraints"] if one["kind"] == "max_requests"]
    backend = spec["backend"]
    rows = [
        row(
            number,
            backend["extras"]["body"]["max_tokens"],
            128,
            backend["stream"],
            mode == "early" and number == 1,
            STATUS_500 if mode == "errors" and number % 3 == 2 else None,
        )
        for number in range(counts[0] if counts else 5)
    ]
    report = {
        "metadata": {"version": 2, "guidellm_version": "0.8.1"},
        "config": config,
        "benchmarks": [
            {
                "type_": "generative_benchmark",
                "scheduler_state": {"start_time": START, "num_processes": 2},
                "requests": {
                    "successful": [one for one in rows if one["info"]["error"] is None],
                    "errored": [one for one in rows if one["info"]["error"] is not None],
                    "incomplete": [],
                    "total": None,
                },
            }
        ],
        "conclusions": [],
    }
    if mode == "other-form":
        del report["benchmarks"][0]["requests"]
    out.write_text(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
