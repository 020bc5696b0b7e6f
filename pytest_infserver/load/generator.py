"""The process that makes the load: ``python -m pytest_infserver.load.generator``.

It gets a `Job` as the first line of its standard input and ends when that is closed; it writes JSON lines: ``told``
(what is known before the load), ``begin``, one ``sample`` for each request as it ends, and ``end``. SIGINT ends the
load: requests under way become samples that were interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import aiohttp

from pytest_infserver.load.arrivals import arrival_times, user_starts
from pytest_infserver.load.client import Client
from pytest_infserver.load.job import Job, job_from
from pytest_infserver.load.prompts import measured_words, prompts
from pytest_infserver.load.samples import Sample

_PREPARED = 20_000
_MOST_REFUSED = 20
"""So many requests in a row find no server: there is none any more."""


class Generator:
    """Sends what a workload says, when it says so."""

    def __init__(self, job: Job, client: Client, words: float) -> None:
        self._load = job.load
        self._client = client
        made = (json.dumps(job.body(prompt)).encode() for prompt in prompts(job.load, words))
        ready = list(itertools.islice(made, min(_PREPARED, (job.load.requests or 0) + job.load.warmup)))
        self._bodies: Iterator[bytes] = itertools.chain(ready, made)
        self._tasks: set[asyncio.Task[Sample | None]] = set()
        self._refused = 0
        self._stopped = asyncio.Event()
        self.why: str | None = None

    def stop(self, why: str) -> None:
        """End the load; requests under way are given up."""
        self.why = self.why or why
        self._stopped.set()
        for task in self._tasks:
            task.cancel()

    async def warm_up(self) -> None:
        """Send the requests that are not measured."""
        left = iter(range(self._load.warmup))

        async def user() -> None:
            for _ in left:
                if self._stopped.is_set():
                    return
                await self._client.send(next(self._bodies))

        users = [self._begin(user()) for _ in range(min(self._load.warmup, self._load.concurrency or 8))]
        if users:
            await asyncio.wait(users)

    async def run(self) -> None:
        """Send the others."""
        self._client.begun = time.monotonic()
        if self._load.is_open:
            await self._open_loop()
        else:
            await self._closed_loop()

    async def _open_loop(self) -> None:
        for due in arrival_times(self._load):
            await self._until(due)
            if self._stopped.is_set():
                break
            self._begin(self._one(next(self._bodies), due))
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _closed_loop(self) -> None:
        left = itertools.count() if self._load.requests is None else iter(range(self._load.requests))

        async def user(start: float) -> None:
            await self._until(start)
            for _ in left:
                if self._stopped.is_set() or self._is_over():
                    return
                await self._one(next(self._bodies))

        users = [self._begin(user(start)) for start in user_starts(self._load)]
        await asyncio.wait(users)

    def _begin(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _is_over(self) -> bool:
        return self._load.duration is not None and self._client.now() >= self._load.duration

    async def _until(self, moment: float) -> None:
        wait = moment - self._client.now()
        if wait > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), wait)

    async def _one(self, body: bytes, due: float | None = None) -> None:
        sample = await self._client.send(body, due)
        write(sample=sample.as_dict())
        self._refused = self._refused + 1 if sample.failure == "no connection" else 0
        if self._refused >= _MOST_REFUSED and not self._stopped.is_set():
            self.stop("the server could not be reached any more")


def write(**what: Any) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(what) + "\n")


async def main(job: Job) -> None:
    """Do what a job says."""
    address = job.address
    uds = address.uds
    connector = aiohttp.TCPConnector(limit=0) if uds is None else aiohttp.UnixConnector(uds, limit=0)
    timeout = aiohttp.ClientTimeout(total=job.load.timeout)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=address.headers, trust_env=job.uses_proxies
    ) as session:
        client = Client(job, session)
        words, counted = (
            (0.0, "as the dataset says") if job.load.dataset else await measured_words(job.load, client.count_tokens)
        )
        generator = Generator(job, client, words)
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, generator.stop, "interrupted")
        write(told={"prompts": counted})
        await generator.warm_up()
        before = await client.queue_times()
        gc.collect()
        gc.disable()
        write(begin={})
        sys.stdout.flush()
        cpu = time.process_time()
        await generator.run()
        wall, cpu = client.now(), time.process_time() - cpu
        gc.enable()
        write(done={})
        sys.stdout.flush()
        after = await client.queue_times()
    count = after[1] - before[1] if before and after else 0
    queue = (after[0] - before[0]) / count if before and after and count > 0 else None
    write(end={"wall": wall, "cpu": cpu, "queue": queue, "why": generator.why})
    sys.stdout.flush()


def _end_with_input() -> None:
    # Whoever has started this is gone, whatever the load is doing.
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    told = job_from(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    asyncio.run(main(told))
