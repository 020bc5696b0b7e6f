"""Slower or not: how often the comparison is wrong, by simulation with fixed seeds, and what it says of odd runs."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from pytest_infserver.load.baselines.comparison import LOOKS, NO_BASELINE, NOT_SLOWER, SLOWER, TOO_NOISY, compare, looks
from pytest_infserver.load.baselines.reference import SAVED_RUNS, check_pairs
from pytest_infserver.load.baselines.reference import _until_decided as until_decided

FIGURES = ("ttft", "tpot", "e2e", "seconds for a token")
TRIALS = 1000
SLOW = (pytest.mark.run, pytest.mark.nightly)
"""They take ten seconds of a core each."""


def machine(chance, noise, slower=0.0, outliers=0.0):
    """Return what makes one run: figures that share much of the noise, and now and then one that was disturbed."""

    def run():
        common = chance.gauss(0, 0.8 * noise)
        disturbed = math.log(1.3) if chance.random() < outliers else 0.0
        return {
            name: math.exp(common + disturbed + chance.gauss(0, 0.6 * noise) + math.log1p(slower)) for name in FIGURES
        }

    return run


def verdicts(noise, slower, seed, outliers=0.0, by=0.1, trials=TRIALS):
    chance = random.Random(seed)
    found = Counter()
    for _ in range(trials):
        before = [machine(chance, noise, outliers=outliers)() for _ in range(SAVED_RUNS)]
        run = machine(chance, noise, slower, outliers)
        verdict = until_decided([run()], run, lambda now, b=before: compare(b, now, by, 12, paired=False), 12)
        found[verdict.verdict] += 1
    return found


@pytest.mark.parametrize("noise", [pytest.param(0.005, marks=SLOW), pytest.param(0.02, marks=SLOW), 0.03])
def test_false_alarms_are_rare_and_ten_percent_are_found(noise: float) -> None:
    same = verdicts(noise, 0.0, f"same {noise}")
    assert same[SLOWER] < 0.01 * TRIALS
    assert same[NOT_SLOWER] > 0.95 * TRIALS
    slower = verdicts(noise, 0.1, f"slower {noise}")
    assert slower[SLOWER] > 0.95 * TRIALS


@pytest.mark.parametrize(
    ("noise", "outliers"), [pytest.param(*one, marks=SLOW) for one in ((0.06, 0.0), (0.15, 0.0), (0.02, 0.1))]
)
def test_noise_costs_decisions_and_not_false_alarms(noise: float, outliers: float) -> None:
    # So many that a rate of 0.2 % is told from one of 1 % whatever the seed.
    same = verdicts(noise, 0.0, f"noisy {noise}", outliers, trials=2000)
    assert same[SLOWER] < 0.01 * 2000
    slower = verdicts(noise, 0.1, f"noisy, slower {noise}", outliers, trials=400)
    # What is not found is told, and not called as fast as before.
    assert slower[NOT_SLOWER] < 0.05 * 400


def test_a_faster_server_is_not_slower() -> None:
    assert verdicts(0.02, -0.2, "faster", trials=200)[NOT_SLOWER] == 200


def test_drift_of_the_machine_hits_both_of_a_pair() -> None:
    chance = random.Random("drift")
    found = {0.0: Counter(), 0.1: Counter()}
    for slower, counter in found.items():
        for _ in range(300):
            state = [0.0]

            def run(more, state=state):
                state[0] += chance.gauss(0.01, 0.01)
                return {name: math.exp(state[0] + chance.gauss(0, 0.01)) * (1 + more) for name in FIGURES}

            counter[check_pairs(lambda s=slower: run(s), lambda: run(0.0), 0.1, 12).verdict] += 1
    assert found[0.0][SLOWER] < 3
    assert found[0.1][SLOWER] > 285


def test_without_any_noise_it_is_decided_at_the_first_look() -> None:
    before = [{"ttft": 1.0}] * 3
    assert compare(before, [{"ttft": 1.2}] * 3, 0.1, 12, paired=False).verdict == SLOWER
    found = compare(before, [{"ttft": 1.0}] * 3, 0.1, 12, paired=False)
    assert (found.verdict, found.runs) == (NOT_SLOWER, (3, 3))
    assert "not slower by 10 % (3 runs, 3 before)\n  ttft: +0.0 %" in str(found)


def test_figures_that_one_side_lacks_do_not_count() -> None:
    found = compare([{"ttft": 1.0, "tpot": 1.0}] * 3, [{"ttft": 1.0, "e2e": 9.0}] * 3, 0.1, 12, paired=False)
    assert list(found.changes) == ["ttft"]
    assert compare([{"tpot": 1.0}] * 3, [{"ttft": 1.0}] * 12, 0.1, 12, paired=False).verdict == TOO_NOISY


def test_looks() -> None:
    assert looks(12) == [3, 5, 8, 12]
    assert looks(1) == [LOOKS[0]]
    assert looks(100) == [3, 5, 8, 12, 16, 100]
    assert NO_BASELINE
