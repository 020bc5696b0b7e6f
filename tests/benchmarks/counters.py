"""What a reading of an engine's counters costs, in milliseconds.

    python tests/benchmarks/counters.py [--readings 1000] [URL ...]

Without a URL it starts llama.cpp with the tiny model. A URL is that of a vLLM, an SGLang or a llama.cpp that runs with
its metrics switched on. Of the whole, `filter` and `difference` are Python's work here; the rest is the server's.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from urllib.request import urlopen

from pytest_infserver import InferenceServer, create_server
from pytest_infserver.reporting.record import engine_metrics
from pytest_infserver.reporting.record.engine_metrics import EngineMetrics, difference


@contextlib.contextmanager
def servers(urls: list[str]) -> Iterator[list[InferenceServer]]:
    if urls:
        # As vllm it keeps the connection, whatever it is.
        yield [create_server("vllm", url=url, model="any").start() for url in urls]
        return
    with tempfile.TemporaryDirectory() as folder:
        config = {"server_args": {"metrics": True}}
        with create_server("llamacpp", model="builtin:tiny", output_dir=folder, config=config) as server:
            yield [server]


def timed(action: Callable[[], object], times: int) -> str:
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        assert action() is not None
        seconds.append(time.perf_counter() - begin)
    seconds.sort()
    median, high = statistics.median(seconds) * 1000, seconds[int(times * 0.95)] * 1000
    return f"median {median:6.3f} ms, 95 % {high:6.3f} ms, all {times}: {sum(seconds):.2f} s"


def parse_afresh(reading: engine_metrics.Counters) -> object:
    engine_metrics._parsed.cache_clear()
    return difference(reading, reading)


def measure(server: InferenceServer, times: int) -> None:
    metrics = EngineMetrics()
    begin = time.perf_counter()
    reading = metrics.read(server)
    assert reading is not None, f"{server.server_url} has no metrics"
    print(f"{server.server_url}: first reading {(time.perf_counter() - begin) * 1000:.2f} ms")
    with urlopen(server.url_for("/metrics")) as response:
        body = b"\n" + response.read()
    print(f"  reading     {timed(lambda: metrics.read(server), times)}")
    print(f"  filter      {timed(lambda: engine_metrics._filtered(body), times)} ({len(body)} bytes)")
    print(f"  difference  {timed(lambda: parse_afresh(reading), times)} ({len(reading.lines)} bytes)", flush=True)
    metrics.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("urls", nargs="*")
    parser.add_argument("--readings", type=int, default=1000)
    options = parser.parse_args()
    begin = time.perf_counter()
    import prometheus_client.parser  # noqa: F401

    print(f"import of prometheus_client: {(time.perf_counter() - begin) * 1000:.0f} ms, once")
    with servers(options.urls) as running:
        for server in running:
            measure(server, options.readings)


if __name__ == "__main__":
    main()
