"""The interval of a mean by Student's t, with clusters where Calls belong together. Pure Python."""

from __future__ import annotations

import math
from collections.abc import Sequence

HALVINGS = 200
FRACTION_STEPS_MAX = 10_000
"""Of the continued fraction; it needs about the square root of its larger argument."""
SMALLEST = 1e-300
"""Stands for a denominator of zero."""
CLOSE = 1e-15


def mean_interval(
    values: Sequence[float], level: float = 0.95, *, clusters: Sequence[str] | None = None
) -> tuple[float, float]:
    """The two-sided interval of a mean; (-inf, inf) where fewer than two Calls, or clusters, tell of its spread.

    clusters: values of one name belong together, such as the Calls of one customer. Raises: ValueError without values.
    Source: Student's t on the values, or on the residual sums of the clusters (Liang and Zeger, Biometrika 73 (1986),
    13-22, with the factor m / (m - 1) for m clusters), with one degree of freedom less than there are.
    """
    if not values:
        raise ValueError("a mean of nothing")
    count = len(values)
    middle = math.fsum(values) / count
    sums: dict[str | int, float] = {}
    for place, value in enumerate(values):
        name = place if clusters is None else clusters[place]
        sums[name] = sums.get(name, 0.0) + value - middle
    many = len(sums)
    if many < 2:
        return -math.inf, math.inf
    error = math.sqrt(many / (many - 1) * math.fsum(one * one for one in sums.values())) / count
    half = student_quantile(0.5 + level / 2, many - 1) * error
    return middle - half, middle + half


def student_quantile(chance: float, freedom: int) -> float:
    """The value below which a Student's t with `freedom` degrees of freedom stays with `chance` (at least 0.5).

    Source: P(|T| > t) = I_x(freedom / 2, 1/2) with x = freedom / (freedom + t^2), DLMF 8.17; found by halving.
    """
    if not 0.5 <= chance < 1 or freedom < 1:
        raise ValueError(f"no t with {freedom} degrees of freedom stays below a value with chance {chance}")
    outside = 2 * (1 - chance)
    low, high = 0.0, 1.0
    while _outside(high, freedom) > outside:
        low, high = high, high * 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if _outside(middle, freedom) > outside:
            low = middle
        else:
            high = middle
    return high


def _outside(t: float, freedom: int) -> float:
    """P(|T| > t)."""
    return _beta_share(freedom / (freedom + t * t), freedom / 2, 0.5)


def _beta_share(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )  # fmt: skip
    if x > (a + 1) / (a + b + 2):
        return 1 - front * _fraction(1 - x, b, a) / b
    return front * _fraction(x, a, b) / a


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of DLMF 8.17.22, evaluated forwards by the modified method of Lentz."""
    value, above, below = 1.0, 1.0, 0.0
    for step in range(1, FRACTION_STEPS_MAX):
        half = step // 2
        if step % 2:
            term = -(a + half) * (a + b + half) * x / ((a + step - 1) * (a + step))
        else:
            term = half * (b - half) * x / ((a + step - 1) * (a + step))
        below = 1 / _nonzero(1 + term * below)
        above = _nonzero(1 + term / above)
        value *= above * below
        if abs(above * below - 1) < CLOSE:
            break
    return 1 / value


def _nonzero(value: float) -> float:
    return value if abs(value) > SMALLEST else SMALLEST
