"""Figures of a run with their intervals: means of scores, shares, paired differences, quantiles of latency.

Rows of one group belong together, and so do the repeats of one row: intervals count those and not answers. Pure Python,
so that an eval runs without numpy. Called by `gates.py` and by Reports of runs.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import msgspec

from drivetrain.evals.rows import RowV1
from drivetrain.statistics.clustered import clustered_share
from drivetrain.statistics.intervals import clopper_pearson
from drivetrain.statistics.means import student_quantile
from drivetrain.statistics.noninferiority import paired_interval
from drivetrain.statistics.paired import mcnemar

LEVEL = 0.95
NOISE = 1e-12
"""Differences of scores that are smaller are none."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A figure with its interval."""

    value: float
    low: float
    high: float
    n: int
    """Answers that it was computed from."""
    clusters: int
    """Independent ones among them: groups, else rows."""
    level: float = LEVEL


class PairedEstimate(Estimate, frozen=True, kw_only=True):
    """A mean difference, candidate less baseline, over rows that both have."""

    before: float
    after: float
    wins: int
    """Independent ones (groups, else rows) in which the candidate is ahead."""
    losses: int
    p_worse: float
    """The chance of so many losses among these where there is no difference: the sign test, one-sided."""


def cluster_of(row: RowV1) -> str:
    """What a row belongs together with: its group, else its own repeats."""
    return f"group {row.group}" if row.group else f"row {row.suite} {row.row}"


def score_of(row: RowV1, scorer: str) -> float | None:
    """What a scorer gave a row; 0 where the Call gave no answer, None where the scorer was not asked."""
    found = row.scores.get(scorer)
    if found is not None:
        return found.value if row.status == "answered" else 0.0
    return 0.0 if row.status != "answered" else None


def mean_score(rows: Sequence[RowV1], scorer: str, level: float = LEVEL) -> Estimate | None:
    """The mean of a scorer over rows, weighted as they were sampled; None where no row has it."""
    kept = [(row, value) for row in rows if (value := score_of(row, scorer)) is not None]
    return mean([value for _, value in kept], [row for row, _ in kept], level=level, floor=0.0, ceiling=1.0)


def share(flags: Sequence[bool], rows: Sequence[RowV1], level: float = LEVEL) -> Estimate | None:
    """The share of rows that have a flag; None of none."""
    return mean([float(one) for one in flags], rows, level=level, floor=0.0, ceiling=1.0)


def mean(
    values: Sequence[float], rows: Sequence[RowV1], *, level: float = LEVEL, floor: float = -math.inf,
    ceiling: float = math.inf,
) -> Estimate | None:  # fmt: skip
    """The weighted mean of one value per row; None of none. floor, ceiling: what a value can be at all.

    Of yes and no with equal weights Wilson's interval of the effective number (`clustered.py`); else Student's t on the
    residual sums of the clusters. Source: Liang and Zeger, Biometrika 73 (1986), 13-22, with the factor m / (m - 1);
    with weights, the linearised ratio (Särndal, Swensson and Wretman, Model Assisted Survey Sampling (1992), 5.6).
    Where all are alike an exact bound on the share of others that were not seen.
    """
    if not values:
        return None
    clusters = [cluster_of(row) for row in rows]
    weights = [row.weight for row in rows]
    many = len(set(clusters))
    if all(one in (0, 1) for one in values) and len(set(weights)) == 1 and (floor, ceiling) == (0.0, 1.0):
        found = clustered_share([bool(one) for one in values], clusters, level)
        return Estimate(
            value=found.value, low=found.low, high=found.high, n=len(values), clusters=many, level=level
        )  # fmt: skip
    total = math.fsum(weights)
    middle = math.fsum(weight * value for weight, value in zip(weights, values, strict=True)) / total
    low, high = _interval(values, weights, clusters, middle, level)
    if low == high and math.isfinite(floor) and math.isfinite(ceiling):
        others = clopper_pearson(0, many, level)[1]
        low, high = middle - others * (middle - floor), middle + others * (ceiling - middle)
    return Estimate(
        value=middle, low=max(floor, low), high=min(ceiling, high), n=len(values), clusters=many, level=level
    )  # fmt: skip


