"""guidellm sends the load: its command is in an environment of its own, what it finds becomes a `LoadResult`."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_infserver.errors import ConfigError, InferenceServerError
from pytest_infserver.load.baselines.files import FOLDER, Baselines
from pytest_infserver.load.baselines.reference import Reference
from pytest_infserver.load.job import ASKED, MOST_PROMPTS, Job
from pytest_infserver.load.own_process import own_command
from pytest_infserver.load.results import LoadResult
from pytest_infserver.load.running import LoadInterrupted, Target, require_aiohttp
from pytest_infserver.load.samples import Sample
from pytest_infserver.load.workload import Workload
from pytest_infserver.system.environment import environment
from pytest_infserver.system.processes.bounded_run import run_bounded
from pytest_infserver.system.text import clean

STARTUP_LIMIT = 300.0
"""Seconds that it gets beside what the load itself may take: each of its processes imports torch."""
_PROMPTS_LIMIT = 300.0
_MAX_OUTPUT = 1 << 24
_MAX_TEXT = 300
_EARLY = 1.0
"""Seconds before the begin of the load at which no request can have been due."""
_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""Variables that belong to this environment, not to that of guidellm."""
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_STATUS = re.compile(r"error '(\d{3}) ")


def measure(target: Target, load: Workload) -> LoadResult:
    """Let guidellm send a workload, and return what it has shown.

    Args:
        target: The server.
        load: The workload.

    Raises:
        ConfigError: It cannot reach a server at such an address.
        InferenceServerError: It is not installed, has failed, or its result is none.
        LoadInterrupted: Ctrl-C; it tells nothing of what it has measured until then.
    """
    require_aiohttp()
    command = _command()
    job = target.job(load)
    _check_address(job)
    try:
        with tempfile.TemporaryDirectory(prefix="infserver-guidellm-") as name:
            folder = Path(name)
            counted = _write_prompts(target, job, folder / "prompts.jsonl")
            (folder / "config.json").write_text(json.dumps(config(job, folder)), encoding="utf-8")
            output = run_bounded(
                [command, "run", "-c", "config.json", "--disable-console"],
                _limit(load),
                _MAX_OUTPUT,
                env=_environment(job, folder),
                # It reads a file .env where it runs.
                cwd=name,
            )
            if output.problem is not None:
                raise InferenceServerError(
                    f"{target.name}: guidellm: {_last_line(output.data, target) or output.problem}"
                    f" ({output.problem}, {command})"
                )
            return _result(target, load, folder / "result.json", counted)
    except KeyboardInterrupt:
        raise LoadInterrupted(
            LoadResult(load, target.name, [], 0.0, tool="guidellm", interrupted="interrupted")
        ) from None


def config(job: Job, folder: Path) -> dict[str, Any]:
    """Return the configuration of guidellm for a job.

    Args:
        job: The job.
        folder: Where the prompts are, and its result will be.
    """
    load, address = job.load, job.address
    body = job.body("")
    same = {name: value for name, value in body.items() if name not in (*ASKED, "model", "stream")}
    if "stream_options" not in load.extra_body:
        # Its own is asked for.
        same.pop("stream_options", None)
    path = _PATHS[load.api]
    backend = {
        "kind": "openai_http",
        "target": address.origin,
        "model": job.model,
        "request_format": path,
        "api_routes": {path: address.url_for(path)[len(address.origin) :].lstrip("/")},
        "api_key": address.api_key,
        "timeout": load.timeout,
        "verify": True,
        "validate_backend": False,
        "stream": load.stream,
        "extras": {"body": same},
    }
    profile: dict[str, Any] = {"kind": "concurrent", "streams": [load.concurrency], "rampup_duration": load.ramp}
    if load.is_open:
        profile = {"kind": load.arrivals, "rate": [load.rate]}
        if load.arrivals == "constant":
            profile["rampup_duration"] = load.ramp
    constraints: list[dict[str, Any]] = []
    if load.requests is not None:
        constraints.append({"kind": "max_requests", "count": load.requests + load.warmup})
    if load.duration is not None:
        constraints.append({"kind": "max_duration", "seconds": load.duration})
    spec = {
        "backend": backend,
        "profile": profile,
        "constraints": constraints,
        "data": [{"kind": "json_file", "path": str(folder / "prompts.jsonl")}],
        "seed": {"kind": "static", "value": load.seed},
        # No texts of prompts and answers.
        "metrics": {"kind": "generative", "sample_size": 0},
        "outputs": [{"kind": "json", "path": str(folder / "result.json")}],
    }
    return {"spec": spec}


def _command() -> str:
    said = environment().get("GUIDELLM") or "guidellm"
    found = shutil.which(said)
    if found is None:
        raise InferenceServerError(
            f"tool='guidellm': there is no command {said}: pip install guidellm into an environment of its own, and"
            " name its command by GUIDELLM=/path/of/that/bin/guidellm"
        )
    return str(Path(found).absolute())


def _check_address(job: Job) -> None:
    address = job.address
    if address.uds is not None:
        raise ConfigError("tool='guidellm': it cannot reach a server on a unix socket")
    if address.scheme == "https" and (address.ca is not None or not address.verify or not address.check_hostname):
        raise ConfigError("tool='guidellm': it cannot reach a server with a certificate of its own")


