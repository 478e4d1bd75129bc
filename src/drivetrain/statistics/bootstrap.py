"""Intervals by resampling: of any number that can be computed from sums over Calls, such as a mean or a ratio.

Needs numpy. A statistic is a function of sums, so that a resample is one addition of rows, whole clusters are resampled
as easily as single Calls, and thousands of resamples take a second. The seed is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import msgspec

from drivetrain.core.errors import DrivetrainError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Sums = NDArray[np.float64]
    """Shape (resamples, columns)."""
    Statistic = Callable[[Sums], NDArray[np.float64]]
    """Sums -> one number per resample, shape (resamples,); NaN where it cannot be computed."""

RESAMPLES = 2_000
"""The ends of a 95 % interval then rest on about fifty resamples each."""
CELLS_MAX = 4_000_000
"""Draws in memory at a time: 32 MB."""
METHODS = ("percentile", "bca")


class Interval(msgspec.Struct, frozen=True):
    """A number with the interval that its sampling leaves it in."""

    value: float
    low: float
    high: float


def load_numpy() -> Any:
    """numpy. Raises: DrivetrainError where it is not installed."""
    try:
        import numpy
    except ImportError:
        raise DrivetrainError(
            "Intervals by resampling need numpy, which is not installed.", do='Run `pip install "drivetrain[models]"`.'
        ) from None
    return numpy


def bootstrap(
    columns: Sequence[Sequence[float]],
    statistics: Sequence[Statistic],
    *,
    seed: int,
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    method: str = "percentile",
) -> list[Interval]:
    """The interval of each statistic, all on the same resamples.

    columns: of equal length, one value per Call; a column of ones counts Calls. clusters: Calls of one name are drawn
    together; None: each Call by itself. A statistic that some resample cannot give is judged by the others.
    Raises: ValueError where there is nothing to draw from or a name is unknown; DrivetrainError without numpy.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), 13.3 (percentile) and 14.3 (BCa).
    """
    if method not in METHODS:
        raise ValueError(f"`{method}` is none of {', '.join(METHODS)}")
    numpy = load_numpy()
    draws = resample(columns, seed=seed, clusters=clusters, resamples=resamples)
    total = draws.rows.sum(axis=0, keepdims=True)
    found = []
    for statistic in statistics:
        value = float(statistic(total)[0])
        values = statistic(draws.sums)
        tails = ((1 - level) / 2, (1 + level) / 2)
        if method == "bca" and len(draws.rows) > 1:
            tails = _corrected(tails, value, values[numpy.isfinite(values)], statistic(total - draws.rows))
        found.append(_between(value, values, tails))
    return found


class Draws(msgspec.Struct, frozen=True):
    """What was drawn."""

    rows: Any
    """Shape (clusters, columns): each cluster's sums."""
    sums: Any
    """Shape (resamples, columns): the sums of each resample."""


def resample(
    columns: Sequence[Sequence[float]], *, seed: int, clusters: Sequence[str] | None = None, resamples: int = RESAMPLES
) -> Draws:
    """The sums of each resample, for who draws from several periods and puts them together. Raises: as `bootstrap`."""
    if not columns or not len(columns[0]):
        raise ValueError("there is nothing to draw from")
    numpy = load_numpy()
    rows = _by_cluster(numpy.array(columns, dtype=numpy.float64).T, clusters)
    return Draws(rows, _drawn(rows, resamples, numpy.random.default_rng(seed)))


def percentiles(value: float, values: NDArray[np.float64], level: float = 0.95) -> Interval:
    """The percentile interval of a number that was computed from each resample; what is not finite is left out."""
    return _between(value, values, ((1 - level) / 2, (1 + level) / 2))


def mean(sums: Sums) -> NDArray[np.float64]:
    """Of two columns: values, and ones."""
    return ratio(0, 1)(sums)


def ratio(above: int, below: int) -> Statistic:
    """The sum of one column over that of another; NaN where the latter is 0."""

    def statistic(sums: Sums) -> NDArray[np.float64]:
        numpy = load_numpy()
        divisor = numpy.where(sums[:, below] == 0, numpy.nan, sums[:, below])
        result: NDArray[np.float64] = sums[:, above] / divisor
        return result

    return statistic


def _between(value: float, values: NDArray[np.float64], tails: tuple[float, float]) -> Interval:
    numpy = load_numpy()
    finite = values[numpy.isfinite(values)]
    if not len(finite):
        return Interval(value, value, value)
    low, high = numpy.quantile(finite, tails)
    return Interval(value, float(low), float(high))


def _by_cluster(rows: Sums, clusters: Sequence[str] | None) -> Sums:
    """Each cluster's sums, shape (clusters, columns), in the order in which clusters first appear."""
    if clusters is None:
        return rows
    numpy = load_numpy()
    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    sums: Sums = numpy.zeros((len(places), rows.shape[1]))
    numpy.add.at(sums, [places[name] for name in clusters], rows)
    return sums


def _drawn(rows: Sums, resamples: int, random: np.random.Generator) -> Sums:
    """The sums of each resample: as many rows as there are, drawn with replacement."""
    numpy = load_numpy()
    count = len(rows)
    drawn: Sums = numpy.empty((resamples, rows.shape[1]))
    at_once = max(1, CELLS_MAX // count)
    for first in range(0, resamples, at_once):
        many = min(at_once, resamples - first)
        # How often each row was drawn, times the rows: no copy of the rows themselves is made.
        places = random.integers(0, count, size=(many, count)) + numpy.arange(many)[:, None] * count
        times = numpy.bincount(places.ravel(), minlength=many * count).reshape(many, count)
        drawn[first : first + many] = times @ rows
    return drawn


def _corrected(
    tails: tuple[float, float], value: float, values: NDArray[np.float64], left_out: NDArray[np.float64]
) -> tuple[float, float]:
    """The quantiles to take instead of `tails`, for bias and for a spread that depends on the value."""
    numpy, normal = load_numpy(), NormalDist()
    if not len(values):
        return tails
    below = (float(numpy.sum(values < value)) + float(numpy.sum(values <= value))) / (2 * len(values))
    if not 0 < below < 1:
        return tails
    bias = normal.inv_cdf(below)
    gaps = numpy.nanmean(left_out) - left_out
    spread = float(numpy.nansum(gaps**2)) ** 1.5
    acceleration = float(numpy.nansum(gaps**3)) / (6 * spread) if spread else 0.0

    def moved(tail: float) -> float:
        z = bias + normal.inv_cdf(tail)
        return normal.cdf(bias + z / (1 - acceleration * z))

    return moved(tails[0]), moved(tails[1])
