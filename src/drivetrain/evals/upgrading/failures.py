"""Failures that the candidate fixes and those that it introduces, by cause, with examples by id. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from drivetrain.evals.upgrading.pairs import Mark, Marked

EXAMPLES_MAX = 5
"""Of each cause; a Report is no Dataset."""
UNNAMED = "wrong"


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Failures of one cause."""

    cause: str
    count: int
    examples: tuple[str, ...]
    """Ids of pairs: Calls, or rows of a file."""
    calls: dict[str, str] = {}
    """Example -> the candidate's own Call, where it was asked here."""
    slices: dict[str, int] = {}
    """Slice -> how many of them are in it; empty without slices."""


class Failures(msgspec.Struct, frozen=True, kw_only=True):
    """Pairs in which one answer is better than the other."""

    fixed: tuple[Group, ...]
    """By why the answer before failed."""
    introduced: tuple[Group, ...]
    """By why the candidate's answer fails."""
    both: int
    """Pairs in which neither answer is right."""


def failures_of(marked: Sequence[Marked]) -> Failures:
    """By cause, the commonest first."""
    return Failures(
        fixed=_groups([one for one in marked if one.after.value > one.before.value], lambda one: one.before),
        introduced=_groups([one for one in marked if one.after.value < one.before.value], lambda one: one.after),
        both=sum(one.before.value < 1 and one.after.value < 1 for one in marked),
    )


def _groups(chosen: Sequence[Marked], failed: Callable[[Marked], Mark]) -> tuple[Group, ...]:
    parts: dict[str, list[Marked]] = {}
    for one in chosen:
        parts.setdefault(failed(one).cause or UNNAMED, []).append(one)
    return tuple(
        Group(
            cause=cause, count=len(part), examples=tuple(one.pair.id for one in part[:EXAMPLES_MAX]),
            slices=dict(Counter(one.pair.slice for one in part if one.pair.slice).most_common(EXAMPLES_MAX)),
        )
        for cause, part in sorted(parts.items(), key=lambda item: (-len(item[1]), item[0]))
    )  # fmt: skip
