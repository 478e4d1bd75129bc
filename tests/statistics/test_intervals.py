"""Intervals of shares: equal to scipy's, and they cover what they promise."""

from __future__ import annotations

import random

import pytest
from scipy import stats

from drivetrain.statistics.intervals import clopper_pearson, clopper_pearson_upper, wilson

SEED = random.SystemRandom().getrandbits(32)
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)
CLOSE = 1e-9
EDGES = ((0, 1), (1, 1), (0, 10), (10, 10), (5, 10), (1, 10**6), (999_999, 10**6), (500_000, 10**6), (3, 10**7))


def drawn(dice: random.Random) -> tuple[int, int]:
    trials = dice.choice([dice.randint(1, 30), dice.randint(1, 5_000), dice.randint(1, 200_000)])
    few = dice.randint(0, min(5, trials))
    return dice.choice([dice.randint(0, trials), few, trials - few]), trials


def test_as_scipy_has_them() -> None:
    dice = random.Random(SEED)
    for successes, trials in [*EDGES, *(drawn(dice) for _ in range(150))]:
        level = dice.choice(LEVELS)
        told = f"seed {SEED}: {successes} of {trials} at {level}"
        tail = (1 - level) / 2
        low = stats.beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
        high, upper = (
            stats.beta.isf(one, successes + 1, trials - successes) if successes < trials else 1.0
            for one in (tail, 1 - level)
        )
        assert clopper_pearson(successes, trials, level) == pytest.approx((low, high), abs=CLOSE), told
        assert clopper_pearson_upper(successes, trials, level) == pytest.approx(upper, abs=CLOSE), told
        score = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
        assert wilson(successes, trials, level) == pytest.approx((score.low, score.high), abs=CLOSE), told


def test_the_exact_interval_covers_at_least_what_it_says() -> None:
    trials, level = 40, 0.9
    for share in (0.01, 0.1, 0.35, 0.5, 0.93):
        covered = upper = 0.0
        for successes in range(trials + 1):
            chance = stats.binom.pmf(successes, trials, share)
            low, high = clopper_pearson(successes, trials, level)
            covered += chance * (low <= share <= high)
            upper += chance * (share <= clopper_pearson_upper(successes, trials, level))
        assert covered >= level
        assert upper >= level


def test_nothing_tried_says_nothing() -> None:
    assert clopper_pearson(0, 0) == wilson(0, 0) == (0.0, 1.0)
    assert clopper_pearson_upper(0, 0, 0.95) == 1.0


@pytest.mark.parametrize(("successes", "trials", "level"), [(-1, 3, 0.9), (4, 3, 0.9), (1, 3, 0.0), (1, 3, 1.0)])
def test_impossible_counts_are_refused(successes: int, trials: int, level: float) -> None:
    for interval in (clopper_pearson, clopper_pearson_upper, wilson):
        with pytest.raises(ValueError, match=r"cannot be|between 0 and 1"):
            interval(successes, trials, level)
