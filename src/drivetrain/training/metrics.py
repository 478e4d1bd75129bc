"""How well a model does on rows that it was not trained on, as plain numbers with their intervals.

Judges what is served: a scorer's answers beside the truth. Pure functions; called by `report`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.models import Scored
from drivetrain.statistics.intervals import clopper_pearson, wilson
from drivetrain.statistics.means import mean_interval

LEVEL = 0.95
"""Of every interval."""
EXACT_MAX = 40
"""Up to so many rows an interval is exact (Clopper-Pearson), beyond it Wilson's, which is shorter."""
CONFUSED_MAX = 20
WRONG_MAX = 20
SEGMENT_VALUES_MAX = 50
"""Of one column, those with the most rows."""


class Share(msgspec.Struct, frozen=True, omit_defaults=True):
    """So many of so many, with the interval of the share."""

    right: int
    of: int
    share: float
    low: float
    high: float


class ClassRow(msgspec.Struct, frozen=True):
    """One label."""

    label: str
    precision: float | None
    """None where the model never said it."""
    recall: float | None
    """None where no row has it."""
    f1: float
    support: int
    """Rows that have it."""
    said: int
    """Rows for which the model said it."""


class SegmentRow(msgspec.Struct, frozen=True):
    """Rows alike in one column: of a classification the share that is right, of a regression the mean error."""

    column: str
    value: str
    rows: int
    score: float
    low: float | None
    high: float | None
    """None where one row is too few for an interval."""


class Confused(msgspec.Struct, frozen=True):
    """How often one label was taken for another."""

    truth: str
    said: str
    rows: int


class Wrong(msgspec.Struct, frozen=True, omit_defaults=True):
    """One row that the model got wrong, by its place in the Dataset: what it says is quoted only when it is shown."""

    row: int
    id: str
    truth: str | float
    said: str | float
    confidence: float | None = None


class Judged(msgspec.Struct, frozen=True):
    """Everything about one side."""

    overall: dict[str, float]
    accuracy: Share | None = None
    """Of a classification."""
    classes: tuple[ClassRow, ...] = ()
    segments: tuple[SegmentRow, ...] = ()
    confusion: tuple[Confused, ...] = ()
    """The most frequent mistakes, at most `CONFUSED_MAX`."""
    wrong: tuple[Wrong, ...] = ()
    """The most confident mistakes, or the largest errors, at most `WRONG_MAX`."""


def share(right: int, of: int) -> Share:
    """With an interval that also holds for few rows."""
    low, high = (clopper_pearson if of <= EXACT_MAX else wilson)(right, of, LEVEL)
    return Share(right, of, right / of if of else 0.0, low, high)


def judge_labels(
    truth: Sequence[str],
    scored: Sequence[Scored],
    *,
    numbers: Sequence[int],
    ids: Sequence[str],
    segments: Mapping[str, Sequence[str]],
    weights: Sequence[float] | None = None,
) -> Judged:
    """Of a classification. numbers, ids: of the rows in the Dataset."""
    said = [one.label or "" for one in scored]
    right = [one == other for one, other in zip(truth, said, strict=True)]
    classes = _classes(truth, said)
    whole = share(sum(right), len(right))
    seen = [one.f1 for one in classes if one.support]
    overall = {"accuracy": whole.share, "macro_f1": math.fsum(seen) / len(seen)}
    if weights is not None:
        hits = math.fsum(weight for weight, hit in zip(weights, right, strict=True) if hit)
        overall["accuracy_weighted"] = hits / math.fsum(weights)
    mistakes = [place for place, hit in enumerate(right) if not hit]
    mistakes.sort(key=lambda place: (-(scored[place].confidence or 0.0), numbers[place]))
    pairs = Counter((truth[place], said[place]) for place in mistakes)
    return Judged(
        overall=overall,
        accuracy=whole,
        classes=classes,
        segments=_segments(segments, lambda places: _part_right(right, places)),
        confusion=tuple(
            Confused(one, other, count)
            for (one, other), count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:CONFUSED_MAX]
        ),
        wrong=tuple(
            Wrong(numbers[place], ids[place], truth[place], said[place], scored[place].confidence)
            for place in mistakes[:WRONG_MAX]
        ),
    )


