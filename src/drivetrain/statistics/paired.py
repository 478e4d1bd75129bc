"""Two that answered the same examples, compared in one look: McNemar's exact test, and the bootstrap for scores.

One look means: how many examples there are was fixed before, and the test is made once. Who looks more often asks
`evidence.py`. McNemar is pure Python; the bootstrap needs numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from drivetrain.statistics.binomial import at_least, exactly
from drivetrain.statistics.bootstrap import RESAMPLES, load_numpy, resample
from drivetrain.statistics.intervals import clopper_pearson

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from drivetrain.statistics.bootstrap import Sums

FLIPS = 9_999
"""A chance then is known to within 0.0004 where it is 0.025, and can be as small as 0.0001."""
CELLS_MAX = 4_000_000
"""Flipped signs in memory at a time: 4 MB, and 32 MB as numbers."""
FLIP_NOISE = 1e-12
"""Sums that differ by less are the same sum, added in another order."""
SPREAD_SHARE_MIN = 1e-12
"""Of the squares that a variance is left over from: below it, it is a rounding error and there is no spread."""


class McNemar(msgspec.Struct, frozen=True, kw_only=True):
    """The chances of counts at least as far out as these, where neither is better."""

    two_sided: float
    """Exact: of either one being ahead by so much."""
    better: float
    """Exact, one-sided: of the candidate being ahead by so much."""
    worse: float
    """Exact, one-sided: of the candidate being behind by so much."""
    mid_p: float
    """Two-sided, with half the chance of just these counts: right about on average, not guaranteed."""


def mcnemar(wins: int, losses: int) -> McNemar:
    """The exact test of paired outcomes. wins, losses: pairs that only the candidate, or only the other, has right.

    Source: McNemar, Psychometrika 12 (1947), 153-157, with the binomial of a half instead of its approximation;
    mid-p: Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91 (2013).
    Raises: ValueError for counts below 0.
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"{wins} wins and {losses} losses cannot be")
    pairs = wins + losses
    better, worse = at_least(wins, pairs, 0.5), at_least(losses, pairs, 0.5)
    doubled = 2 * min(better, worse)
    return McNemar(
        two_sided=min(1.0, doubled), better=better, worse=worse,
        mid_p=min(1.0, doubled - exactly(wins, pairs, 0.5)),
    )  # fmt: skip


class Flips(msgspec.Struct, frozen=True, kw_only=True):
    """The chances of a sum at least as far out, where each cluster might as well have had the other sign."""

    better: float
    worse: float


