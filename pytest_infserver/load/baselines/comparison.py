"""Is it slower than before? Pure statistics on the figures of whole runs, not on single requests.

The requests of one run share the state of the machine, so that their spread says too little about how far two runs are
apart: a run is one observation. Figures are compared by their logarithms; 0.1 stands for 10 % slower.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_infserver.load.statistics import t_quantile

LOOKS = (3, 5, 8, 12, 16)
"""After so many runs it is looked whether it is decided; each look has its share of the errors."""
FALSE_ALARMS = 0.002
"""Nominal probability that what is as fast as before is called slower. Far less than the 1 % that is promised: Welch's
test of a few runs raises more alarms than it says, some 0.64 % in place of 0.5 % by simulation."""
MISSED = 0.02
"""The same that what is slower by as much as was asked for is called not slower."""
SLOWER, NOT_SLOWER, OPEN, TOO_NOISY, NO_BASELINE = "slower", "not slower", "open", "too noisy", "no baseline"

Figures = Mapping[str, float]
"""Name to a time of one run; longer is slower."""


@dataclass(frozen=True)
class Change:
    """How much slower one figure has become; 0.1 stands for 10 %.

    Attributes:
        estimate: As far as is known.
        low: At least so much.
        high: At most so much.
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_percent(self.estimate)} ({_percent(self.low)} to {_percent(self.high)})"


@dataclass(frozen=True)
class Verdict:
    """What a comparison has come to.

    Attributes:
        verdict: ``slower``, ``not slower``, ``too noisy``, ``no baseline``, or ``open`` while it goes on.
        changes: Name of a figure to its change.
        runs: How many runs were compared with how many.
        by: The slowdown that was looked for.
        notes: What is not as it was when the baseline was saved, or why there is none.
    """

    verdict: str
    changes: Mapping[str, Change] = field(default_factory=dict)
    runs: tuple[int, int] = (0, 0)
    by: float = 0.1
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        """Say it in some lines."""
        what = f" by {100 * self.by:.0f} %" if self.verdict in (NOT_SLOWER, TOO_NOISY) else ""
        head = {TOO_NOISY: f"too noisy to tell whether it is slower{what}"}.get(self.verdict, f"{self.verdict}{what}")
        runs = f" ({self.runs[0]} runs, {self.runs[1]} before)" if self.changes else ""
        lines = [f"{head}{runs}", *(f"{name}: {change}" for name, change in self.changes.items()), *self.notes]
        return "\n  ".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        changes = {
            name: [round(one.estimate, 5), round(one.low, 5), round(one.high, 5)] for name, one in self.changes.items()
        }
        return {
            "verdict": self.verdict,
            "by": self.by,
            "changes": changes,
            "runs": list(self.runs),
            "notes": list(self.notes),
        }


def looks(repeats: int) -> list[int]:
    """Return after how many runs it is looked at the comparison, if there are to be at most so many."""
    return sorted({*(one for one in LOOKS if one < repeats), max(LOOKS[0], repeats)})


def compare(before: Sequence[Figures], now: Sequence[Figures], by: float, repeats: int, *, paired: bool) -> Verdict:
    """Decide, as far as it can be decided.

    Args:
        before: Runs of before, or of the other server.
        now: Runs of now.
        by: The slowdown that is to be found.
        repeats: How many runs there are to be at most.
        paired: Whether each run of now belongs to one of before, beside which it was made.
    """
    known = [name for name in now[0] if all(name in run and run[name] > 0 for run in (*before, *now))]
    limit = math.log1p(by)
    share = FALSE_ALARMS / len(looks(repeats)) / max(1, len(known)), MISSED / len(looks(repeats))
    changes, slower, fine = {}, False, bool(known)
    for name in known:
        logs = [[math.log(run[name]) for run in runs] for runs in (before, now)]
        estimate, error, freedom = _paired(*logs) if paired else _welch(*logs)
        alarm, ease = (t_quantile(1 - one, freedom) * error for one in share)
        slower = slower or (estimate - alarm > 0 and estimate >= limit / 2)
        fine = fine and estimate + ease < limit and estimate < limit / 2
        changes[name] = Change(*(math.expm1(one) for one in (estimate, estimate - alarm, estimate + ease)))
    last = len(now) >= looks(repeats)[-1]
    verdict = SLOWER if slower else NOT_SLOWER if fine else TOO_NOISY if last else OPEN
    return Verdict(verdict, changes, (len(now), len(before)), by)


def _paired(before: Sequence[float], now: Sequence[float]) -> tuple[float, float, float]:
    differences = [after - one for one, after in zip(before, now, strict=True)]
    return statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences)), len(now) - 1


def _welch(before: Sequence[float], now: Sequence[float]) -> tuple[float, float, float]:
    parts = [statistics.variance(one) / len(one) for one in (before, now)]
    error = math.sqrt(sum(parts))
    below = sum(part * part / (len(one) - 1) for part, one in zip(parts, (before, now), strict=True))
    # In steps, so that quantiles are found again.
    freedom = math.floor(4 * sum(parts) ** 2 / below) / 4 if below else len(before) + len(now) - 2
    return statistics.fmean(now) - statistics.fmean(before), error, freedom


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"
