"""Runs a program that may hang, flood or fail, and never waits for it longer than it was given."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, NamedTuple

from pytest_infserver.system.processes.child_group import kill_group, wait_for_end

_STEP = 64 * 1024
_ASK_EVERY = 0.05
_REAP_LIMIT = 1.0
"""Seconds that a program gets to end after SIGKILL; one that waits for a dead driver does not end at all."""


class Output(NamedTuple):
    """What a program wrote.

    Attributes:
        data: Its stdout and stderr.
        problem: Why that is not all, or why it is not to be trusted; None if it ended with 0.
    """

    data: bytes
    problem: str | None


def run_bounded(
    argv: Sequence[str],
    limit: float,
    max_bytes: int,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    pointless: Callable[[], bool] = lambda: False,
) -> Output:
    """Run a program in a process group of its own, which is killed at the limit.

    Args:
        argv: The command; never passed to a shell.
        limit: Seconds.
        max_bytes: It is killed as well when it has written more than this.
        env: Its environment; this process's if None.
        cwd: Its directory; this process's if None.
        pointless: Asked now and then; when it says so, the program is killed.
    """
    deadline = time.monotonic() + limit
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        return Output(b"", f"cannot be run: {error}")
    assert process.stdout is not None
    try:
        data, problem = _read(process.stdout, deadline, limit, max_bytes, pointless)
        # One that has closed its output may still run.
        ended = problem is None and wait_for_end(process, deadline - time.monotonic(), pointless)
    finally:
        kill_group(process)
        process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_REAP_LIMIT)
    return Output(data, problem or _ending(process.returncode if ended else None, limit))


def _read(
    stream: IO[bytes], deadline: float, limit: float, max_bytes: int, pointless: Callable[[], bool]
) -> tuple[bytes, str | None]:
    data = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or pointless():
                return data, _ending(None, limit)
            if not selector.select(min(left, _ASK_EVERY)):
                continue
            piece = os.read(stream.fileno(), _STEP)
            if not piece:
                return data, None
            data += piece
            if len(data) > max_bytes:
                # Up to a whole line: half a secret would not be known for one.
                data = data[:max_bytes]
                return data[: data.rfind(b"\n") + 1], f"killed: it wrote more than {max_bytes // 1024} KB"


def _ending(code: int | None, limit: float) -> str | None:
    if code is None:
        return f"killed: it did not end within {limit:.1f} s"
    return f"exit status {code}" if code else None
