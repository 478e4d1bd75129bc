"""What a user declares of how a Release reaches its callers: a shadow, stages of a canary, and guards. Data only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Never

import msgspec

from drivetrain.core.declarations import Place, caller_place

GUARDS = ("errors", "latency", "cost", "score", "outcome")


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a canary."""

    share: float
    """Of the units (users, else keys) that the candidate answers: above 0, at most 1, growing from stage to stage."""
    minutes: float = 10.0
    """How long it lasts at least."""
    units: int = 20
    """Units that each arm must have seen before it ends."""


class Guard(msgspec.Struct, frozen=True, kw_only=True):
    """What rolls a canary back: evidence that the candidate's arm does worse than the live one."""

    watch: str
    """One of `GUARDS`: share of failed Calls, share of slow Calls, cost per Call, mean of an eval's or a judge's score,
    mean of an Outcome's metric."""
    margin: float = 0.0
    """The harm that is accepted: as a share of Calls (`errors`, `latency`: 0.01 is one point), as a share of the live
    arm's mean (`cost`: 0.1 is 10 %), in the metric's own unit (`score`, `outcome`)."""
    metric: str = ""
    """Of `outcome` and `score`: the Outcome's metric, or the scorer's name."""
    higher_is_better: bool = True
    """Of `outcome` and `score`."""
    slow_ms: int = 0
    """Of `latency`: what counts as slow; 0: what the stage's first Calls exceed in one of two, of ten and of a hundred,
    and farther out."""


class Shadow(msgspec.Struct, frozen=True, kw_only=True):
    """Before the canary: the candidate sees a copy of the traffic and answers nobody."""

    share: float = 0.1
    """Of the Calls that are copied."""
    minutes: float = 10.0
    usd_per_day: str | int = "1"
    """Its own budget; what does not fit is not copied."""


DEFAULT_STAGES = (Stage(share=0.05), Stage(share=0.2), Stage(share=0.5))
DEFAULT_GUARDS = (Guard(watch="errors"), Guard(watch="latency"), Guard(watch="cost", margin=0.1))
EVIDENCE_LEVEL = 0.95
"""Of all guards together: a candidate that is no worse is rolled back in at most one rollout of twenty."""


class Rollout:
    """How a workflow's Releases reach its callers."""

    __slots__ = ("guards", "level", "place", "shadow", "stages", "unknown")

    def __init__(
        self,
        *,
        stages: Sequence[Stage] = DEFAULT_STAGES,
        guards: Sequence[Guard] = DEFAULT_GUARDS,
        shadow: Shadow | None = None,
        level: float = EVIDENCE_LEVEL,
        place: Place | None = None,
        **unknown: Never,
    ) -> None:
        self.stages = tuple(stages)
        self.guards = tuple(guards)
        self.shadow = shadow
        self.level = level
        self.place = place or caller_place()
        self.unknown: Mapping[str, Any] = unknown
