"""The process that writes a load's prompts for another tool: ``-m pytest_infserver.load.tools.prompt_rows FILE``.

It gets a `Job` as its standard input and writes FILE, a JSON line for each request, with prompts as our own generator
makes them. On its standard output it says how their length was measured.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from pathlib import Path

import aiohttp

from pytest_infserver.load.client import Client
from pytest_infserver.load.job import ASKED, MOST_PROMPTS, Job, job_from
from pytest_infserver.load.prompts import measured_words, prompts

_COUNT_LIMIT = 60.0


async def write_rows(job: Job, path: Path) -> str:
    """Write the prompts of a job.

    Args:
        job: The job.
        path: The file.

    Returns:
        How the length of prompts was measured.
    """
    words, counted = 0.0, "as the dataset says"
    if job.load.dataset is None:
        uds = job.address.uds
        connector = aiohttp.TCPConnector() if uds is None else aiohttp.UnixConnector(uds)
        limit = aiohttp.ClientTimeout(total=_COUNT_LIMIT)
        async with aiohttp.ClientSession(
            connector=connector, timeout=limit, headers=job.address.headers, trust_env=job.uses_proxies
        ) as session:
            words, counted = await measured_words(job.load, Client(job, session).count_tokens)
    count = MOST_PROMPTS if job.load.requests is None else job.load.requests + job.load.warmup
    with path.open("w", encoding="utf-8") as file:
        for prompt in itertools.islice(prompts(job.load, words), count):
            body = job.body(prompt)
            file.write(json.dumps({name: body[name] for name in ASKED if name in body}) + "\n")
    return counted


if __name__ == "__main__":
    print(asyncio.run(write_rows(job_from(sys.stdin.read()), Path(sys.argv[1]))))  # noqa: T201