def judge_values(
    truth: Sequence[float],
    scored: Sequence[Scored],
    *,
    numbers: Sequence[int],
    ids: Sequence[str],
    segments: Mapping[str, Sequence[str]],
    groups: Sequence[str] | None = None,
) -> Judged:
    """Of a regression. groups: rows of one name belong together, which makes the interval of the mean error honest."""
    said = [one.value if one.value is not None else math.nan for one in scored]
    errors = [abs(one - other) for one, other in zip(truth, said, strict=True)]
    middle = math.fsum(truth) / len(truth)
    squares = math.fsum(error * error for error in errors)
    spread = math.fsum((one - middle) ** 2 for one in truth)
    low, high = mean_interval(errors, LEVEL, clusters=groups)
    overall = {
        "rmse": math.sqrt(squares / len(errors)),
        "mae": math.fsum(errors) / len(errors),
        "median_error": sorted(errors)[len(errors) // 2],
        "bias": math.fsum(one - other for one, other in zip(said, truth, strict=True)) / len(errors),
    }
    if math.isfinite(low):
        overall |= {"mae_low": max(0.0, low), "mae_high": high}
    if spread > 0:
        overall["r2"] = 1 - squares / spread
    largest = sorted(range(len(errors)), key=lambda place: (-errors[place], numbers[place]))[:WRONG_MAX]
    return Judged(
        overall=overall,
        segments=_segments(segments, lambda places: _part_error(errors, places)),
        wrong=tuple(Wrong(numbers[place], ids[place], truth[place], said[place]) for place in largest),
    )


def _classes(truth: Sequence[str], said: Sequence[str]) -> tuple[ClassRow, ...]:
    has, told = Counter(truth), Counter(said)
    both = Counter(one for one, other in zip(truth, said, strict=True) if one == other)
    return tuple(
        ClassRow(
            label=label,
            precision=both[label] / told[label] if told[label] else None,
            recall=both[label] / has[label] if has[label] else None,
            f1=2 * both[label] / (has[label] + told[label]),
            support=has[label],
            said=told[label],
        )
        for label in sorted(has | told)
    )


Measure = Callable[[list[int]], tuple[float, float | None, float | None]]


def _segments(segments: Mapping[str, Sequence[str]], measure: Measure) -> tuple[SegmentRow, ...]:
    found: list[SegmentRow] = []
    for column, values in segments.items():
        places: dict[str, list[int]] = {}
        for place, value in enumerate(values):
            places.setdefault(value, []).append(place)
        most = sorted(places, key=lambda value: (-len(places[value]), value))[:SEGMENT_VALUES_MAX]
        found += [SegmentRow(column, value, len(places[value]), *measure(places[value])) for value in most]
    return tuple(found)


def _part_right(right: Sequence[bool], places: list[int]) -> tuple[float, float | None, float | None]:
    part = share(sum(right[place] for place in places), len(places))
    return part.share, part.low, part.high


def _part_error(errors: Sequence[float], places: list[int]) -> tuple[float, float | None, float | None]:
    some = [errors[place] for place in places]
    middle = math.fsum(some) / len(some)
    low, high = mean_interval(some, LEVEL)
    return (middle, max(0.0, low), high) if math.isfinite(low) else (middle, None, None)


class Paired(msgspec.Struct, frozen=True, omit_defaults=True):
    """Two models on the same rows."""

    rows: int
    ours: float
    theirs: float
    """Accuracy, or mean error."""
    difference: float
    """Ours less theirs."""
    low: float | None
    high: float | None
    """None where the rows are too few for an interval."""
    only_ours_right: int = 0
    only_theirs_right: int = 0


def paired_labels(truth: Sequence[str], ours: Sequence[Scored], theirs: Sequence[Scored]) -> Paired:
    """Accuracy against accuracy. The interval is that of the mean of the rows' differences (+1, 0, -1)."""
    mine = [one == other.label for one, other in zip(truth, ours, strict=True)]
    yours = [one == other.label for one, other in zip(truth, theirs, strict=True)]
    return _paired([float(one) for one in mine], [float(one) for one in yours], msgspec.structs.replace(
        NOTHING_PAIRED,
        only_ours_right=sum(one and not other for one, other in zip(mine, yours, strict=True)),
        only_theirs_right=sum(other and not one for one, other in zip(mine, yours, strict=True)),
    ))  # fmt: skip


def paired_values(truth: Sequence[float], ours: Sequence[Scored], theirs: Sequence[Scored]) -> Paired:
    """Mean error against mean error."""
    return _paired(_errors(truth, ours), _errors(truth, theirs), NOTHING_PAIRED)


NOTHING_PAIRED = Paired(rows=0, ours=0.0, theirs=0.0, difference=0.0, low=None, high=None)


def _errors(truth: Sequence[float], scored: Sequence[Scored]) -> list[float]:
    return [abs(one - (other.value or 0.0)) for one, other in zip(truth, scored, strict=True)]


def _paired(ours: list[float], theirs: list[float], counts: Paired) -> Paired:
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    low, high = mean_interval(differences, LEVEL)
    bounded = math.isfinite(low)
    return msgspec.structs.replace(
        counts,
        rows=len(ours),
        ours=math.fsum(ours) / len(ours),
        theirs=math.fsum(theirs) / len(theirs),
        difference=math.fsum(differences) / len(differences),
        low=low if bounded else None,
        high=high if bounded else None,
    )


def plain_judged(judged: Judged) -> dict[str, Any]:
    """As a Report's body has it."""
    return {name: value for name, value in msgspec.to_builtins(judged).items() if value not in (None, [], ())}
