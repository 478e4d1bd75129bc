"""Releases: made of a proposal, by override, or by going back to an earlier one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import EvidenceV1, ReleaseV1, RolloutV1
from drivetrain.promotion.approving import checked_reason, proposed, rules_for
from drivetrain.promotion.recorded import check_recorded
from drivetrain.promotion.rights import lacking
from drivetrain.promotion.standing import Proposed, Released, State
from drivetrain.promotion.writing import Desk, Written, name_of, write

Rolled = Callable[[int], RolloutV1 | None]
"""A Release's number -> how it reaches its callers; None: at once."""


def at_once(_: int) -> RolloutV1 | None:
    """No rollout."""
    return None


def promote(
    desk: Desk,
    number: int,
    *,
    evidence: Sequence[EvidenceV1] = (),
    missing: Sequence[str] = (),
    looked: Sequence[str] = (),
    rolled: Rolled = at_once,
    override: bool = False,
    reason: str = "",
) -> Written[ReleaseV1]:
    """A proposal becomes a Release.

    evidence: Reports found since it was proposed. missing: what `evidence.missing` tells of it. looked: Reports that
    were found and prove nothing, and why. override: release it all the same, with what it lacks written down.
    Raises: DrivetrainError where it may not be.
    """

    def make(state: State) -> ReleaseV1:
        found = proposed(state, number)
        lacks = lacking_of(state, found, evidence, missing)
        if override and not lacks:
            raise DrivetrainError(f"Proposal {number} lacks nothing.", do="Promote it without `--override`.")
        if missing and not override:
            raise DrivetrainError(
                f"Proposal {number} cannot be released: {'; '.join(missing)}.",
                looked=looked,
                do="Run `drivetrain eval run` on the project as it was proposed, then promote it." if looked else "",
            )
        if not override:
            cited = {(one.eval, one.workflow): one for one in (*found.proposal.evidence, *evidence) if one.report}
            check_recorded(desk.log.records(), [*cited.values()])
        release = state.next_release
        return ReleaseV1(
            number=release, environment=desk.environment, way="override" if override else "promote",
            snapshot=found.proposal.snapshot, previous=state.live.release, by=name_of(desk, rules_for(state, found)),
            proposal=number, proposal_hash=found.proposal.hash, workflows=tuple(sorted(found.proposal.keys)),
            evidence=tuple(evidence), lacks=lacks if override else (), rollout=rolled(release),
            reason=checked_reason(reason),
        )  # fmt: skip

    return write(desk, make)


def lacking_of(
    state: State, found: Proposed, evidence: Sequence[EvidenceV1] = (), missing: Sequence[str] = ()
) -> tuple[str, ...]:
    """All that a proposal lacks, in words, by the rules that hold for it."""
    by = [one.by for one in found.approvals]
    return tuple(dict.fromkeys([*missing, *lacking(rules_for(state, found), found.proposal, by, evidence)]))


def roll_back(desk: Desk, to: int | None, reason: str) -> Written[ReleaseV1]:
    """A new Release that brings back an earlier one, at once; by default what was live before.

    Raises: DrivetrainError where there is none, or where whoever asks may not.
    """

    def make(state: State) -> ReleaseV1:
        restored = earlier(state, to)
        return ReleaseV1(
            number=state.next_release, environment=desk.environment, way="rollback",
            snapshot=restored.release.snapshot, previous=state.live.release, by=name_of(desk, state.live.rules),
            restores=restored.release.number, workflows=restored_workflows(state, restored),
            reason=checked_reason(reason),
        )  # fmt: skip

    return write(desk, make)


def earlier(state: State, to: int | None) -> Released:
    """The Release to go back to: the one of a number, or what was live before what is. Raises: DrivetrainError."""
    if to is None:
        now = state.releases.get(state.live.release)
        if now is not None and now.release.restores:
            now = state.releases[now.release.restores]  # twice back goes further back, and not forth again
        to = now.release.previous if now is not None else 0
        if not to:
            raise DrivetrainError(
                f"`{state.live.environment}` has no Release before Release {state.live.release}.",
                do="`drivetrain history` lists them.",
            )
    found = state.releases.get(to)
    if found is None or not found.since_ns:
        raise DrivetrainError(
            f"Release {to} was never live in `{state.live.environment}`.",
            looked=[f"Release {number}" for number, one in state.releases.items() if one.since_ns],
            do="`drivetrain history` lists them.",
        )
    return found


def restored_workflows(state: State, restored: Released) -> tuple[str, ...]:
    """What changed in any Release since the restored one."""
    since = [one for number, one in state.releases.items() if number > restored.release.number and one.since_ns]
    return tuple(sorted({name for one in since for name in one.release.workflows}))
