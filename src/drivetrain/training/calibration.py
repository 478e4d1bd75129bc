"""Calibration: whether a confidence of 0.9 is right nine times of ten, and the one number that makes it so.

Owns temperature scaling, the calibration error and the table behind it, from predictions on rows that a model was not
trained on. Whatever is called `right` here is one truth value per row: whether the likeliest label was the true one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

BINS = 15
"""As in the papers, so that figures can be compared."""
TEMPERATURE_MIN, TEMPERATURE_MAX = 0.001, 1000.0
"""Where every row is right, or all are noise, the best temperature has no end."""
TEMPERATURE_PRECISION = 1e-6
"""Of its logarithm; probabilities do not change visibly below it."""
LEAST = 1e-12
"""Probabilities below it cost no more, as one certain mistake would outweigh every other row."""


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a reliability table: the rows whose confidence lies in (low, high]; 0 lies in the first."""

    low: float
    high: float
    rows: int
    confidence: float
    """Mean of the rows' confidence; 0 where there are none."""
    accuracy: float
    """Share that was right, weighted where rows have weights; 0 where there are none."""
    weight: float
    """Share of all rows' weights."""


def softmax(scores: Floats) -> Floats:
    """Probabilities of each row, shape (rows, classes)."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def log_loss(scores: Floats, truth: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """Mean negative log-likelihood, in nats, of the softmax of scores.

    scores: shape (rows, classes). truth: shape (rows,), the number of each row's true class.
    """
    true = np.asarray(truth, dtype=np.intp)
    shifted = scores - scores.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(true)), true]
    return float(np.average(np.minimum(losses, -math.log(LEAST)), weights=_weights(weights, len(true))))


def fit_temperature(scores: Floats, truth: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """The T > 0 for which softmax(scores / T) has the least log-loss; between `TEMPERATURE_MIN` and `TEMPERATURE_MAX`.

    scores: shape (rows, classes), of rows the model was not trained on. truth: shape (rows,), numbers of classes.
    It changes no row's likeliest class. Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural
    Networks", ICML 2017, section 4.2.
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log: log_loss(scores / math.exp(log), truth, weights=weights),
        bounds=(math.log(TEMPERATURE_MIN), math.log(TEMPERATURE_MAX)),
        method="bounded",
        options={"xatol": TEMPERATURE_PRECISION},
    )
    return math.exp(float(found.x))


def reliability(
    confidence: ArrayLike, right: ArrayLike, *, bins: int = BINS, weights: ArrayLike | None = None
) -> list[Bin]:
    """`bins` bins of equal width from 0 to 1, empty ones too.

    confidence: shape (rows,), the likeliest label's probability. right: shape (rows,), truth values.
    """
    sure, hits = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    weigh = _weights(weights, len(sure))
    if len(hits) != len(sure):
        raise ValueError(f"{len(sure)} confidences and {len(hits)} truths do not belong together")
    places = np.clip(np.ceil(sure * bins).astype(np.intp) - 1, 0, bins - 1)
    rows = np.bincount(places, minlength=bins)
    mass = np.bincount(places, weights=weigh, minlength=bins)
    sums = [np.bincount(places, weights=weigh * of, minlength=bins) for of in (sure, hits)]
    means = [np.divide(one, mass, out=np.zeros(bins), where=mass > 0) for one in sums]
    total = float(mass.sum()) or 1.0
    return [
        Bin(
            low=at / bins,
            high=(at + 1) / bins,
            rows=int(rows[at]),
            confidence=float(means[0][at]),
            accuracy=float(means[1][at]),
            weight=float(mass[at]) / total,
        )
        for at in range(bins)
    ]


def ece(confidence: ArrayLike, right: ArrayLike, *, bins: int = BINS, weights: ArrayLike | None = None) -> float:
    """Expected calibration error of the likeliest label: the mean over bins of |accuracy - confidence|, by their rows.

    0 is perfect; 0 without rows. Bins are of equal width. Source: Naeini, Cooper, Hauskrecht, "Obtaining Well
    Calibrated Probabilities Using Bayesian Binning", AAAI 2015; for many classes Guo et al. 2017, equation 3.
    """
    return ece_of(reliability(confidence, right, bins=bins, weights=weights))


def ece_of(table: Sequence[Bin]) -> float:
    """The calibration error that a reliability table shows."""
    return sum(one.weight * abs(one.accuracy - one.confidence) for one in table)


def _weights(weights: ArrayLike | None, rows: int) -> Floats:
    return np.ones(rows) if weights is None else np.asarray(weights, dtype=np.float64)
