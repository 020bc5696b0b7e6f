"""Workload: which requests a server gets, and when."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_infserver.errors import ConfigError

_KINDS = ("completions", "chat")
_ARRIVALS = ("poisson", "constant")
_TOOLS = ("guidellm",)


@dataclass(frozen=True)
class Workload:
    """One kind of load; all times are in seconds.

    Attributes:
        requests: How many requests are measured; without it and ``duration`` 100.
        duration: How long new requests are sent, in place of a number or beside it.
        concurrency: Closed loop: so many users, each of whom sends when the last answer is complete. Without it and
            ``rate`` 1.
        rate: Open loop: so many requests a second, whether or not the server keeps up.
        arrivals: Open loop: ``poisson`` (as people come) or ``constant``.
        ramp: Over this time the rate, or the number of users, grows to its full height.
        warmup: So many requests before, which are not measured.
        api: ``completions`` or ``chat``.
        stream: Whether answers come token by token; without that there is no time to the first one.
        prompt_tokens: How long prompts are.
        output_tokens: How long answers are asked to be; engines that know ``ignore_eos`` make them just as long.
        prefix_share: Which share of a prompt (0 to 1) is the same in all of them, as a system prompt is.
        text: A file whose words the prompts are made of; None for a built-in list of words.
        dataset: A JSON lines file of conversations or prompts (``conversations``, ``messages``, ``prompt``) that
            are asked in place of prompts of a length.
        seed: The same seed makes the same prompts at the same times.
        timeout: A request that takes longer has failed.
        extra_body: Further keys of each request.
        tool: None for our own generator, or ``guidellm``, which is installed in an environment of its own and found on
            PATH or by the variable GUIDELLM.
        limits: Goodput counts the requests that keep these limits: ``{"ttft": 0.5, "tpot": 0.05, "e2e": 5}``.
    """

    requests: int | None = None
    duration: float | None = None
    concurrency: int | None = None
    rate: float | None = None
    arrivals: str = "poisson"
    ramp: float = 0.0
    warmup: int = 0
    api: str = "completions"
    stream: bool = True
    prompt_tokens: int = 128
    output_tokens: int = 32
    prefix_share: float = 0.0
    text: str | None = None
    dataset: str | None = None
    seed: int = 0
    timeout: float = 600.0
    extra_body: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    tool: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether requests come whether or not the server keeps up."""
        return self.rate is not None

    @property
    def key(self) -> str:
        """A short hash of all that decides how fast a server looks."""
        told = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("timeout", "limits")}
        if self.tool is None:
            # Baselines that were written before there were tools stay good.
            del told["tool"]
        for name in ("text", "dataset"):
            if told[name] is not None:
                told[name] = hashlib.sha256(Path(told[name]).read_bytes()).hexdigest()
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:10]

    def __str__(self) -> str:
        """Say it in words."""
        how = f"{self.rate:g} requests/s ({self.arrivals})" if self.rate else f"{self.concurrency} at a time"
        much = [f"{self.requests} requests"] if self.requests else []
        much += [f"{self.duration:g} s"] if self.duration else []
        what = "a dataset" if self.dataset else f"{self.prompt_tokens} tokens"
        by = "" if self.tool is None else f", by {self.tool}"
        return f"{', '.join(much)}, {how}, {what} in, {self.output_tokens} out{by}"


def make_workload(**settings: Any) -> Workload:
    """Return a workload with what is left out filled in.

    Raises:
        ConfigError: A setting is unknown or has a wrong value.
    """
    known = {one.name for one in dataclasses.fields(Workload)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ConfigError(f"load: unknown setting {unknown[0]!r}; there are {', '.join(sorted(known))}")
    if settings.get("rate") is None and settings.get("concurrency") is None:
        settings["concurrency"] = 1
    if settings.get("requests") is None and settings.get("duration") is None:
        settings["requests"] = 100
    for name in ("text", "dataset"):
        if settings.get(name) is not None:
            settings[name] = str(Path(settings[name]).absolute())
    made = Workload(**settings)
    problem = _problem(made)
    if problem is not None:
        raise ConfigError(f"load: {problem}")
    return made


def _problem(load: Workload) -> str | None:
    counts = ("requests", "concurrency", "prompt_tokens", "output_tokens")
    for name in (*counts, "warmup", "seed"):
        value, least = getattr(load, name), 1 if name in counts else 0
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            return f"{name} is a whole number from {least} on, not {value!r}"
    for name in ("duration", "rate", "ramp", "timeout"):
        value = getattr(load, name)
        smallest = 0.0 if name == "ramp" else 1e-6
        if value is not None and not (isinstance(value, (int, float)) and smallest <= value < float("inf")):
            return f"{name} is a number above 0, not {value!r}"
    if load.rate is not None and load.concurrency is not None:
        return "either rate (open loop) or concurrency (closed loop)"
    if not 0 <= load.prefix_share <= 1:
        return f"prefix_share is a share from 0 to 1, not {load.prefix_share!r}"
    for name, known in (("api", _KINDS), ("arrivals", _ARRIVALS)):
        if getattr(load, name) not in known:
            return f"{name} is {' or '.join(known)}, not {getattr(load, name)!r}"
    wrong = [name for name in load.limits if name not in ("ttft", "tpot", "e2e")]
    if wrong:
        return f"limits know ttft, tpot and e2e, not {wrong[0]!r}"
    for name in ("text", "dataset"):
        file = getattr(load, name)
        if file is not None and not Path(file).is_file():
            return f"{name}: there is no file {file}"
    return None if load.tool is None else _problem_of_tool(load)


def _problem_of_tool(load: Workload) -> str | None:
    if load.tool not in _TOOLS:
        return f"tool is {' or '.join(_TOOLS)}, not {load.tool!r}"
    if load.warmup and load.requests is None:
        return f"{load.tool} knows no warmup of a load that a duration alone ends: say requests"
    if load.ramp and load.is_open and load.arrivals == "poisson":
        return f"{load.tool} knows no ramp of poisson arrivals: say arrivals='constant'"
    return None
