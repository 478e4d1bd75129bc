"""How a judge agrees with people, and what may hang on it.

People label some of the answers that the judge has judged, in the same scale. From both come agreement, agreement
beyond chance, what the judge misses and what it sees that is not there, its bias, and a mean that is corrected by the
labels where that makes it surer. Pure Python; called by runs and gates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.statistics.clustered import clustered_share
from drivetrain.statistics.means import mean_interval
from drivetrain.statistics.prediction_powered import prediction_powered

RIGHT_FROM = 0.5
"""A score from here on says right, of the judge's and of people's."""
LABELS_MIN = 30
"""Fewer labels tell too little of how a judge errs."""
KAPPA_MIN = 0.4
"""Of the interval's lower end: "moderate" by Landis and Koch, Biometrics 33 (1977), 159-174, and surely so."""
BIAS_MAX = 0.1
"""Of the mean difference, either way: what a judge adds or takes away must be small beside what gates look for."""
FLIPS_MAX = 0.2
"""Share of pairs in which the choice changed with the order that they were shown in."""
UNREAD_MAX = 0.05
"""Share of verdicts that could not be read."""
LEVEL = 0.95


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What a judge said of one answer."""

    row: str
    """As in `RowV1.row`."""
    value: float
    """From 0 to 1; 0 where it is unread."""
    group: str = ""
    suite: str = ""
    weight: float = 1.0
    slices: dict[str, str] = {}
    flipped: bool | None = None
    """Whether its choice changed with the order of the two answers; None where only one order was asked."""
    unread: bool = False
    """Whether it said nothing that could be read."""


class SliceAgreement(msgspec.Struct, frozen=True, kw_only=True):
    """Agreement in one slice."""

    column: str
    value: str
    labels: int
    agreement: float
    bias: float


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """A judge beside people. What cannot be computed is None."""

    labels: int
    """Answers that have both."""
    judged: int
    agreement: float | None = None
    agreement_low: float = 0.0
    agreement_high: float = 1.0
    kappa: float | None = None
    """Agreement beyond chance; None where both call everything alike."""
    kappa_low: float | None = None
    kappa_high: float | None = None
    sensitivity: float | None = None
    """Of what people call right, the share that the judge calls right."""
    specificity: float | None = None
    """Of what people call wrong, the share that the judge calls wrong."""
    bias: float | None = None
    """The judge's mean less people's, over the same answers."""
    bias_low: float | None = None
    bias_high: float | None = None
    flips: float | None = None
    """Share of pairs in which the choice changed with the order; None where no pair was asked in both."""
    unread: float = 0.0
    """Share of verdicts that could not be read."""
    corrected: bool = False
    """Whether the labels and the judge together give a surer mean than the labels alone."""
    corrected_value: float = 0.0
    """The mean of what people would say of the answers that the judge has judged, suites left out."""
    corrected_low: float = 0.0
    corrected_high: float = 1.0
    worth_labels: float = 0.0
    """How many labels alone would have been as sure."""
    slices: tuple[SliceAgreement, ...] = ()
    why: str = ""
    """What it lacks to carry a gate, in words; empty where it lacks nothing."""


def calibrate(judged: Sequence[Judged], labels: Mapping[str, float]) -> Calibration:
    """The judge beside people. labels: row -> what a person said, from 0 to 1; rows with several verdicts count each,
    as one group.

    Sources: Cohen, Educational and Psychological Measurement 20 (1960), 37-46 (kappa); its interval is that of the
    agreement (Wilson, by groups) with the agreement by chance taken as known, which is a rough one. Means as in
    `prediction_powered.py`, for labels that were drawn like the answers.
    """
    read = [one for one in judged if not one.unread]
    both = [one for one in read if one.row in labels]
    unread = 1 - len(read) / len(judged) if judged else 0.0
    asked = [one.flipped for one in judged if one.flipped is not None]
    flips = sum(asked) / len(asked) if asked else None
    found = Calibration(labels=len(both), judged=len(judged), flips=flips, unread=unread)
    if both:
        found = _agreeing(
            found, both, [labels[one.row] for one in both], [one for one in read if one.row not in labels]
        )
    return msgspec.structs.replace(found, why=_lacks(found))


def carries_gates(calibration: Calibration) -> bool:
    """Whether a gate over this judge's score may stand alone: enough labels, agreement that is surely beyond chance,
    and little bias, unsteadiness and nonsense; the bounds are this module's."""
    return not calibration.why


