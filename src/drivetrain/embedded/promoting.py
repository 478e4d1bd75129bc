"""What is live is changed: a project's folder is planned and proposed, proposals are approved, released and undone.

The door of the commands, and of programs. It decides nothing by itself: `promotion/` says what counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import (
    ApprovalV1,
    EvidenceV1,
    ProposalV1,
    ReleaseV1,
    RolloutEventV1,
    RolloutV1,
    WithdrawalV1,
)
from drivetrain.core.rollouts import Rollout
from drivetrain.embedded.applying import keep, person
from drivetrain.embedded.eval_recorded import RunProofs
from drivetrain.embedded.modelling import reports_in
from drivetrain.embedded.releasing import ReleasePlace, doubts_about, newest_numbers, records_of, stored_snapshot
from drivetrain.ports.control import APPLIED, ControlRecord
from drivetrain.project.load import load, unload
from drivetrain.project.snapshot import Snapshot
from drivetrain.promotion import approving, releasing
from drivetrain.promotion.approving import proposed, rules_for
from drivetrain.promotion.evidence import missing, proof_in, unfit, untold, why_not
from drivetrain.promotion.plan import Plan, Proof, plan_of
from drivetrain.promotion.recorded import not_proved, runs_in, unrecorded
from drivetrain.promotion.rollouts import declared_rollouts, record_event, rollout_of
from drivetrain.promotion.signing import read_key
from drivetrain.promotion.standing import State
from drivetrain.promotion.state import read
from drivetrain.promotion.writing import Desk, Written, name_of, standing


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """A plan of the project's folder."""

    plan: Plan
    state: State
    shown: Plan
    """What people are shown: the plan, or, where nothing was released, what differs from what `serve` loaded last."""
    against: str
    """What `shown` was compared with, in words."""
    unfit: tuple[str, ...] = ()
    """The newest Reports of gates that they do not prove, and why."""


def _untold(unfit: Sequence[str]) -> None:
    """Nobody is told."""


def desk_of(place: ReleasePlace, key: Path | None = None) -> Desk:
    """Where whoever runs this decides. key: the file of their private key. Raises: DrivetrainError."""
    return Desk(
        log=place.log(), environment=place.environment, user=person(), key=read_key(key) if key is not None else None
    )


def plan(place: ReleasePlace) -> Planned:
    """What releasing the project's folder would change. Raises: DrivetrainError; ProjectError for its mistakes."""
    with _folder(place) as after:
        return _planned(place, after)


def propose(
    place: ReleasePlace, reason: str, key: Path | None = None, *, tell: Callable[[Sequence[str]], None] = _untold
) -> Written[ProposalV1]:
    """The project's folder becomes a proposal, its Snapshot stored; it cites Reports that the records bear out.

    tell: gets the newest Reports that prove nothing, and why. Raises: DrivetrainError; ProjectError.
    """
    desk = desk_of(place, key)
    with _folder(place) as after:
        planned = _planned(place, after)
        if not planned.plan.changes:
            raise DrivetrainError(
                f"Nothing changes: Release {planned.plan.base} is what stands in the folder.",
                looked=[str(place.root)],
                do="Edit the project, then propose it.",
            )
        tell(planned.unfit)
        _borne_out(place, planned.plan.evidence, planned.plan.base_snapshot, after)
        keep(after)
    return approving.propose(desk, planned.plan, reason)


def approve(place: ReleasePlace, number: int, reason: str = "", key: Path | None = None) -> Written[ApprovalV1]:
    """Stand for a proposal, whose stored Snapshot is proved to be the one that it names, and whose Reports are those
    that it needs. Raises: DrivetrainError."""
    desk = desk_of(place, key)
    found = proposed(standing(desk), number)
    with _stored(place, found.proposal.snapshot) as after:
        _borne_out(place, found.proposal.evidence, found.proposal.base_snapshot, after)
    return approving.approve(desk, number, reason)


