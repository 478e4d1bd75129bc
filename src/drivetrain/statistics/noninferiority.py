"""Not worse by more than a margin, and the interval of a paired difference of shares, in one look. Pure Python.

Of many looks, the same question is `evidence.log_evidence(tally, beyond=-margin)`.
"""

from __future__ import annotations

import math
from statistics import NormalDist

HALVINGS = 60
"""Of an interval's end: to the last digits of a double."""


def noninferiority(wins: int, losses: int, ties: int, margin: float) -> float:
    """The chance of counts at least as good as these where the candidate is worse by just the margin: a small one says
    that it is not.

    wins, losses, ties: pairs that only the candidate, only the other one, or both or neither have right. margin: at
    least 0 and below 1; what of accuracy may be lost. 1 where nothing was seen.
    Source: Tango, Statistics in Medicine 17 (1998), 891-908, eq. 11: the score test, right for large samples.
    Raises: ValueError for a margin or counts that cannot be.
    """
    if not 0 <= margin < 1:
        raise ValueError(f"a margin is at least 0 and below 1, not {margin}")
    _check(wins, losses, ties)
    if not wins + losses + ties:
        return 1.0
    return 1 - NormalDist().cdf(score(wins, losses, ties, -margin))


def paired_interval(wins: int, losses: int, ties: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of the difference of two shares that were counted on the same examples.

    (-1, 1) where nothing was seen. Source: Tango (1998), section 4: the differences that the score test does not
    refuse. Raises: ValueError for counts or a level that cannot be.
    """
    if not 0 < level < 1:
        raise ValueError(f"a level must lie between 0 and 1, not {level}")
    _check(wins, losses, ties)
    if not wins + losses + ties:
        return -1.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    return _low(wins, losses, ties, z), -_low(losses, wins, ties, z)


def score(wins: int, losses: int, ties: int, difference: float) -> float:
    """How many standard errors the counts are above a difference, with the standard error that it would have.

    Source: Tango (1998), eq. 10; the share of losses under the constraint is the larger root of a quadratic.
    """
    pairs = wins + losses + ties
    above = wins - losses - pairs * difference
    b = (2 * pairs - wins + losses) * difference - wins - losses
    c = -losses * difference * (1 - difference)
    share = (math.sqrt(max(0.0, b * b - 8 * pairs * c)) - b) / (4 * pairs)
    variance = pairs * (2 * share + difference * (1 - difference))
    if variance <= 0:
        return math.copysign(math.inf, above) if above else 0.0
    return above / math.sqrt(variance)


def _low(wins: int, losses: int, ties: int, z: float) -> float:
    """The smallest difference that the counts are not more than `z` above."""
    low, high = -1.0, (wins - losses) / (wins + losses + ties)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if score(wins, losses, ties, middle) > z:
            low = middle
        else:
            high = middle
    return low


def _check(wins: int, losses: int, ties: int) -> None:
    if min(wins, losses, ties) < 0:
        raise ValueError(f"{wins} wins, {losses} losses and {ties} ties cannot be")
