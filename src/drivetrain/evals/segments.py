"""Which segment a past Decision stands in: by a value of its Case, by team, by what was done."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.policies import Case
from drivetrain.evals.past import Past, value_at

OF_DECISIONS = ("action", "rule", "reason", "version")
OF_CALLS = ("team", "use_case", "tenant", "workflow")
OF_CASES = ("input", "features", "answer", "confidence", "variant", "cost_usd", "degraded")
SEGMENTS_MAX = 50
"""The rest is one segment: more rows are read by nobody."""
DECISIONS_MIN = 5
"""Smaller segments are one: a value that few have in common may tell who they are."""
BANDS = 5
"""Of numbers with many values: bands of about equal size."""
VALUES_MAX = 20
"""Numbers with at most so many values are not put into bands."""
TEXT_CHARS_MAX = 64
FEW, UNKNOWN, OTHERS = "(few)", "(not kept)", "(others)"


def check_by(by: str) -> None:
    """Raises: DrivetrainError for a path that nothing stands at."""
    first = by.partition(".")[0]
    known = (*OF_DECISIONS, *OF_CALLS, *OF_CASES)
    if first not in known or (first in ("input", "features", "answer") and first == by and first != "answer"):
        raise DrivetrainError(
            f"`{by}` is nothing that Decisions can be told apart by.",
            do=f"Write `input.FIELD`, `features.NAME`, `answer.FIELD`, or one of {', '.join(known[:8])}, variant. "
            + (did_you_mean(first, known) if first not in known else f"Name a field of it: `{first}.FIELD`."),
        )


def segments(pasts: Sequence[Past], by: str) -> list[str]:
    """The segment of each, in order."""
    check_by(by)
    values = [_value(one, by) for one in pasts]
    numbers = sorted(value for value in values if _is_number(value))
    edges: list[float] = []
    if len(set(numbers)) > VALUES_MAX:
        edges = sorted({numbers[len(numbers) * band // BANDS] for band in range(1, BANDS)})
    names = [_name(value, edges) for value in values]
    counts = Counter(names)
    shown = {name for name, _ in counts.most_common(SEGMENTS_MAX)}
    return [FEW if counts[name] < DECISIONS_MIN else name if name in shown else OTHERS for name in names]


def _value(one: Past, by: str) -> Any:
    if by in OF_DECISIONS:
        return getattr(one.decision, by)
    if by == "workflow":
        return one.call.workflow
    if by in OF_CALLS:
        return getattr(one.call.attribution, by)
    return case_value(one.case, by)


def case_value(case: Case, by: str) -> Any:
    """A value of a Case that may be shown as a segment."""
    try:
        value = value_at(case, by)
    except KeyError:
        return UNKNOWN
    return value if value is None or isinstance(value, str | bool) or _is_number(value) else type(value).__name__


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _name(value: Any, edges: Sequence[float]) -> str:
    if edges and _is_number(value):
        below = [edge for edge in edges if edge <= value]
        above = [edge for edge in edges if edge > value]
        if not below:
            return f"< {above[0]:g}"
        return f">= {below[-1]:g}" if not above else f"{below[-1]:g} to {above[0]:g}"
    if value is None or value == "":
        return "(none)"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)[:TEXT_CHARS_MAX]
