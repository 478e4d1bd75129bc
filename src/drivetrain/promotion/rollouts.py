"""Rollouts: how a Release reaches its callers, from what its workflows declare, and what happens on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from drivetrain.core.money import nano_usd
from drivetrain.core.releases import (
    WHOLE,
    GuardV1,
    ProposalV1,
    RolloutEventV1,
    RolloutV1,
    StageV1,
)
from drivetrain.core.rollouts import Rollout, Stage
from drivetrain.ports.control import OrderedControlLog
from drivetrain.project.snapshot import Snapshot
from drivetrain.promotion.signing import PersonKey
from drivetrain.promotion.writing import Desk, Written, write

ID_CHARS = 16


def declared_rollouts(proposal: ProposalV1, before: Snapshot | None, after: Snapshot) -> list[Rollout]:
    """The Rollouts of the workflows that a proposal changes and that have callers already."""
    if before is None:
        return []
    found = [
        after.workflows[name].rollout
        for name in sorted(proposal.keys)
        if name in after.workflows and name in before.workflows
    ]
    return [one for one in found if isinstance(one, Rollout)]


def rollout_of(rollouts: Sequence[Rollout], *, environment: str, release: int, proposal_hash: str) -> RolloutV1:
    """One rollout that is as careful as each of `rollouts`: all stages, all guards, the least margins.

    Its id comes from the Release, so that units are assigned anew with each.
    """
    seed = f"{environment}\0{release}\0{proposal_hash}".encode()
    return RolloutV1(
        id=hashlib.blake2b(seed).hexdigest()[:ID_CHARS],
        stages=(*_shadow(rollouts), *_stages([one for rollout in rollouts for one in rollout.stages])),
        guards=_guards(rollouts),
        level=min(one.level for one in rollouts),
    )


def record_event(
    log: OrderedControlLog, environment: str, event: RolloutEventV1, key: PersonKey | None = None
) -> Written[RolloutEventV1]:
    """What happened to the rollout that is under way, in the control log. Raises: DrivetrainError where it cannot.

    key: of the person whose event it is.
    """
    return write(Desk(log=log, environment=environment, user=event.by, key=key), lambda _: event)


def _shadow(rollouts: Sequence[Rollout]) -> Iterable[StageV1]:
    shadows = [one.shadow for one in rollouts if one.shadow is not None]
    if shadows:
        yield StageV1(
            share_ppm=0,
            minutes=max(one.minutes for one in shadows),
            shadow_ppm=max(_ppm(one.share) for one in shadows),
            shadow_nano_usd_per_day=min(nano_usd(one.usd_per_day) for one in shadows),
        )


def _stages(stages: Sequence[Stage]) -> Iterable[StageV1]:
    """Every share that somebody asks for, each as long as the longest stage of that share."""
    for share in sorted({_ppm(one.share) for one in stages}):
        same = [one for one in stages if _ppm(one.share) == share]
        yield StageV1(share_ppm=share, minutes=max(one.minutes for one in same), units=max(one.units for one in same))


def _guards(rollouts: Sequence[Rollout]) -> tuple[GuardV1, ...]:
    found: dict[tuple[str, str, bool, int], GuardV1] = {}
    for one in (guard for rollout in rollouts for guard in rollout.guards):
        kept = GuardV1(**{name: getattr(one, name) for name in GuardV1.__struct_fields__})
        key = (one.watch, one.metric, one.higher_is_better, one.slow_ms)
        before = found.setdefault(key, kept)
        found[key] = msgspec.structs.replace(before, margin=min(before.margin, kept.margin))
    return tuple(found.values())


def _ppm(share: float) -> int:
    return max(1, min(WHOLE, round(share * WHOLE)))
