"""A place with Releases of which there are records alone: enough for whatever reads no Snapshot, as a watcher does."""

from __future__ import annotations

from pathlib import Path

import msgspec

from drivetrain.core.releases import PROMOTED, PROPOSED, ChangeV1, ProposalV1, ReleaseV1, RolloutV1
from drivetrain.embedded.releasing import ReleasePlace, live_of, place_of, state_of

LIVE, CANDIDATE = "a" * 64, "b" * 64
BY = "alice"


def placed(root: Path) -> ReleasePlace:
    """A project that declares nothing, with Release 1 live."""
    (root / "drivetrain.toml").write_text('[project]\nname = "tests"\n')
    found = place_of(root)
    release(found, LIVE, None)
    return found


def release(place: ReleasePlace, snapshot: str, rollout: RolloutV1 | None) -> None:
    """The next one, of the workflow `triage`, by somebody who may: no rules are declared."""
    log, now = place.log(), state_of(place)
    proposal = ProposalV1(
        number=now.next_proposal, environment=place.environment, snapshot=snapshot, base=now.live.release,
        base_snapshot=now.live.snapshot, by=BY, keys={"triage": "k"},
        changes=(ChangeV1(workflow="triage", aspect="prompts", what="another"),),
    )  # fmt: skip
    made = ReleaseV1(
        number=now.next_release, environment=place.environment, way="promote", snapshot=snapshot,
        previous=now.live.release, by=BY, proposal=proposal.number, proposal_hash=proposal.hash,
        workflows=("triage",), rollout=rollout,
    )  # fmt: skip
    for kind, body in ((PROPOSED, proposal), (PROMOTED, made)):
        subject = f"{place.environment}/{body.number}"
        log.append(kind=kind, actor=BY, subject=subject, body=msgspec.to_builtins(body))
    assert not live_of(place.root).refused
