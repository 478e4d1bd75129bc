"""What the candidate changes per Call: cost, latency and tokens, each with its interval. Pure.

Differences are paired, so that what differs between questions cancels; the interval is Student's t on them, with pairs
of one group together. It holds for one look: the evidence about being right decides when to stop, not this.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from drivetrain.evals.upgrading.pairs import Marked, Side
from drivetrain.statistics.means import mean_interval

KINDS: dict[str, Callable[[Side], int | None]] = {
    "cost": lambda side: side.cost_nano_usd,
    "latency": lambda side: side.latency_us,
    "tokens": lambda side: side.tokens,
}
"""Name -> what is measured: nano-USD, microseconds, tokens of the output."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One measure, per Call."""

    name: str
    """`cost` (nano-USD), `latency` (microseconds) or `tokens` (of the output)."""
    pairs: int
    """In which it is known of both."""
    before: float
    """Mean, weighted where slices were sampled unequally."""
    after: float
    difference: float
    low: float | None
    """The 95 % interval of the difference; None of a single pair."""
    high: float | None
    median_before: float
    median_after: float

    @property
    def is_known(self) -> bool:
        """Whether the interval leaves out no change."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def changes_of(marked: Sequence[Marked]) -> tuple[Change, ...]:
    """Every measure that is known of both answers of some pair."""
    found = []
    for name, measure in KINDS.items():
        known = [
            _Known(one.pair.group or one.pair.id, one.pair.weight, float(old), float(new))
            for one in marked
            if (old := measure(one.pair.before)) is not None and (new := measure(one.pair.after)) is not None
        ]
        if known:
            found.append(_change(name, known))
    return tuple(found)


class _Known(NamedTuple):
    """One pair of which a measure is known."""

    group: str
    weight: float
    before: float
    after: float


def _change(name: str, known: Sequence[_Known]) -> Change:
    weight = math.fsum(one.weight for one in known) / len(known)
    before = [one.before * one.weight / weight for one in known]
    after = [one.after * one.weight / weight for one in known]
    differences = [new - old for old, new in zip(before, after, strict=True)]
    groups = [one.group for one in known]
    several = len(set(groups)) > 1
    low, high = mean_interval(differences, clusters=groups) if several else (None, None)
    return Change(
        name=name, pairs=len(known), before=statistics.fmean(before), after=statistics.fmean(after),
        difference=statistics.fmean(differences), low=low, high=high,
        median_before=statistics.median(one.before for one in known),
        median_after=statistics.median(one.after for one in known),
    )  # fmt: skip
