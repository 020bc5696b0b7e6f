"""Reference: what results are compared with, and how often a load is repeated for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_infserver.load.baselines.comparison import LOOKS, NO_BASELINE, OPEN, Figures, Verdict, compare, looks
from pytest_infserver.load.baselines.files import Baselines

SAVED_RUNS = 8
"""So many runs are a baseline."""
Again = Callable[[], Figures]


@dataclass(frozen=True)
class Reference:
    """Where baselines are, and what is to be done with them.

    Attributes:
        baselines: Their files.
        saves: Whether they are written anew.
        compares: Whether results are compared.
        required: Whether a missing baseline is a failure.
        told: Gets each verdict.
    """

    baselines: Baselines
    saves: bool = False
    compares: bool = True
    required: bool = False
    told: Callable[[Verdict], None] = lambda verdict: None

    def check(self, key: str, about: str, first: Figures, again: Again, by: float, repeats: int) -> Verdict | None:
        """Compare a load with its baseline, or save that; return the verdict, or None where nothing was compared.

        Args:
            key: The workload's.
            about: It, in words.
            first: The figures of the first run.
            again: Makes another one.
            by: The slowdown that is to be found.
            repeats: At most so many runs.

        Raises:
            BaselineError: The file is none, or cannot be written.
        """
        if self.saves:
            self.save(key, about, first, again)
            return None
        if not self.compares:
            return None
        found = self.baselines.load(key)
        if found is None or len(found.runs) < LOOKS[0]:
            notes = [f"save one: pytest --infserver-load-save ({self.baselines.path(key).name})"]
            notes += [f"one of another machine, which is not compared: {one}" for one in self.baselines.elsewhere(key)]
            verdict = Verdict(NO_BASELINE, by=by, notes=notes)
        else:
            verdict = _until_decided(
                [first], again, lambda now: compare(found.runs, now, by, repeats, paired=False), repeats
            )
            verdict = dataclasses.replace(verdict, notes=found.differences(self.baselines.engine))
        self.told(verdict)
        return verdict

    def save(self, key: str, about: str, first: Figures, again: Again) -> None:
        """Write a baseline.

        Raises:
            BaselineError: It cannot be written.
        """
        self.baselines.save(key, about, [first, *(again() for _ in range(SAVED_RUNS - 1))])


def check_pairs(here: Again, there: Again, by: float, repeats: int) -> Verdict:
    """Compare two servers by runs that take turns, so that what happens to the machine happens to both.

    Args:
        here: Makes a run on the one that must not be slower.
        there: Makes one on the other.
        by: The slowdown that is to be found.
        repeats: At most so many pairs.
    """
    before: list[Figures] = []

    def pair() -> Figures:
        # In turns who is first.
        if len(before) % 2:
            now = here()
            before.append(there())
            return now
        before.append(there())
        return here()

    return _until_decided([pair()], pair, lambda now: compare(before, now, by, repeats, paired=True), repeats)


def _until_decided(
    runs: list[Figures], again: Again, judge: Callable[[Sequence[Figures]], Verdict], repeats: int
) -> Verdict:
    verdict = Verdict(OPEN)
    for count in looks(repeats):
        while len(runs) < count:
            runs.append(again())
        verdict = judge(runs)
        if verdict.verdict != OPEN:
            break
    return verdict