def _agreeing(
    found: Calibration, both: Sequence[Judged], said: Sequence[float], others: Sequence[Judged]
) -> Calibration:
    people = [one >= RIGHT_FROM for one in said]
    judge = [one.value >= RIGHT_FROM for one in both]
    clusters = [_cluster(one) for one in both]
    count = len(both)
    same = clustered_share([one == two for one, two in zip(people, judge, strict=True)], clusters, LEVEL)
    right, called = sum(people) / count, sum(judge) / count
    chance = right * called + (1 - right) * (1 - called)

    def beyond(agreement: float) -> float | None:
        return (agreement - chance) / (1 - chance) if chance < 1 else None

    differences = [one.value - label for one, label in zip(both, said, strict=True)]
    low, high = mean_interval(differences, LEVEL, clusters=clusters)
    hits = sum(one and two for one, two in zip(people, judge, strict=True))
    rejected = sum(not one and not two for one, two in zip(people, judge, strict=True))
    return msgspec.structs.replace(
        found, agreement=same.value, agreement_low=same.low, agreement_high=same.high, kappa=beyond(same.value),
        kappa_low=beyond(same.low), kappa_high=beyond(same.high),
        sensitivity=hits / sum(people) if any(people) else None,
        specificity=rejected / (count - sum(people)) if not all(people) else None,
        bias=math.fsum(differences) / count, bias_low=max(-1.0, low), bias_high=min(1.0, high),
        slices=_slices(both, said), **_corrected(both, said, others),
    )  # fmt: skip


def _corrected(both: Sequence[Judged], said: Sequence[float], others: Sequence[Judged]) -> dict[str, Any]:
    """The mean that labels and judge give together, over rows of the eval's own Dataset; none where rows belong
    together or have weights, which it cannot count."""
    pairs = [(one, label) for one, label in zip(both, said, strict=True) if not one.suite]
    both, others = [one for one, _ in pairs], [one for one in others if not one.suite]
    rows = {one.row: one for one in (*both, *others)}.values()
    groups = [one.group for one in rows if one.group]
    if not pairs or len(set(groups)) < len(groups) or len({one.weight for one in rows}) > 1:
        return {}
    labels = {one.row: label for one, label in pairs}
    means = [_row_means(both), _row_means(others)]
    powered = prediction_powered(
        [labels[row] for row in means[0]], list(means[0].values()), list(means[1].values()), LEVEL
    )
    return {
        "corrected": powered.used, "corrected_value": powered.value, "corrected_low": powered.low,
        "corrected_high": powered.high, "worth_labels": powered.worth_labels,
    }  # fmt: skip


def _row_means(judged: Sequence[Judged]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for one in judged:
        found.setdefault(one.row, []).append(one.value)
    return {row: math.fsum(values) / len(values) for row, values in found.items()}


def _slices(both: Sequence[Judged], said: Sequence[float]) -> tuple[SliceAgreement, ...]:
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for one, label in zip(both, said, strict=True):
        for column, value in one.slices.items():
            found.setdefault((column, value), []).append((one.value, label))
    return tuple(
        SliceAgreement(
            column=column,
            value=value,
            labels=len(pairs),
            agreement=sum((one >= RIGHT_FROM) == (label >= RIGHT_FROM) for one, label in pairs) / len(pairs),
            bias=math.fsum(one - label for one, label in pairs) / len(pairs),
        )
        for (column, value), pairs in sorted(found.items())
    )  # fmt: skip


def _cluster(one: Judged) -> str:
    return f"group {one.group}" if one.group else f"row {one.row}"


def _lacks(found: Calibration) -> str:
    """What keeps a judge from carrying a gate, as the end of a sentence about it."""
    if found.labels < LABELS_MIN:
        return f"was compared with people on {found.labels} answers and needs {LABELS_MIN}"
    if found.kappa is None or found.kappa_low is None:
        return "cannot be told from chance, since everything was called alike"
    if found.kappa_low < KAPPA_MIN:
        return f"agrees with people by kappa {found.kappa:.2f}, at least {found.kappa_low:.2f}, and needs {KAPPA_MIN}"
    if found.bias is not None and abs(found.bias) > BIAS_MAX:
        return (
            f"is {abs(found.bias):.2f} {'kinder' if found.bias > 0 else 'harsher'} than people; {BIAS_MAX} is allowed"
        )
    if found.flips is not None and found.flips > FLIPS_MAX:
        return f"changes its choice with the order in {found.flips:.0%} of pairs; {FLIPS_MAX:.0%} is allowed"
    if found.unread > UNREAD_MAX:
        return f"said nothing that can be read of {found.unread:.0%} of answers; {UNREAD_MAX:.0%} is allowed"
    return ""
