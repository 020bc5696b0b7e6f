"""The same load on the same llama.cpp by our generator, guidellm, aiperf and ``vllm bench serve``, side by side.

    GUIDELLM=... AIPERF=... VLLM=... python tests/benchmarks/load_tools.py [--concurrency 4] [--requests 100]

The variables name the commands, each in an environment of its own; a tool without one is left out. aiperf and vllm need
a tokenizer's folder (``--tokenizer``) and make prompts of their own of the same length. Processor time is that of all
processes of a tool, from its start to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pytest_infserver import InferenceServer, InferenceServerError, create_server

LIMIT = 300.0
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
Figures = tuple[float, float, float]
"""Median of the time to the first token in seconds, requests and output tokens a second."""


def by_load(server: InferenceServer, options: argparse.Namespace, tool: str | None) -> Figures:
    found = server.load(
        tool=tool,
        concurrency=options.concurrency,
        requests=options.requests,
        warmup=options.concurrency,
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
    )
    found.require_good()
    return found.ttft.p50, found.requests_per_second, found.output_tokens_per_second


def run(command: list[str], folder: Path, offline: dict[str, str]) -> None:
    env = {**os.environ, **offline, "HF_HOME": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise InferenceServerError(f"exit status {done.returncode}: {said[-1] if said else ''}")


def by_aiperf(server: InferenceServer, options: argparse.Namespace, folder: Path) -> Figures:
    command = [
        *(os.environ["AIPERF"], "profile", "--model", server.api_model, "--url", server.server_url),
        *("--endpoint-type", "completions", "--streaming", "--tokenizer", options.tokenizer, "--ui", "none"),
        *("--concurrency", str(options.concurrency), "--request-count", str(options.requests)),
        *("--warmup-request-count", str(options.concurrency), "--random-seed", "0"),
        *("--synthetic-input-tokens-mean", str(options.prompt_tokens), "--synthetic-input-tokens-stddev", "0"),
        *("--output-tokens-mean", str(options.output_tokens), "--output-tokens-stddev", "0"),
        # Its own key for the length of an answer is one that llama.cpp does not know here.
        *("--extra-inputs", f"max_tokens:{options.output_tokens}", "--extra-inputs", "ignore_eos:true"),
        *("--extra-inputs", "temperature:0"),
        *("--use-server-token-count", "--output-artifact-dir", str(folder)),
    ]
    # Told that it is offline, it takes a tokenizer's folder for a name on the hub.
    run(command, folder, {})
    # There may be more below, of parts of the run.
    file = min(folder.rglob("profile_export_aiperf.json"), key=lambda one: len(one.parts))
    found = json.loads(file.read_text())
    return (
        found["time_to_first_token"]["p50"] / 1e3,
        found["request_throughput"]["avg"],
        found["output_token_throughput"]["avg"],
    )


def by_vllm(server: InferenceServer, options: argparse.Namespace, folder: Path) -> Figures:
    command = [
        *(os.environ["VLLM"], "bench", "serve", "--backend", "openai", "--base-url", server.server_url),
        *("--model", server.api_model, "--tokenizer", options.tokenizer, "--dataset-name", "random", "--seed", "0"),
        *("--random-input-len", str(options.prompt_tokens), "--random-output-len", str(options.output_tokens)),
        *("--num-prompts", str(options.requests), "--max-concurrency", str(options.concurrency), "--ignore-eos"),
        *("--num-warmups", str(options.concurrency), "--temperature", "0", "--disable-tqdm"),
        *("--save-result", "--result-filename", str(folder / "result.json")),
    ]
    run(command, folder, OFFLINE)
    found = json.loads((folder / "result.json").read_text())
    return found["median_ttft_ms"] / 1e3, found["request_throughput"], found["output_throughput"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--model", default="builtin:tiny", help="a GGUF file, or builtin:tiny")
    parser.add_argument("--tokenizer", help="a tokenizer's folder, for aiperf and vllm")
    options = parser.parse_args()
    arguments = {"parallel": options.concurrency, "ctx-size": 2048 * options.concurrency}
    tools: dict[str, tuple[str | None, Callable[[InferenceServer, Path], Figures]]] = {
        "pytest-infserver": (None, lambda server, folder: by_load(server, options, None)),
        "guidellm": ("GUIDELLM", lambda server, folder: by_load(server, options, "guidellm")),
        "aiperf": ("AIPERF", lambda server, folder: by_aiperf(server, options, folder)),
        "vllm bench serve": ("VLLM", lambda server, folder: by_vllm(server, options, folder)),
    }
    with tempfile.TemporaryDirectory() as name:
        print("| tool | TTFT p50 | requests/s | output tokens/s | processor time | took |\n|-|-|-|-|-|-|")
        for tool, (variable, measure) in tools.items():
            if variable is not None and not os.environ.get(variable):
                print(f"{tool} is left out: {variable} does not name its command", file=sys.stderr)
                continue
            folder = Path(name) / tool.replace(" ", "-")
            folder.mkdir()
            # A server of its own for each: another's prompts would be in its cache.
            with create_server(
                "llamacpp", model=options.model, config={"server_args": arguments}, output_dir=f"{name}/logs"
            ) as server:
                before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
                try:
                    ttft, requests, tokens = measure(server, folder)
                except (InferenceServerError, OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
                    print(f"{tool} has failed: {error}", file=sys.stderr)
                    continue
                after, took = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - begun
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(
                f"| {tool} | {1e3 * ttft:.1f} ms | {requests:.1f} | {tokens:.0f} | {spent:.1f} s | {took:.1f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
