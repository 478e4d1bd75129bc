"""Chances of counts: of exactly, at least and at most so many successes in so many trials. Pure Python."""

from __future__ import annotations

import math

TERM_SHARE_MIN = 1e-18
"""A tail's sum ends where the next term cannot change it any more."""


def exactly(successes: int, trials: int, share: float) -> float:
    """P(X = successes) of a binomial X with `trials` trials that succeed with the chance `share`."""
    if not 0 <= successes <= trials:
        return 0.0
    if share <= 0 or share >= 1:
        return float(successes == (trials if share >= 1 else 0))
    return math.exp(
        math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(trials - successes + 1)
        + successes * math.log(share) + (trials - successes) * math.log1p(-share)
    )  # fmt: skip


def at_least(successes: int, trials: int, share: float) -> float:
    """P(X >= successes) of a binomial X; about ten spreads' worth of terms are summed, however many trials."""
    if successes <= 0:
        return 1.0
    if successes > trials:
        return 0.0
    if successes <= trials * share:
        return max(0.0, 1 - at_most(successes - 1, trials, share))
    return _outwards(successes, trials, share)


def at_most(successes: int, trials: int, share: float) -> float:
    """P(X <= successes) of a binomial X; costs as `at_least`."""
    if successes < 0:
        return 0.0
    if successes >= trials:
        return 1.0
    if successes >= trials * share:
        return max(0.0, 1 - _outwards(successes + 1, trials, share))
    return _outwards(trials - successes, trials, 1 - share)


def _outwards(first: int, trials: int, share: float) -> float:
    """P(X >= first) where `first` is above the mean: the terms only become smaller."""
    if first > trials:
        return 0.0
    odds = share / (1 - share)
    total, term = 1.0, 1.0
    for number in range(first, trials):
        term *= (trials - number) / (number + 1) * odds
        total += term
        if term < TERM_SHARE_MIN * total:
            break
    return min(1.0, exactly(first, trials, share) * total)
