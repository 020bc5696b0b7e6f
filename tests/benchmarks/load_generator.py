"""What the load generator itself costs: many requests at the same time against a stand-in that answers at once.

    python tests/benchmarks/load_generator.py [--in-flight 1000] [--rate 200]

Three figures: how late an open loop sends its requests, and their time to the first token, while so many are in flight;
streamed tokens a second for each core that the generator uses.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from pytest_infserver import CommandServer

SERVER = Path(__file__).parent.parent / "load" / "instant_server.py"


def started(folder: str, *arguments: str) -> CommandServer:
    command = [sys.executable, str(SERVER), "--port", "{port}", *arguments]
    return CommandServer(launch_command=command, output_dir=folder, model="none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--in-flight", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=200.0)
    options = parser.parse_args()
    seconds = options.in_flight / options.rate
    with tempfile.TemporaryDirectory() as folder:
        # A second token that comes late keeps requests in flight, and costs nothing meanwhile.
        with started(folder, "--first-at-once", f"--gap={seconds}") as server:
            found = server.load(
                rate=options.rate, duration=2 * seconds, arrivals="constant", prompt_tokens=8, output_tokens=2
            )
            print(
                f"{options.in_flight} in flight: {found.completed} requests, {found.failed} failed; sent late by p50"
                f" {1e3 * found.lateness.p50:.2f}, p99 {1e3 * found.lateness.p99:.2f} ms; first token after p50"
                f" {1e3 * found.ttft.p50:.2f}, p99 {1e3 * found.ttft.p99:.2f} ms; {found.generator_share:.2f} of a core"
            )
        with started(folder, "--gap=0.01") as server:
            found = server.load(concurrency=100, requests=1000, prompt_tokens=8, output_tokens=64)
            each = found.output_tokens_per_second / found.generator_share
            print(
                f"{found.output_tokens_per_second:,.0f} streamed tokens/s in parts of one token with"
                f" {found.generator_share:.2f} of a core: {each:,.0f} tokens/s for each core"
            )


if __name__ == "__main__":
    main()
