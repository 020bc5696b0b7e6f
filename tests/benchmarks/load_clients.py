"""Which HTTP client the load generator is built on: processor time for each streamed token, and for each request.

    python tests/benchmarks/load_clients.py [--requests 200] [--tokens 100] [--in-flight 50] [--gap 0.01] [CLIENT ...]

Needs aiohttp, httpx and niquests, as far as they are asked for. Each reads the same streams of a stand-in that sends
each token by itself. The processor time is that of the client's process alone: a busy machine hardly changes it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

SERVER = Path(__file__).parent.parent / "load" / "instant_server.py"


@asynccontextmanager
async def aiohttp_lines(limit: int):
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def lines(url: str, body: dict) -> AsyncIterator[bytes]:
            async with session.post(url, json=body) as answer:
                rest = b""
                async for data in answer.content.iter_any():
                    *found, rest = (rest + data).split(b"\n")
                    for line in found:
                        yield line

        yield lines


@asynccontextmanager
async def httpx_lines(limit: int):
    import httpx

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=limit)
    async with httpx.AsyncClient(limits=limits, timeout=None, trust_env=False) as session:

        async def lines(url: str, body: dict) -> AsyncIterator[bytes]:
            async with session.stream("POST", url, json=body) as answer:
                rest = b""
                async for data in answer.aiter_raw():
                    *found, rest = (rest + data).split(b"\n")
                    for line in found:
                        yield line

        yield lines


@asynccontextmanager
async def niquests_lines(limit: int):
    import niquests

    async with niquests.AsyncSession(pool_connections=1, pool_maxsize=limit) as session:
        session.trust_env = False

        async def lines(url: str, body: dict) -> AsyncIterator[bytes]:
            answer = await session.post(url, json=body, stream=True)
            rest = b""
            async for data in await answer.iter_raw(-1):
                *found, rest = (rest + data).split(b"\n")
                for line in found:
                    yield line

        yield lines


CLIENTS = {"aiohttp": aiohttp_lines, "httpx": httpx_lines, "niquests": niquests_lines}


async def measure(name: str, url: str, requests: int, tokens: int, in_flight: int) -> tuple[float, int]:
    body = {"prompt": "a b c", "max_tokens": tokens, "stream": True}
    async with CLIENTS[name](in_flight) as lines:
        left = iter(range(requests))
        seen = 0

        async def user() -> None:
            nonlocal seen
            for _ in left:
                async for line in lines(url, body):
                    if line.startswith(b"data: {"):
                        seen += bool(json.loads(line[6:])["choices"])

        begun = time.process_time()
        await asyncio.gather(*(user() for _ in range(in_flight)))
        return time.process_time() - begun, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("client", nargs="*", default=list(CLIENTS))
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--in-flight", type=int, default=50)
    parser.add_argument("--gap", type=float, default=0.01, help="seconds between two tokens of a stream")
    options = parser.parse_args()
    with subprocess.Popen(
        [sys.executable, SERVER, f"--gap={options.gap}"], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1/completions"
        for name in options.client:
            try:
                short, _ = asyncio.run(measure(name, url, options.requests, 1, options.in_flight))
                spent, seen = asyncio.run(measure(name, url, options.requests, options.tokens, options.in_flight))
            except ImportError as error:
                print(f"{name}: {error}")
                continue
            each = (spent - short) / (seen - options.requests)
            print(
                f"{name}: {seen} tokens; {1e6 * each:.1f} µs for each token ({1 / each:,.0f} tokens/s for each core), "
                f"{1e3 * short / options.requests:.2f} ms for each request of one token"
            )
        server.terminate()


if __name__ == "__main__":
    main()
