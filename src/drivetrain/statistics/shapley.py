"""Shares of a change by Shapley: what each of a few factors contributes, on average over every order of changing them.

The value function is asked once per combination; who has measured the combinations gives a lookup in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

FACTORS_MAX = 4
"""Sixteen combinations, each of which may be a replay of thousands of Calls."""


def subsets(factors: Sequence[str]) -> list[frozenset[str]]:
    """Every combination, the smaller ones first."""
    return [frozenset(some) for size in range(len(factors) + 1) for some in combinations(factors, size)]


def weights(factors: Sequence[str]) -> dict[str, dict[frozenset[str], float]]:
    """Factor -> combination -> the weight of the combination's value in the factor's share; each row sums to 0.

    A share is linear in the values, so that bounds of the values give bounds of the share.
    Raises: ValueError for more than `FACTORS_MAX` factors, or one named twice.
    Source: Shapley, A value for n-person games, Contributions to the Theory of Games II (1953), 307-317.
    """
    count = len(factors)
    if count > FACTORS_MAX or len(set(factors)) != count:
        raise ValueError(f"{count} factors, of which {len(set(factors))} differ; at most {FACTORS_MAX} can be split")
    table: dict[str, dict[frozenset[str], float]] = {}
    for factor in factors:
        row: dict[frozenset[str], float] = {}
        for others in subsets([one for one in factors if one != factor]):
            size = len(others)
            share = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            row[others | {factor}] = share
            row[others] = -share
        table[factor] = row
    return table


def shapley(factors: Sequence[str], value: Callable[[frozenset[str]], float]) -> dict[str, float]:
    """Factor -> its share; the shares sum to `value(all) - value(none)`.

    value: of the combination in which just these factors are changed; asked once for each. Raises: as `weights`.
    """
    table = weights(factors)
    values = {some: value(some) for some in subsets(factors)}
    return {factor: math.fsum(weight * values[some] for some, weight in row.items()) for factor, row in table.items()}


def shapley_bounds(
    factors: Sequence[str], bounds: Mapping[frozenset[str], tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Factor -> the least and the most that its share can be where some values are only known to lie in bounds.

    bounds: of every combination; the same number twice where it is known. Raises: as `weights`.
    """
    shares = {}
    for factor, row in weights(factors).items():
        least = math.fsum(weight * bounds[some][0 if weight > 0 else 1] for some, weight in row.items())
        most = math.fsum(weight * bounds[some][1 if weight > 0 else 0] for some, weight in row.items())
        shares[factor] = (least, most)
    return shares
