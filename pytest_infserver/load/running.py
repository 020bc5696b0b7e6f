"""Runs the generator beside this process, and makes a `LoadResult` of what it says."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pytest_infserver.errors import InferenceServerError
from pytest_infserver.load.baselines.files import FOLDER, Baselines
from pytest_infserver.load.baselines.reference import Reference
from pytest_infserver.load.job import Job
from pytest_infserver.load.own_process import own_command
from pytest_infserver.load.results import LoadResult
from pytest_infserver.load.samples import Sample, sample_from
from pytest_infserver.load.workload import Workload
from pytest_infserver.system.environment import environment
from pytest_infserver.system.text import clean

_LAST_WORDS = 10.0
"""Seconds that the generator has for what it still has to say."""
_MAX_ERROR = 4096


@dataclass(frozen=True)
class Target:
    """What a load needs to know of a server.

    Attributes:
        name: Its name.
        job: Makes the job of a workload.
        pids: Returns its processes, as far as they are known here.
        identity: What a baseline belongs to: backend, model, settings.
        engine: Its engine and that one's version.
        secrets: Values to hide.
    """

    name: str
    job: Callable[[Workload], Job]
    pids: Callable[[], Sequence[int]]
    identity: dict[str, Any]
    engine: str
    secrets: frozenset[str] = frozenset()


class LoadInterrupted(KeyboardInterrupt):
    """Ctrl-C has ended a load.

    Attributes:
        result: What it has shown so far.
    """

    def __init__(self, result: LoadResult) -> None:
        super().__init__("a load was interrupted")
        self.result = result


def measure(target: Target, load: Workload) -> LoadResult:
    """Send a workload, and return what it has shown.

    Raises:
        InferenceServerError: The extra ``load`` is not installed, or the generator has failed.
        LoadInterrupted: Ctrl-C; the result so far is in it.
    """
    require_aiohttp()
    job = target.job(load)
    heard = _Heard(lambda: _cpu_seconds(target.pids()))
    process = subprocess.Popen(
        own_command("pytest_infserver.load.generator"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        # A terminal's Ctrl-C is told to it by us.
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    threads = [
        threading.Thread(target=listen, args=(stream,), name="infserver-load", daemon=True)
        for listen, stream in ((heard.hear, process.stdout), (heard.hear_errors, process.stderr))
    ]
    interrupted = False
    try:
        for thread in threads:
            thread.start()
        with contextlib.suppress(OSError):
            process.stdin.write(job.as_json().encode() + b"\n")
            process.stdin.flush()
        try:
            # Not join(): Python up to 3.12 takes a thread for ended whose join was interrupted.
            heard.over.wait()
        except KeyboardInterrupt:
            interrupted = True
            with contextlib.suppress(OSError):
                process.send_signal(signal.SIGINT)
            heard.over.wait(_LAST_WORDS)
    finally:
        _end(process)
        for thread in threads:
            if thread.ident is not None:
                thread.join(_LAST_WORDS)
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                stream.close()
    if heard.end is None and not interrupted:
        said = clean(heard.errors.decode("utf-8", "replace"), target.secrets).strip()
        why = said.splitlines()[-1] if said else f"exit status {process.returncode}"
        raise InferenceServerError(f"{target.name}: the load generator has failed: {why}")
    result = dataclasses.replace(
        _result(target, load, heard, interrupted=interrupted),
        again=lambda: measure(target, load),
        reference=Reference(Baselines(Path(FOLDER).absolute(), target.name, target.identity, target.engine)),
    )
    if interrupted:
        raise LoadInterrupted(result)
    return result


def require_aiohttp() -> None:
    """Raise where the extra ``load`` is missing.

    Raises:
        InferenceServerError: It is; the message says how to install it.
    """
    if importlib.util.find_spec("aiohttp") is None:
        raise InferenceServerError("a load needs the package aiohttp: pip install 'pytest-infserver[load]'")


class _Heard:
    """What the generator has said."""

    def __init__(self, cpu: Callable[[], float]) -> None:
        self._cpu = cpu
        self._used: dict[str, tuple[float, float]] = {}
        self.samples: list[Sample] = []
        self.told: dict[str, Any] = {}
        self.end: dict[str, Any] | None = None
        self.errors = b""
        self.over = threading.Event()

    def hear(self, stream: IO[bytes]) -> None:
        try:
            for line in stream:
                self._take(line)
        finally:
            self.over.set()

    def _take(self, line: bytes) -> None:
        try:
            data = json.loads(line)
        except ValueError:
            # The last words of one that was killed.
            return
        if "sample" in data:
            self.samples.append(sample_from(data["sample"]))
        for moment in ("begin", "done"):
            if moment in data:
                self._used[moment] = self._cpu(), time.monotonic()
        self.told = data.get("told", self.told)
        self.end = data.get("end", self.end)

    def share(self) -> float | None:
        """Return how many cores the server has used, or None if that is not known."""
        if len(self._used) < 2:
            return None
        (before, begun), (after, ended) = self._used["begin"], self._used["done"]
        return round((after - before) / (ended - begun), 3) if after > before and ended > begun else None

    def hear_errors(self, stream: IO[bytes]) -> None:
        while data := stream.read1(_MAX_ERROR):  # type: ignore[attr-defined]
            self.errors = (self.errors + data)[-_MAX_ERROR:]


def _result(target: Target, load: Workload, heard: _Heard, *, interrupted: bool) -> LoadResult:
    end = heard.end or {}
    seconds = float(end.get("wall") or max((one.ended for one in heard.samples), default=0.0))
    samples = [_cleaned(one, target.secrets) for one in heard.samples]
    return LoadResult(
        load,
        target.name,
        samples,
        seconds,
        prompts=heard.told.get("prompts", ""),
        queue_seconds=end.get("queue"),
        generator_share=round(end["cpu"] / seconds, 3) if end.get("cpu") and seconds > 0 else None,
        server_share=heard.share(),
        interrupted=end.get("why") or ("interrupted" if interrupted else None),
    )


def _cleaned(sample: Sample, secrets: frozenset[str]) -> Sample:
    if sample.text is None:
        return sample
    return dataclasses.replace(sample, text=clean(sample.text, secrets))


def _cpu_seconds(pids: Sequence[int]) -> float:
    import psutil

    spent = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            spent += times.user + times.system
    return spent


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(_LAST_WORDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