def _write_prompts(target: Target, job: Job, path: Path) -> str:
    """Write the prompts in a process of its own, which what a test patches does not reach; return how they are told."""
    try:
        done = subprocess.run(
            own_command("pytest_infserver.load.tools.prompt_rows", str(path)),
            input=job.as_json().encode(),
            capture_output=True,
            env=environment(),
            start_new_session=True,
            timeout=_PROMPTS_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InferenceServerError(f"{target.name}: the prompts were not made in {_PROMPTS_LIMIT:.0f} s") from None
    if done.returncode:
        why = _last_line(done.stderr, target) or f"exit status {done.returncode}"
        raise InferenceServerError(f"{target.name}: the prompts could not be made: {why}")
    return done.stdout.decode("utf-8", "replace").strip()


def _environment(job: Job, folder: Path) -> dict[str, str]:
    unwanted = {*_OURS, *(() if job.uses_proxies else (*_PROXIES, *map(str.upper, _PROXIES)))}
    env = {name: value for name, value in environment().items() if name not in unwanted}
    env |= {**_OFFLINE, "HF_HOME": str(folder / "cache")}
    env.setdefault("GUIDELLM__LOGGING__CONSOLE_LOG_LEVEL", "WARNING")
    if job.load.is_open:
        # With several processes each gap between two arrivals comes once for each of them (seen with 0.8.1).
        env.setdefault("GUIDELLM__MAX_WORKER_PROCESSES", "1")
    return env


def _limit(load: Workload) -> float:
    """Return how many seconds it may take: none of its requests takes longer than the workload's limit of one."""
    if load.duration is not None:
        return STARTUP_LIMIT + load.duration + load.timeout
    count = (load.requests or 0) + load.warmup
    waits = load.timeout * -(-count // (load.concurrency or 1)) if load.rate is None else count / load.rate
    return STARTUP_LIMIT + load.ramp + waits + load.timeout


def _result(target: Target, load: Workload, path: Path, counted: str) -> LoadResult:
    try:
        report = json.loads(path.read_bytes())
        tool = f"guidellm {report['metadata']['guidellm_version']}"
        (benchmark,) = report["benchmarks"]
        rows = [*(benchmark["requests"]["successful"] or ()), *(benchmark["requests"]["errored"] or ())]
        begun = float(benchmark["scheduler_state"]["start_time"])
        samples = [_moved(_sample(one, load, target), begun) for one in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise InferenceServerError(
            f"{target.name}: guidellm has written no result that is understood: {said}"
        ) from None
    if load.is_open and any(one.due < -_EARLY for one in samples):
        raise InferenceServerError(
            f"{target.name}: {tool} has not sent the requests at their times, as happens to it on a busy machine:"
            " repeat it, or say arrivals='constant'"
        )
    samples = sorted(samples, key=lambda one: one.sent)[load.warmup :]
    first = min((one.due for one in samples), default=0.0)
    samples = [_moved(one, first) for one in samples]
    found = Baselines(Path(FOLDER).absolute(), target.name, target.identity, f"{target.engine}, {tool}")
    return LoadResult(
        load,
        target.name,
        samples,
        max((one.ended for one in samples), default=0.0),
        prompts=counted,
        interrupted="its prompts were used up" if load.requests is None and len(samples) >= MOST_PROMPTS else None,
        tool=tool,
        again=lambda: measure(target, load),
        reference=Reference(found),
    )


def _sample(row: Mapping[str, Any], load: Workload, target: Target) -> Sample:
    """Return a request as it stands in the report, where times are those of the clock."""
    info = row["info"]
    times = info["timings"]
    sent = float(times["request_start"] or times["resolve_start"])
    ended = float(times["request_end"] or times["resolve_end"])
    failure, text = None, None
    if info["error"] is not None:
        said = clean(" ".join(str(info["error"]).split()), target.secrets)[:_MAX_TEXT]
        status = _STATUS.search(said)
        failure, text = f"status {status[1]}" if status else said.partition("(")[0], said
    elif ended - sent > load.timeout:
        failure, text = "timeout", f"not complete after {load.timeout:g} s"
    return Sample(
        due=float(times["targeted_start"]) if load.is_open else sent,
        sent=sent,
        first=times["first_token_iteration"],
        ended=ended,
        last=times["last_token_iteration"],
        prompt_tokens=row["prompt_tokens"],
        output_tokens=row["output_metrics"]["total_tokens"],
        failure=failure,
        text=text,
    )


def _moved(one: Sample, begin: float) -> Sample:
    def since(moment: float | None) -> float | None:
        return None if moment is None else moment - begin

    return dataclasses.replace(
        one,
        due=one.due - begin,
        sent=one.sent - begin,
        first=since(one.first),
        ended=one.ended - begin,
        last=since(one.last),
    )


def _last_line(data: bytes, target: Target) -> str:
    lines = clean(data.decode("utf-8", "replace"), target.secrets).strip().splitlines()
    return lines[-1][:_MAX_TEXT] if lines else ""
