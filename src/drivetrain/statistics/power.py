"""How many examples it takes: to see a difference in one look, and to settle what may be looked at any time.

Pure Python. A number of examples is the smallest with which the question is settled with the chance `power`, if the
difference is what is given.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from drivetrain.statistics.binomial import at_least, exactly
from drivetrain.statistics.evidence import PRIOR, Tally, log_capitals, log_sum

POWER = 0.8
"""Four of five who look for a difference that is there find it."""
EXAMPLES_MAX = 10_000_000
"""Who would need more is told that no number will do."""
PAIRS_EXACT_MAX = 500
"""A search among so many takes a tenth of a second, and the formula is within a few percent beyond them."""
GUESS_OFF = 0.1
"""The formula is seldom further off; the search goes on where it is."""
SPREADS = 7.0
"""So far from its mean a count is looked at; what is beyond has a chance of 1e-11."""


def mcnemar_power(
    examples: int, *, discordance: float, difference: float, level: float = 0.95, one_sided: bool = False
) -> float:
    """The chance that McNemar's exact test, in one look at so many examples, finds the difference, on the right side.

    discordance: the share of examples that just one of the two has right. difference: of their accuracies, as a share.
    It costs milliseconds where a hundred pairs differ, seconds where 100,000 do. Source: the sum over both binomials,
    of pairs that differ and of wins among them, exact; Duffy, Biometrics 40 (1984), 1005-1015. Raises: ValueError where
    no shares of wins and losses have this sum and difference.
    """
    share = _winning(discordance, difference)
    tail = (1 - level) / (1 if one_sided else 2)
    spread = SPREADS * math.sqrt(examples * discordance * (1 - discordance)) + SPREADS
    first = max(0, math.floor(examples * discordance - spread))
    last = min(examples, math.ceil(examples * discordance + spread))
    needed = _wins_needed(first, tail)
    chances = []
    for pairs in range(first, last + 1):
        # One more pair asks for the same wins or for one more.
        while at_least(needed, pairs, 0.5) > tail:
            needed += 1
        chances.append(exactly(pairs, examples, discordance) * at_least(needed, pairs, share))
    return min(1.0, math.fsum(chances))


def examples_needed(
    *, discordance: float, difference: float, level: float = 0.95, power: float = POWER, one_sided: bool = False
) -> int | None:
    """How many examples McNemar's exact test needs in one look. None: more than `EXAMPLES_MAX`, or for no difference.

    Exact by `mcnemar_power` where that is quick, up to `PAIRS_EXACT_MAX` pairs that differ; beyond them Connor,
    Biometrics 43 (1987), 207-211, eq. 3, and one win more, as the exact test asks for. Raises: as `mcnemar_power`.
    """
    _winning(discordance, difference)
    if not difference:
        return None
    ask, find = _quantiles(level, power, one_sided)
    spread = math.sqrt(max(0.0, discordance - difference**2))
    guess = ((ask * math.sqrt(discordance) + find * spread) / difference) ** 2 + 1 / abs(difference)
    if guess > EXAMPLES_MAX:
        return None
    if guess * discordance > PAIRS_EXACT_MAX:
        return math.ceil(guess)

    def enough(examples: int) -> bool:
        found = mcnemar_power(
            examples, discordance=discordance, difference=difference, level=level, one_sided=one_sided
        )
        return found >= power

    low, high = int(guess * (1 - GUESS_OFF)), math.ceil(guess * (1 + GUESS_OFF))
    while low and enough(low):
        low, high = low // 2, low
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def mean_needed(
    *, deviation: float, difference: float, level: float = 0.95, power: float = POWER, one_sided: bool = False
) -> int | None:
    """How many differences with this standard deviation show their mean in one look. None: as `examples_needed`.

    Source: the normal test of a mean, n = ((z_ask + z_find) * deviation / difference)^2.
    """
    if not difference:
        return None
    ask, find = _quantiles(level, power, one_sided)
    needed = ((ask + find) * deviation / difference) ** 2
    return None if needed > EXAMPLES_MAX else max(1, math.ceil(needed))


def more_until(tally: Tally, needed: float, *, beyond: float = 0.0, power: float = POWER) -> int | None:
    """How many more bets, on top of those of `tally`, bring its evidence to `needed`, if they go on as before.

    needed: the logarithm of the evidence; `beyond`: as in `evidence.log_evidence`. A bet is a pair, or a cluster. None:
    more than `EXAMPLES_MAX`, or never. What was seen counts with half a win and half a loss added, so that a few equal
    pairs do not promise that all others will be like them.
    Source: for each stake, what further bets make of it is a sum of independent terms: its normal quantile at
    1 - power; the mean over the prior of these quantiles, since all stakes gain and lose together.
    """
    guess = dict(tally)
    for side in (1.0, -1.0):
        guess[side, 1.0] = guess.get((side, 1.0), 0) + 0.5
    count = math.fsum(guess.values())
    unlucky = NormalDist().inv_cdf(power)
    stakes = []
    for (stake, weight), capital, guessed in zip(
        PRIOR, log_capitals(tally, beyond), log_capitals(guess, beyond), strict=True
    ):
        now, step = capital + math.log(weight), guessed / count
        scale = stake / (1 + beyond)
        squares = math.fsum(
            times * math.log1p(scale * share * (one - beyond)) ** 2 for (one, share), times in guess.items()
        )
        stakes.append((now, step, math.sqrt(max(0.0, squares / count - step * step))))

    def reached(more: int) -> bool:
        return log_sum([now + more * step - unlucky * math.sqrt(more) * one for now, step, one in stakes]) >= needed

    low, high = 0, 1
    while not reached(high):
        low, high = high, high * 2
        if high > EXAMPLES_MAX:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def _winning(discordance: float, difference: float) -> float:
    """The candidate's share of the pairs that differ, where it is the better one."""
    if not 0 < discordance <= 1 or abs(difference) > discordance:
        raise ValueError(f"a difference of {difference} cannot come from a share of {discordance} that differ")
    return (1 + abs(difference) / discordance) / 2


def _quantiles(level: float, power: float, one_sided: bool) -> tuple[float, float]:
    if not (0 < level < 1 and 0 < power < 1):
        raise ValueError(f"a level and a power must lie between 0 and 1, not {level} and {power}")
    normal = NormalDist()
    return normal.inv_cdf(1 - (1 - level) / (1 if one_sided else 2)), normal.inv_cdf(power)


def _wins_needed(pairs: int, tail: float) -> int:
    """The fewest wins among so many pairs that the one-sided test calls better; more than there are if none do."""
    low, high = 0, pairs + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at_least(middle, pairs, 0.5) <= tail else (middle, high)
    return high
