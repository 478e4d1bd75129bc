"""A mean where few were labelled by people and many were judged by a model: the judge helps, and never decides.

Pure Python. What the judge says of the many is corrected by how it errs on the few, so that a judge that is wrong costs
width and not truth; where its help is no help, the labels alone are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from drivetrain.statistics.intervals import clopper_pearson, wilson
from drivetrain.statistics.means import mean_interval, student_quantile

LABELS_MIN = 10
"""With fewer labels, how the judge errs is not known well enough to correct it."""


class Powered(msgspec.Struct, frozen=True, kw_only=True):
    """A mean with its interval, from labels and, where that helps, from a judge."""

    value: float
    low: float
    high: float
    used: bool
    """Whether the judge was: its interval is narrower than that of the labels alone."""
    trust: float
    """The weight lambda of what the judge says; 0 where it is not used."""
    labels_low: float
    """The interval of the labels alone."""
    labels_high: float
    worth_labels: float
    """How many labels alone would have given an interval as narrow."""


def prediction_powered(
    labels: Sequence[float], judged: Sequence[float], judged_only: Sequence[float], level: float = 0.95
) -> Powered:
    """The mean of what people would say of all of them.

    All values lie in [0, 1]. labels, judged: of the same examples, what people and what the judge said. judged_only:
    what the judge said of examples without a label; both kinds are drawn from the same Calls. Raises: ValueError
    without labels, for lengths that differ or values that cannot be.

    Source: Angelopoulos, Duchi and Zrnic, PPI++ (2023), example 6.1: mean(label - t judged) + t mean(judged_only), with
    t = cov(label, judged) / ((1 + n / N) var(judged)), kept in [0, 1]. Two things are added for few labels: Student's t
    with two degrees of freedom less than there are labels, since t is learnt from them too; and a spread as if the
    judge had erred twice more, once either way (the idea of Agresti and Coull, American Statistician 52 (1998),
    119-126), as a judge that was right on all of thirty may still err on one of ten.
    """
    count, many = len(labels), len(judged_only)
    if count != len(judged):
        raise ValueError(f"{len(judged)} were judged of {count} that have a label")
    if not labels:
        raise ValueError("a mean of no labels")
    if not all(0 <= one <= 1 for values in (labels, judged, judged_only) for one in values):
        raise ValueError("labels and what a judge says must lie between 0 and 1")
    low, high = _alone(labels, level)
    trust = _trust(labels, judged, judged_only)
    if trust and count >= LABELS_MIN:
        rest = [label - trust * said for label, said in zip(labels, judged, strict=True)]
        value = math.fsum(rest) / count + trust * math.fsum(judged_only) / many
        variance = _variance([*rest, 1.0, -trust]) / count + trust**2 * _variance(judged_only) / many
        half = student_quantile(0.5 + level / 2, count - 2) * math.sqrt(variance)
        if 2 * half < high - low:
            return Powered(
                value=value, low=max(0.0, value - half), high=min(1.0, value + half), used=True, trust=trust,
                labels_low=low, labels_high=high, worth_labels=count * ((high - low) / (2 * half)) ** 2,
            )  # fmt: skip
    return Powered(
        value=math.fsum(labels) / count, low=low, high=high, used=False, trust=0.0, labels_low=low, labels_high=high,
        worth_labels=float(count),
    )  # fmt: skip


def _alone(labels: Sequence[float], level: float) -> tuple[float, float]:
    """The interval of the labels by themselves."""
    count, first = len(labels), labels[0]
    if all(one in (0, 1) for one in labels):
        return wilson(sum(map(bool, labels)), count, level)
    if all(one == first for one in labels):
        others = clopper_pearson(0, count, level)[1]
        return first * (1 - others), first + others * (1 - first)
    low, high = mean_interval(labels, level)
    return max(0.0, low), min(1.0, high)


def _trust(labels: Sequence[float], judged: Sequence[float], judged_only: Sequence[float]) -> float:
    """The weight with which the judge helps most; 0 where it tells nothing."""
    count, many = len(labels), len(judged_only)
    if count < 2 or many < 2:
        return 0.0
    spread = _variance([*judged, *judged_only])
    if not spread:
        return 0.0
    middle, said = math.fsum(labels) / count, math.fsum(judged) / count
    together = math.fsum((one - middle) * (other - said) for one, other in zip(labels, judged, strict=True))
    return min(1.0, max(0.0, together / (count - 1) / ((1 + count / many) * spread)))


def _variance(values: Sequence[float]) -> float:
    middle = math.fsum(values) / len(values)
    return math.fsum((one - middle) ** 2 for one in values) / (len(values) - 1)
