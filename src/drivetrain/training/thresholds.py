"""From which confidence on a model may answer by itself: the curve, and the threshold for a stated risk.

Owns the choice of a threshold from predictions on rows that a model was not trained on. The curve shows what would have
happened at each threshold; a threshold read off it would be the luckiest one, so it is chosen by tests instead.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivetrain.statistics.intervals import clopper_pearson_upper
from drivetrain.training.metrics import share

CURVE_POINTS = 100
"""More could not be told apart where it is drawn."""
CONFIDENCE_LEVEL = 0.95
CANDIDATES = 200
"""Thresholds that are tested at most: one for every half of a percent of the rows."""
FIRST_ERRORS = 50
"""The first threshold answers as many rows as have so many errors at the stated risk itself: where the surest rows are
wrong half as often as that, they fail the first test in less than one sample of a hundred."""
FIRST_SHARE_MIN, FIRST_SHARE_MAX = 0.1, 0.2
"""Of all rows, what the first threshold answers: in many rows a few mislabelled ones in front must not end all testing,
and a model that may answer a fifth of few rows has to be found too."""
RISKS_TRIED = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
"""Of which the lowest that can be held is told, where the stated ones cannot."""
DECIMALS = 6
"""Of a threshold, rounded down before it is tested: what is written into a route is what was tested."""


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True):
    """What answering from one threshold on would have meant."""

    threshold: float
    answered: int
    """Rows whose confidence is at least the threshold."""
    share: float
    """Of all rows."""
    errors: int
    """Among the answered."""
    accuracy: float
    """Of the answered."""
    accuracy_low: float
    """With `accuracy_high` the interval that a Report has of every share, of this point by itself."""
    accuracy_high: float


class Threshold(msgspec.Struct, frozen=True, kw_only=True):
    """The threshold that was found for a stated risk, or that there is none."""

    risk: float
    """The highest share of errors among the answered that was asked for."""
    confidence_level: float
    threshold: float | None
    """Answer where the confidence is at least this; None: no threshold reaches the risk."""
    rows: int
    """All rows that it was chosen on."""
    answered: int = 0
    share: float = 0.0
    errors: int = 0
    error_bound: float = 1.0
    """The upper bound of the share of errors among the answered; at most the risk where there is a threshold."""
    reason: str = ""
    """Why there is none."""


def abstention_curve(confidence: ArrayLike, right: ArrayLike, *, points: int = CURVE_POINTS) -> list[CurvePoint]:
    """Accuracy against the share answered, from the safest threshold to the one that answers all.

    confidence, right: shape (rows,). At most `points` points, at equal steps of the share.
    """
    counts = _Counts(confidence, right, 0)
    return [_point(one, counts.rows) for one in counts.at(_steps(counts.rows, points, math.ceil(counts.rows / points)))]


def threshold_for(
    confidence: ArrayLike, right: ArrayLike, risk: float, confidence_level: float = CONFIDENCE_LEVEL
) -> Threshold:
    """The lowest threshold whose error among the answered is at most `risk`, wrong in at most 1 - level of all samples.

    Fixed-sequence testing: candidates are fixed by the confidences alone and tested from the safest downwards, each by
    the exact one-sided Clopper-Pearson bound at the full level; the first that fails ends it, and the last that passed
    is chosen. No correction for their number is needed, as each is only tested where all before it were rejected.

    The bound is about new rows like these, scored by what scored these. Out of fold these were scored by models of
    fewer rows than the one that is served, which is as good or better as a rule, not by a theorem. It does not hold
    where traffic drifts. Rows count alike, whatever their weights, and have to be drawn independently.

    Source: Angelopoulos, Bates, Candes, Jordan, Lei, "Learn then Test", 2021, section 2.3.2 (fixed sequence testing),
    with the binomial tail for a bounded loss of 0 or 1.
    """
    if not 0 < risk < 1:
        raise ValueError(f"a risk is a share between 0 and 1, not {risk}")
    counts = _Counts(confidence, right, DECIMALS)
    rows, level = counts.rows, confidence_level
    fewest = rows_min(risk, level)
    if rows < fewest:
        return Threshold(
            risk=risk, confidence_level=level, threshold=None, rows=rows,
            reason=f"{rows:,} rows cannot show an error of {risk * 100:.3g} %: it takes {fewest:,} without a mistake",
        )  # fmt: skip
    passed: Threshold | None = None
    first = min(max(FIRST_ERRORS / risk, FIRST_SHARE_MIN * rows), FIRST_SHARE_MAX * rows)
    for one in counts.at(_steps(rows, CANDIDATES, max(fewest, math.ceil(first)))):
        bound = clopper_pearson_upper(one.errors, one.answered, level)
        tested = Threshold(
            risk=risk, confidence_level=level, threshold=one.threshold, rows=rows, answered=one.answered,
            share=one.answered / rows, errors=one.errors, error_bound=bound,
        )  # fmt: skip
        if bound > risk:
            return passed or Threshold(
                risk=risk, confidence_level=level, threshold=None, rows=rows, error_bound=bound,
                reason=f"{one.errors:,} of the {one.answered:,} surest rows are wrong, so that up to "
                f"{bound * 100:.1f} % of such answers may be",
            )  # fmt: skip
        passed = tested
    assert passed is not None
    return passed


def lowest_risk(confidence: ArrayLike, right: ArrayLike, above: float) -> float | None:
    """The lowest of `RISKS_TRIED` above `above` that has a threshold on these rows; None: not one.

    A hint of what to state before the next training: as it is chosen by these rows, its own bound holds less often.
    """
    tried = (one for one in RISKS_TRIED if one > above)
    return next((one for one in tried if threshold_for(confidence, right, one).threshold is not None), None)


def rows_min(risk: float, confidence_level: float = CONFIDENCE_LEVEL) -> int:
    """How many rows without a mistake it takes to show that an error is at most `risk`."""
    return math.ceil(math.log(1 - confidence_level) / math.log1p(-risk))


class _Answered(msgspec.Struct, frozen=True):
    threshold: float
    answered: int
    errors: int


class _Counts:
    """How many rows, and how many wrong ones, have at least a confidence."""

    def __init__(self, confidence: ArrayLike, right: ArrayLike, decimals: int) -> None:
        sure, hits = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=bool)
        if sure.shape != hits.shape or sure.ndim != 1:
            raise ValueError(
                f"confidences of shape {sure.shape} and truths of shape {hits.shape} do not belong together"
            )
        if not np.isfinite(sure).all():
            raise ValueError("a confidence is not finite")
        order = np.argsort(-sure, kind="stable")
        self.rows = len(sure)
        self._falling = sure[order]
        self._errors = np.cumsum(~hits[order])
        self._scale = 10.0**decimals if decimals else 0.0

    def at(self, ranks: NDArray[np.intp]) -> list[_Answered]:
        """At each rank's confidence, with every row that has as much; the same threshold once."""
        found: list[_Answered] = []
        for rank in ranks.tolist():
            threshold = float(self._falling[rank - 1])
            if self._scale:
                threshold = math.floor(threshold * self._scale) / self._scale
            if not found or found[-1].threshold != threshold:
                answered = int(np.searchsorted(-self._falling, -threshold, side="right"))
                found.append(_Answered(threshold, answered, int(self._errors[answered - 1])))
        return found


def _steps(rows: int, most: int, first: int) -> NDArray[np.intp]:
    """Ranks from `first` to `rows` that lie a `most`-th of the rows apart; the last is always `rows`."""
    if not rows:
        return np.empty(0, dtype=np.intp)
    ranks = np.unique(np.ceil(np.arange(1, most + 1) * rows / most).astype(np.intp))
    return np.unique(np.append(ranks[ranks > first], [first, rows]))


def _point(one: _Answered, rows: int) -> CurvePoint:
    right = share(one.answered - one.errors, one.answered)
    return CurvePoint(
        threshold=one.threshold,
        answered=one.answered,
        share=one.answered / rows,
        errors=one.errors,
        accuracy=right.share,
        accuracy_low=right.low,
        accuracy_high=right.high,
    )
