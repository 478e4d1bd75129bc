"""Proposals: made, stood for by others, and withdrawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.releases import ApprovalV1, ProposalV1, RulesV1, WithdrawalV1
from drivetrain.promotion.plan import Plan
from drivetrain.promotion.recorded import check_recorded
from drivetrain.promotion.standing import Proposed, State
from drivetrain.promotion.writing import Desk, Written, name_of, write

REASON_CHARS_MAX = 2_000

Answer = TypeVar("Answer", ApprovalV1, WithdrawalV1)


def propose(desk: Desk, plan: Plan, reason: str) -> Written[ProposalV1]:
    """A plan becomes a proposal. Its Snapshot is stored before. Raises: DrivetrainError."""

    def make(state: State) -> ProposalV1:
        if (plan.base, plan.base_snapshot) != (state.live.release, state.live.snapshot):
            raise DrivetrainError(
                f"Release {state.live.release} by `{state.live.by}` became live while this was planned.",
                do="Plan again against it: `drivetrain plan`.",
            )
        check_recorded(desk.log.records(), plan.evidence)
        rules = state.live.rules if state.live.release else plan.rules
        return ProposalV1(
            number=state.next_proposal, environment=desk.environment, snapshot=plan.snapshot, base=plan.base,
            base_snapshot=plan.base_snapshot, by=name_of(desk, rules), reason=checked_reason(reason),
            changes=plan.changes, keys=plan.keys, evidence=plan.evidence, rules=plan.rules,
        )  # fmt: skip

    return write(desk, make)


def approve(desk: Desk, number: int, reason: str = "") -> Written[ApprovalV1]:
    """Somebody stands for a proposal, by its hash. Raises: DrivetrainError where that does not count."""
    return _answer(ApprovalV1, desk, number, reason, lambda one: check_recorded(desk.log.records(), one.evidence))


def withdraw(desk: Desk, number: int, reason: str = "") -> Written[WithdrawalV1]:
    """A proposal is released no more. Raises: DrivetrainError where that does not count."""
    return _answer(WithdrawalV1, desk, number, reason, lambda _: None)


def _answer(
    kind: type[Answer], desk: Desk, number: int, reason: str, check: Callable[[ProposalV1], None]
) -> Written[Answer]:
    """What somebody says to a proposal, bound to its hash. check: raises where it may not be said."""

    def make(state: State) -> Answer:
        found = proposed(state, number)
        check(found.proposal)
        return kind(
            environment=desk.environment, proposal=number, proposal_hash=found.proposal.hash,
            by=name_of(desk, rules_for(state, found)), reason=checked_reason(reason),
        )  # fmt: skip

    return write(desk, make)


def proposed(state: State, number: int) -> Proposed:
    """A proposal by its number. Raises: DrivetrainError."""
    found = state.proposals.get(number)
    if found is None:
        raise DrivetrainError(
            f"`{state.live.environment}` has no proposal {number}.",
            do=did_you_mean(str(number), [str(one) for one in state.proposals])
            if state.proposals
            else "`drivetrain propose` makes one.",
        )
    return found


def rules_for(state: State, found: Proposed) -> RulesV1:
    """The rules that hold for a proposal: those in force, and before the first Release its own."""
    return state.live.rules if state.live.release else found.proposal.rules


def checked_reason(reason: str) -> str:
    """Raises: DrivetrainError where it is longer than a reason is."""
    if len(reason) > REASON_CHARS_MAX:
        raise DrivetrainError(f"The reason has {len(reason):,} characters; at most {REASON_CHARS_MAX:,} are kept.")
    return reason