def sign_flips(
    differences: Sequence[float], *, seed: int, clusters: Sequence[str] | None = None, flips: int = FLIPS
) -> Flips:
    """The one-sided tests of no difference by flipping signs: McNemar's test for scores, and for clusters.

    Exact where two that do not differ could have changed places in any cluster; elsewhere right for many clusters.
    Source: Fisher, The Design of Experiments (1935), section 21; drawn as in Phipson and Smyth, Statistical
    Applications in Genetics and Molecular Biology 9 (2010), eq. 2. Raises: DrivetrainError without numpy.
    """
    numpy = load_numpy()
    sums: dict[str | int, float] = {}
    for place, one in enumerate(differences):
        name = place if clusters is None else clusters[place]
        sums[name] = sums.get(name, 0.0) + one
    moved = numpy.array([one for one in sums.values() if abs(one) > FLIP_NOISE], dtype=numpy.float64)
    if not len(moved):
        return Flips(better=1.0, worse=1.0)
    seen = float(moved.sum())
    noise = FLIP_NOISE * float(numpy.abs(moved).sum())
    random = numpy.random.default_rng(seed)
    above = below = 0
    at_once = max(1, CELLS_MAX // len(moved))
    for first in range(0, flips, at_once):
        signs = random.integers(0, 2, size=(min(at_once, flips - first), len(moved)), dtype=numpy.int8)
        drawn = 2 * (signs @ moved) - seen
        above += int(numpy.sum(drawn >= seen - noise))
        below += int(numpy.sum(drawn <= seen + noise))
    return Flips(better=(1 + above) / (flips + 1), worse=(1 + below) / (flips + 1))


class Shift(msgspec.Struct, frozen=True, kw_only=True):
    """A mean difference with its interval, and the chances of one at least as large where there is none."""

    value: float
    low: float
    high: float
    better: float
    """One-sided: of the candidate being ahead by so much. At least 1 / (resamples + 1)."""
    worse: float
    """One-sided, the other way."""
    error: float
    """The standard error of `value`."""

    @property
    def two_sided(self) -> float:
        """The chance of either one being ahead by so much; it agrees with the interval."""
        return min(1.0, 2 * min(self.better, self.worse))


def paired_bootstrap(
    differences: Sequence[float], *, seed: int, clusters: Sequence[str] | None = None, beyond: float = 0.0,
    level: float = 0.95, resamples: int = RESAMPLES,
) -> Shift:  # fmt: skip
    """The mean of differences in [-1, 1] by the studentised bootstrap; `better` and `worse` are about `beyond`.

    clusters: differences of one name belong together and are drawn together. Where all that could be drawn is alike
    there is no spread to learn from: the interval is what an exact bound of the share of others leaves, and the
    chances are that share's.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), 12.5; the standard error of whole clusters
    as in `means.mean_interval`. Raises: ValueError where there is nothing to draw from; DrivetrainError without numpy.
    """
    numpy = load_numpy()
    sums: dict[str | int, list[float]] = {}
    for place, one in enumerate(differences):
        kept = sums.setdefault(place if clusters is None else clusters[place], [0.0, 0.0])
        kept[0] += one
        kept[1] += 1
    table = numpy.array(list(sums.values()), dtype=numpy.float64).reshape(-1, 2)
    total, size = table[:, 0], table[:, 1]
    draws = resample([total, size, total**2, total * size, size**2], seed=seed, resamples=resamples)

    means, errors = _studied(draws.rows.sum(axis=0, keepdims=True), len(sums))
    value, error = float(means[0]), float(errors[0])
    if not error:
        return _alike(value, len(sums), beyond, level)
    means, errors = _studied(draws.sums, len(sums))
    with numpy.errstate(divide="ignore", invalid="ignore"):
        # A resample without spread is infinitely far off, or not at all.
        moved = numpy.nan_to_num((means - value) / errors, nan=0.0, posinf=numpy.inf, neginf=-numpy.inf)
    low = value - error * float(numpy.quantile(moved, (1 + level) / 2, method="higher"))
    high = value - error * float(numpy.quantile(moved, (1 - level) / 2, method="lower"))
    seen = (value - beyond) / error
    return Shift(
        value=value, low=max(-1.0, low), high=min(1.0, high), error=error,
        better=(1 + int(numpy.sum(moved >= seen))) / (resamples + 1),
        worse=(1 + int(numpy.sum(moved <= seen))) / (resamples + 1),
    )  # fmt: skip


def _studied(sums: Sums, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means and their standard errors, each of shape (resamples,).

    sums: over clusters, of their totals, sizes, and of squares and products of these; count: of the clusters.
    """
    numpy = load_numpy()
    total, size, totals_squared, product, sizes_squared = sums.T
    mean = total / size
    squares = totals_squared - 2 * mean * product + mean**2 * sizes_squared
    squares = numpy.where(squares < SPREAD_SHARE_MIN * sizes_squared, 0.0, squares)
    return mean, numpy.sqrt(squares * count / max(1, count - 1)) / size


def _alike(value: float, count: int, beyond: float, level: float) -> Shift:
    """Where every difference, or every cluster's mean, is the same: others may still be there, unseen."""
    others = clopper_pearson(0, count, level)[1]
    low, high = value - others * (1 + value), value + others * (1 - value)
    # The share of others that would move the mean to `beyond`, and the chance that none of them was seen.
    down = (value - beyond) / (1 + value) if value > beyond else 0.0
    up = (beyond - value) / (1 - value) if value < beyond else 0.0
    return Shift(
        value=value, low=max(-1.0, low), high=min(1.0, high), error=0.0, better=(1 - down) ** count,
        worse=(1 - up) ** count,
    )  # fmt: skip
