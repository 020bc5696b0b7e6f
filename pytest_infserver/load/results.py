"""LoadResult: what a load has shown of a server."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pytest_infserver.load.baselines.comparison import NO_BASELINE, NOT_SLOWER, SLOWER, Verdict
from pytest_infserver.load.baselines.reference import Reference, check_pairs
from pytest_infserver.load.distribution import Distribution, distribution
from pytest_infserver.load.samples import Sample
from pytest_infserver.load.workload import Workload

_LATE = 0.01
_BUSY = 0.8


class LoadWarning(UserWarning):
    """A load could not be compared: there is no baseline, or the machine is too noisy."""


@dataclass(frozen=True)
class LoadResult:
    """One load as it was measured; all times are in seconds.

    Attributes:
        load: The workload.
        server: The server's name.
        samples: Its requests.
        seconds: How long it took, from the begin to the last answer.
        prompts: How the length of prompts was measured.
        queue_seconds: How long requests waited in the engine, on average, where its metrics tell it.
        generator_share: The generator's share of one core.
        server_share: How many cores the server has used, or None where that is not known.
        interrupted: Why it has ended early, or None.
        tool: The tool that has sent it and that one's version; None for our own generator.
        again: Measures the same once more.
        reference: What it is compared with.
    """

    load: Workload
    server: str
    samples: Sequence[Sample] = field(repr=False)
    seconds: float
    prompts: str = ""
    queue_seconds: float | None = None
    generator_share: float | None = None
    server_share: float | None = None
    interrupted: str | None = None
    tool: str | None = None
    again: Callable[[], LoadResult] | None = field(default=None, repr=False, compare=False)
    reference: Reference | None = field(default=None, repr=False, compare=False)

    @cached_property
    def good(self) -> list[Sample]:
        """The requests that went well."""
        return [one for one in self.samples if one.failure is None]

    @property
    def completed(self) -> int:
        """How many requests went well."""
        return len(self.good)

    @property
    def failed(self) -> int:
        """How many did not."""
        return len(self.samples) - len(self.good)

    @cached_property
    def failures(self) -> dict[str, tuple[int, str]]:
        """Kind of failure to how many there were, and what was said about the first."""
        found: dict[str, tuple[int, str]] = {}
        for one in self.samples:
            if one.failure is not None:
                count, text = found.get(one.failure, (0, one.text or ""))
                found[one.failure] = count + 1, text
        return found

    @cached_property
    def ttft(self) -> Distribution:
        """Times to the first token."""
        return distribution(one.ttft for one in self.good)

    @cached_property
    def itl(self) -> Distribution:
        """Times between two parts of an answer; a part may have several tokens."""
        return distribution(gap for one in self.good for gap in one.gaps)

    @cached_property
    def tpot(self) -> Distribution:
        """Each answer's time for a token after the first."""
        return distribution(one.tpot for one in self.good)

    @cached_property
    def e2e(self) -> Distribution:
        """Times to the end of the answer."""
        return distribution(one.e2e for one in self.good)

    @cached_property
    def lateness(self) -> Distribution:
        """How long after they were due the generator has sent requests."""
        return distribution(one.sent - one.due for one in self.samples)

    @property
    def requests_per_second(self) -> float:
        """How many requests went well in a second."""
        return self.completed / self.seconds if self.seconds > 0 else math.nan

    @property
    def output_tokens_per_second(self) -> float:
        """Tokens of answers in a second; not a number if the engine does not count them."""
        return self._tokens("output_tokens")

    @property
    def input_tokens_per_second(self) -> float:
        """Tokens of prompts in a second."""
        return self._tokens("prompt_tokens")

    def _tokens(self, name: str) -> float:
        found = [getattr(one, name) for one in self.good if getattr(one, name) is not None]
        return sum(found) / self.seconds if found and self.seconds > 0 else math.nan

    @property
    def goodput(self) -> float:
        """How many requests in a second went well within the workload's limits."""
        limits = self.load.limits.items()
        kept = [
            one
            for one in self.good
            if all((value := getattr(one, name)) is None or value <= most for name, most in limits)
        ]
        return len(kept) / self.seconds if self.seconds > 0 else math.nan

    @cached_property
    def figures(self) -> dict[str, float]:
        """What is compared with a baseline: times that are longer where it is slower.

        Means of logarithms: a single request that took a hundred times as long does not count a hundred times.
        """
        found = {"ttft": _typical(one.ttft for one in self.good), "tpot": _typical(one.tpot for one in self.good)}
        found["e2e"] = _typical(one.e2e for one in self.good)
        if not self.load.is_open and self.output_tokens_per_second > 0:
            found["seconds for a token"] = 1 / self.output_tokens_per_second
        return {name: value for name, value in found.items() if value > 0}

    def assert_not_slower(
        self, by: float = 0.1, *, than: LoadResult | None = None, figures: Collection[str] = (), repeats: int = 12
    ) -> None:
        """Fail if the server is slower than its baseline, or than another one; the load is repeated until that is sure.

        What is as fast as before fails in less than 1 % of runs, what is slower by as much as ``by`` is found in 95 %,
        unless the machine is too noisy, which is a warning, as is a missing baseline.

        Args:
            by: The slowdown that is to be found, 0.1 for 10 %. What is slower by less than half of it does not fail.
            than: A result of another server, which gets the load in turns with this one; if None the baseline.
            figures: Which of `figures` count; if empty all.
            repeats: At most so many runs.

        Raises:
            AssertionError: It is slower, requests have failed, or a baseline is missing that must be there.
            BaselineError: The file of the baseline is none, or cannot be written.
            ValueError: An argument is wrong, or the other result was measured by another tool.
        """
        __tracebackhide__ = True
        self.require_good()
        unknown = set(figures) - {"ttft", "tpot", "e2e", "seconds for a token"}
        if unknown or not by > 0 or repeats < 1:
            raise ValueError(f"assert_not_slower: by={by!r}, figures={figures!r}, repeats={repeats!r}")

        def of(result: LoadResult) -> dict[str, float]:
            return {name: value for name, value in result.figures.items() if not figures or name in figures}

        if than is not None:
            if than.load.tool != self.load.tool:
                raise ValueError("assert_not_slower: loads of two tools are not compared, for they measure otherwise")
            verdict: Verdict | None = check_pairs(lambda: of(self.repeated()), lambda: of(than.repeated()), by, repeats)
            if verdict is not None and self.reference is not None:
                self.reference.told(verdict)
        elif self.reference is None:
            raise AssertionError("this result has no baseline to be compared with")
        else:
            verdict = self.reference.check(
                self.load.key, str(self.load), of(self), lambda: of(self.repeated()), by, repeats
            )
        if verdict is None:
            return
        required = self.reference is not None and self.reference.required
        if verdict.verdict == SLOWER or (verdict.verdict == NO_BASELINE and required):
            raise AssertionError(f"{self.server}: {verdict}")
        if verdict.verdict != NOT_SLOWER:
            warnings.warn(f"{self.server}: {verdict}", LoadWarning, stacklevel=2)

    def save_baseline(self) -> None:
        """Repeat the load, and write what it shows as the baseline of this server, machine and workload.

        Raises:
            AssertionError: Requests have failed.
            BaselineError: The file cannot be written.
        """
        self.require_good()
        if self.reference is not None:
            self.reference.save(self.load.key, str(self.load), self.figures, lambda: self.repeated().figures)

    def repeated(self) -> LoadResult:
        """Measure the same once more.

        Raises:
            AssertionError: Requests have failed.
        """
        assert self.again is not None, "this result cannot be measured again"
        found = self.again()
        found.require_good()
        return found

    def require_good(self) -> None:
        """Raise if nothing can be compared.

        Raises:
            AssertionError: Requests have failed, or none was sent.
        """
        if self.failed or not self.completed:
            kinds = "; ".join(f"{count} x {kind}: {text}" for kind, (count, text) in self.failures.items())
            raise AssertionError(
                f"{self.server}: requests have failed, nothing is compared: {kinds or 'none was sent'}"
            )

    @cached_property
    def notes(self) -> list[str]:
        """What has to be known to read the numbers."""
        found = [f"ended early: {self.interrupted}"] if self.interrupted else []
        if self.tool is not None:
            found.append(f"sent by {self.tool}, which does not tell the times between parts (itl)")
        if not self.samples:
            found.append("no request was sent")
        if self.load.is_open:
            found.append("latencies count from when each request was due (coordinated omission is corrected)")
            if self.lateness.p99 > _LATE:
                found.append(f"the generator was late: p99 {1e3 * self.lateness.p99:.0f} ms")
        silent = sum(one.output_tokens is None for one in self.good)
        if silent:
            found.append(f"no usage in {silent} of {self.completed} answers: their tokens are not counted")
        streamed = [one for one in self.good if one.output_tokens and one.first is not None and one.last is None]
        parts = sum(len(one.gaps) + 1 for one in streamed)
        tokens = sum(one.output_tokens or 0 for one in streamed)
        if parts and tokens > 1.1 * parts:
            found.append(f"{tokens / parts:.1f} tokens came at a time: itl is the time between two such parts")
        if self.generator_share is not None and self.generator_share > _BUSY:
            found.append(f"the generator was busy ({100 * self.generator_share:.0f} % of a core): it may be the limit")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return all of it but the single requests, for JSON."""
        times = {name: getattr(self, name).as_dict() for name in ("ttft", "itl", "tpot", "e2e")}
        rates = ("requests_per_second", "output_tokens_per_second", "input_tokens_per_second", "goodput")
        return {
            "server": self.server,
            "workload": str(self.load),
            "key": self.load.key,
            "seconds": round(self.seconds, 6),
            "completed": self.completed,
            "failed": self.failed,
            "failures": [{"kind": kind, "count": count, "text": text} for kind, (count, text) in self.failures.items()],
            **times,
            **{name: None if math.isnan(value := getattr(self, name)) else round(value, 4) for name in rates},
            "queue_seconds": self.queue_seconds,
            "prompts": self.prompts,
            "generator_share": self.generator_share,
            "server_share": self.server_share,
            "interrupted": self.interrupted,
            "tool": self.tool,
            "notes": self.notes,
        }


def _typical(times: Iterable[float | None]) -> float:
    logs = [math.log(one) for one in times if one is not None and one > 0]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