def withdraw(place: ReleasePlace, number: int, reason: str = "", key: Path | None = None) -> Written[WithdrawalV1]:
    """Take a proposal back. Raises: DrivetrainError."""
    return approving.withdraw(desk_of(place, key), number, reason)


def promote(
    place: ReleasePlace,
    number: int,
    *,
    canary: bool = False,
    now: bool = False,
    override: bool = False,
    reason: str = "",
    key: Path | None = None,
) -> Written[ReleaseV1]:
    """Release a proposal, once all that it names is proved. Raises: DrivetrainError; then nothing changed.

    canary: in stages, where no workflow declares its own. now: at once, whatever they declare.
    """
    if canary and now:
        raise DrivetrainError("A Release is either in stages or at once.", do="Leave out `--canary` or `--now`.")
    if now and not reason.strip():
        raise DrivetrainError("A Release that skips its stages says why.", do="Add `--reason`.")
    desk = desk_of(place, key)
    state = standing(desk)
    found = proposed(state, number)
    proposal = found.proposal
    with _stored(place, proposal.snapshot) as after, _base(place, proposal.base_snapshot) as before:
        in_force = rules_for(state, found)
        if before is not None:
            _hold(place, state.live.release, before, "so nothing is built on it")
        hidden = untold(proposal, before=before, after=after, in_force=in_force)
        if hidden:
            raise DrivetrainError(
                f"Proposal {number} is not what it says: {'; '.join(hidden)}.", do="Withdraw it, and propose anew."
            )
        reports = reports_in(place.data_folder, place.keys_folder)
        listed, newest, runs = reports.list("eval"), newest_numbers(after), runs_in(desk.log.records())
        evidence = _proved(proposal.evidence, proof_in(listed, before, after, newest, runs))
        lacks = missing(
            evidence, before=before, after=after, in_force=in_force, report=lambda id: reports.get(id).report,
            newest=newest, doubted=RunProofs(after, runs).doubt,
        )  # fmt: skip
        looked: tuple[str, ...] = ()
        if lacks:
            unproved = [one for one in evidence if not one.report]
            looked = unfit(listed, unproved, before=before, after=after, newest=newest, runs=runs)
        rollouts = [] if now else declared_rollouts(proposal, before, after)
    if canary and not rollouts:
        if not proposal.base:
            raise DrivetrainError("The first Release has no other beside it.", do="Promote it without `--canary`.")
        rollouts = [Rollout()]

    def rolled(release: int) -> RolloutV1 | None:
        if not rollouts:
            return None
        return rollout_of(rollouts, environment=place.environment, release=release, proposal_hash=proposal.hash)

    return releasing.promote(
        desk, number, evidence=evidence, missing=lacks, looked=looked, rolled=rolled, override=override, reason=reason
    )


def roll_back(
    place: ReleasePlace, to: int | None, reason: str, key: Path | None = None
) -> Written[ReleaseV1] | Written[RolloutEventV1]:
    """Go back to an earlier Release, or end the rollout that is under way where no number is given.

    Raises: DrivetrainError where there is none, or where its stored Snapshot was changed.
    """
    if not reason.strip():
        raise DrivetrainError("A rollback says why.", do="Add `--reason`.")
    desk = desk_of(place, key)
    state = standing(desk)
    active = state.live.active
    if active is not None and to is None:
        event = RolloutEventV1(
            environment=place.environment, release=active.release, event="aborted", stage=active.stage,
            by=name_of(desk, state.live.rules), verdict=reason, rollout=active.rollout.id,
        )  # fmt: skip
        return record_event(desk.log, place.environment, event, desk.key)
    restored = releasing.earlier(state, to).release
    with _stored(place, restored.snapshot) as after:
        _hold(place, restored.number, after, "so nobody would serve it")
    return releasing.roll_back(desk, to, reason)