def paired(
    rows: Sequence[RowV1], before: Mapping[tuple[str, str], float], scorer: str, level: float = LEVEL
) -> PairedEstimate | None:
    """The mean difference over the rows that a baseline has too; None where there is none.

    before: (suite, row) -> the baseline's mean over its repeats, see `row_means`. Of yes and no, one answer per row and
    each for itself, the interval is Tango's (`noninferiority.paired_interval`); else Student's t on groups.
    """
    after = row_means(rows, scorer)
    kept = [row for row in first_of_each(rows) if key_of(row) in before and key_of(row) in after]
    if not kept:
        return None
    pairs = [(before[key_of(row)], after[key_of(row)]) for row in kept]
    differences = [new - old for old, new in pairs]
    clusters, weights = [cluster_of(row) for row in kept], [row.weight for row in kept]
    sums: dict[str, float] = {}
    for name, weight, one in zip(clusters, weights, differences, strict=True):
        sums[name] = sums.get(name, 0.0) + weight * one
    wins, losses = sum(one > NOISE for one in sums.values()), sum(one < -NOISE for one in sums.values())
    total = math.fsum(weights)
    middle = math.fsum(sums.values()) / total
    alone = len(sums) == len(kept) and len(set(weights)) == 1
    if (alone and all(one in (0, 1) for pair in pairs for one in pair)) or not (wins or losses):
        low, high = paired_interval(wins, losses, len(sums) - wins - losses, level)
    else:
        low, high = _interval(differences, weights, clusters, middle, level)
        if low == high:  # every cluster moved alike, and others may be there unseen
            others = clopper_pearson(0, len(sums), level)[1]
            low, high = middle - others * (1 + middle), middle + others * (1 - middle)
    return PairedEstimate(
        value=middle, low=max(-1.0, low), high=min(1.0, high), n=len(kept), clusters=len(sums), level=level,
        before=math.fsum(w * old for w, (old, _) in zip(weights, pairs, strict=True)) / total,
        after=math.fsum(w * new for w, (_, new) in zip(weights, pairs, strict=True)) / total,
        wins=wins, losses=losses, p_worse=mcnemar(wins, losses).worse,
    )  # fmt: skip


def quantile(values: Sequence[float], rows: Sequence[RowV1], at: float, level: float = LEVEL) -> Estimate | None:
    """The value that a share `at` of rows, weighted, does not exceed (the nearest rank), with its interval.

    None of none.

    Source of the interval: Woodruff, JASA 47 (1952), 635-646: the interval of that share, carried back to values.
    """
    if not values:
        return None
    ordered = sorted(zip(values, (row.weight for row in rows), strict=True))
    sums = list(accumulate(weight for _, weight in ordered))

    def at_share(wanted: float) -> float:
        place = bisect_left(sums, min(max(wanted, 0.0), 1.0) * sums[-1] * (1 - NOISE))
        return ordered[min(place, len(ordered) - 1)][0]

    found = at_share(at)
    counted = share([one <= found for one in values], rows, level)
    assert counted is not None
    shift = at - counted.value  # of ties, more than `at` do not exceed it
    return Estimate(
        value=found, low=at_share(counted.low + shift), high=at_share(counted.high + shift), n=len(values),
        clusters=counted.clusters, level=level,
    )  # fmt: skip


def row_means(rows: Iterable[RowV1], scorer: str) -> dict[tuple[str, str], float]:
    """(suite, row) -> the mean over its repeats."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        value = score_of(row, scorer)
        if value is not None:
            found.setdefault(key_of(row), []).append(value)
    return {key: math.fsum(values) / len(values) for key, values in found.items()}


def first_of_each(rows: Iterable[RowV1]) -> list[RowV1]:
    """One of each row's repeats, in order."""
    found: dict[tuple[str, str], RowV1] = {}
    for row in rows:
        found.setdefault(key_of(row), row)
    return list(found.values())


def key_of(row: RowV1) -> tuple[str, str]:
    """What pairs a row with the same one of another run."""
    return row.suite, row.row


def _interval(
    values: Sequence[float], weights: Sequence[float], clusters: Sequence[str], middle: float, level: float
) -> tuple[float, float]:
    """By Student's t on the residual sums of clusters; without bounds below two of them."""
    sums: dict[str, float] = {}
    for value, weight, name in zip(values, weights, clusters, strict=True):
        sums[name] = sums.get(name, 0.0) + weight * (value - middle)
    many = len(sums)
    if many < 2:
        return -math.inf, math.inf
    squares = math.fsum(one * one for one in sums.values())
    error = math.sqrt(many / (many - 1) * squares) / math.fsum(weights)
    half = student_quantile(0.5 + level / 2, many - 1) * error if error > NOISE else 0.0
    return middle - half, middle + half
