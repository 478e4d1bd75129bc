"""Intervals for a share that was counted: so many successes in so many trials.

Pure Python, so that a gateway, a check or a training may ask without numpy. Who has values instead of counts asks
`bootstrap.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

from drivetrain.statistics.binomial import at_least, at_most

HALVINGS_MAX = 1_100
"""A double is found by halving in fewer steps; it is only there so that no loop is without end."""


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a share; it covers the true share in at least `level` of all samples.

    (0, 1) where nothing was tried. Raises: ValueError for impossible counts or a level outside (0, 1).
    Source: Clopper and Pearson, Biometrika 26 (1934), 404-413; each side leaves (1 - level) / 2.
    """
    _check(successes, trials, level)
    tail = (1 - level) / 2
    return _lower(successes, trials, tail), _upper(successes, trials, tail)


def clopper_pearson_upper(successes: int, trials: int, level: float) -> float:
    """The exact one-sided upper bound of a share: the true share is above it in at most 1 - level of all samples.

    1 where nothing was tried. Raises: ValueError for impossible counts or a level outside (0, 1).
    Source: as `clopper_pearson`, with the whole 1 - level on one side.
    """
    _check(successes, trials, level)
    return _upper(successes, trials, 1 - level)


def wilson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The score interval of a share: shorter than the exact one, and it covers `level` of samples only about.

    (0, 1) where nothing was tried. Raises: ValueError for impossible counts or a level outside (0, 1).
    Source: Wilson, JASA 22 (1927), 209-212; without continuity correction.
    """
    _check(successes, trials, level)
    if not trials:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    failures, scale = trials - successes, trials + z * z
    middle = (successes + z * z / 2) / scale
    half = z / scale * math.sqrt(successes * failures / trials + z * z / 4)
    return (0.0 if not successes else max(0.0, middle - half)), (1.0 if not failures else min(1.0, middle + half))


def _check(successes: int, trials: int, level: float) -> None:
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials cannot be")
    if not 0 < level < 1:
        raise ValueError(f"a level must lie between 0 and 1, not {level}")


def _lower(successes: int, trials: int, tail: float) -> float:
    """The share at which `successes` or more have the chance `tail`."""
    if not successes:
        return 0.0
    return _where(lambda share: at_least(successes, trials, share) >= tail)


def _upper(successes: int, trials: int, tail: float) -> float:
    """The share at which `successes` or fewer have the chance `tail`."""
    if successes == trials:
        return 1.0
    return _where(lambda share: at_most(successes, trials, share) <= tail)


def _where(reached: Callable[[float], bool]) -> float:
    """The smallest share in (0, 1) at which a condition that only ever becomes true holds, by halving."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS_MAX):
        middle = low + (high - low) / 2
        if middle in (low, high):
            break
        if reached(middle):
            high = middle
        else:
            low = middle
    return high