def _hold(place: ReleasePlace, release: int, snapshot: Snapshot, so: str) -> None:
    """Raises: DrivetrainError where a Release is not what its records say."""
    found = doubts_about(place, release, snapshot)
    if found:
        raise DrivetrainError(
            f"Release {release} is not what its records say, {so}: {'; '.join(found)}.",
            do="Go back to another one with `drivetrain rollback --to`; `drivetrain history` lists them.",
        )


def _planned(place: ReleasePlace, after: Snapshot) -> Planned:
    records = records_of(place)
    state = read(records, place.environment)
    live = state.live
    with _base(place, live.snapshot) as before:
        reports = reports_in(place.data_folder, place.keys_folder).list("eval")
        newest, runs = newest_numbers(after), runs_in(records)
        proof = proof_in(reports, before, after, newest, runs)
        made = plan_of(before, after, release=live.release, in_force=live.rules if live.release else None, proof=proof)
        unproved = [one for one in made.evidence if not one.report]
        told = unfit(reports, unproved, before=before, after=after, newest=newest, runs=runs)
    if live.release:
        return Planned(plan=made, state=state, shown=made, against=f"Release {live.release}", unfit=told)
    with _last_applied(place, records) as applied:
        if applied is None:
            return Planned(plan=made, state=state, shown=made, against="nothing, since it is the first", unfit=told)
        shown = plan_of(applied, after, release=0, in_force=applied.rules, proof=proof)
        shown = msgspec.structs.replace(shown, evidence=made.evidence, lacks=made.lacks)
        against = f"what was served last ({applied.short_hash})"
        return Planned(plan=made, state=state, shown=shown, against=against, unfit=told)


def _borne_out(place: ReleasePlace, evidence: Sequence[EvidenceV1], base: str, after: Snapshot) -> None:
    """Raises: DrivetrainError where a Report that is cited does not prove its gate by what was recorded of its run.

    base: hash of the Snapshot that it is proposed against; empty: there is none.
    """
    cited = [one for one in evidence if one.report]
    if not cited:
        return
    reports, runs = reports_in(place.data_folder, place.keys_folder), runs_in(records_of(place))
    proofs = RunProofs(after, runs)
    with _base(place, base) as before:
        for one in cited:
            report = reports.get(one.report).report
            why = unrecorded(runs, one.report, one) or why_not(report, one, before=before, after=after)
            why = why or proofs.doubt(one, report)
            if why:
                raise not_proved(one, why)


def _proved(needed: Sequence[EvidenceV1], proof: Proof) -> tuple[EvidenceV1, ...]:
    return tuple(msgspec.structs.replace(one, report=proof(one)) for one in needed)


@contextmanager
def _folder(place: ReleasePlace) -> Iterator[Snapshot]:
    snapshot = load(place.root, place.environment)
    try:
        yield snapshot
    finally:
        unload(snapshot)


@contextmanager
def _stored(place: ReleasePlace, digest: str) -> Iterator[Snapshot]:
    """A stored Snapshot for a while, proved."""
    snapshot = stored_snapshot(place, digest)
    try:
        yield snapshot
    finally:
        unload(snapshot)


@contextmanager
def _base(place: ReleasePlace, digest: str) -> Iterator[Snapshot | None]:
    """What a plan is compared with, for a while; None for nothing."""
    snapshot = stored_snapshot(place, digest, models=False) if digest else None
    try:
        yield snapshot
    finally:
        if snapshot is not None:
            unload(snapshot)


@contextmanager
def _last_applied(place: ReleasePlace, records: Sequence[ControlRecord]) -> Iterator[Snapshot | None]:
    """What was served last from the folder; None where it cannot be loaded any more: it is shown, not relied upon."""
    digest = next((one.subject for one in reversed(records) if _is_apply(one, place.environment)), "")
    try:
        snapshot = stored_snapshot(place, digest, models=False) if digest else None
    except DrivetrainError:
        snapshot = None
    try:
        yield snapshot
    finally:
        if snapshot is not None:
            unload(snapshot)


def _is_apply(record: ControlRecord, environment: str) -> bool:
    return record.kind == APPLIED and msgspec.json.decode(record.body).get("environment") == environment
