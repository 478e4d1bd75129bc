"""Releases with a shadow, as their records stand in a control log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from drivetrain.adapters.sqlite import open_control_log
from drivetrain.core.releases import (
    PROMOTED,
    PROPOSED,
    ROLLOUT,
    WHOLE,
    ProposalV1,
    ReleaseV1,
    RolloutEventV1,
    RolloutV1,
    StageV1,
)
from drivetrain.embedded.releasing import ReleasePlace, place_of
from drivetrain.project.load import load
from drivetrain.project.snapshot import Snapshot
from drivetrain.project.stored import store
from support.releases import Releases

BY = "tester"
ID = "00112233445566aa"
USD = 1_000_000_000


def stored(root: Path) -> Snapshot:
    """The project's folder as it is now, stored."""
    snapshot = load(root, None)
    store(snapshot, snapshot.snapshots_folder)
    return snapshot


def rollout(*, ppm: int = WHOLE, usd: float = 100.0, id_: str = ID) -> RolloutV1:
    """A shadow, and a canary behind it that the tests never reach."""
    shadow = StageV1(share_ppm=0, minutes=60.0, shadow_ppm=ppm, shadow_nano_usd_per_day=int(usd * USD))
    return RolloutV1(id=id_, stages=(shadow, StageV1(share_ppm=WHOLE // 2, minutes=60.0)))


def release(root: Path, snapshot: Snapshot, *workflows: str, number: int, rolled: RolloutV1 | None = None) -> None:
    """Make `snapshot` Release `number` of its environment, at once or by `rolled`, on top of all before it."""
    place = place_of(root)
    live = _live(place)
    planned = Releases(root, place.environment).planned(snapshot.hash)
    assert set(workflows) <= set(planned.keys), planned.keys
    proposal = ProposalV1(
        number=number, environment=place.environment, snapshot=snapshot.hash, base=live[0], base_snapshot=live[1],
        by=BY, keys=planned.keys, changes=planned.changes, rules=planned.rules,
    )  # fmt: skip
    append(place, PROPOSED, proposal)
    append(
        place, PROMOTED,
        ReleaseV1(
            number=number, environment=place.environment, way="promote", snapshot=snapshot.hash, previous=live[0],
            by=BY, proposal=number, proposal_hash=proposal.hash, workflows=tuple(sorted(planned.keys)), rollout=rolled,
        ),
    )  # fmt: skip


def event(root: Path, what: str, *, release: int, stage: int = 0) -> None:
    """Something happens to the rollout."""
    place = place_of(root)
    append(
        place, ROLLOUT,
        RolloutEventV1(environment=place.environment, release=release, event=what, stage=stage, by=BY),
    )  # fmt: skip


def append(place: ReleasePlace, kind: str, body: Any) -> None:
    number = getattr(body, "release", None) or body.number
    log = open_control_log(place.data_folder, place.keys_folder)
    log.append(kind=kind, actor=BY, subject=f"{place.environment}/{number}", body=msgspec.to_builtins(body))


def _live(place: ReleasePlace) -> tuple[int, str]:
    from drivetrain.embedded.releasing import live_of

    live = live_of(place.root)
    return live.release, live.snapshot
