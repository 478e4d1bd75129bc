"""Whether a record counts after those before it, and why not. Pure.

A release counts where its proposal was made against what is live, where approvals and Reports are what the rules in
force ask, and where whoever made it may. Called by the fold (`state`), and through it by everything that writes: no
command has rules of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from drivetrain.core.releases import (
    APPROVED,
    PROMOTED,
    PROPOSED,
    ROLLOUT,
    ROLLOUT_EVENTS,
    WAYS,
    WHOLE,
    WITHDRAWN,
    ApprovalV1,
    ProposalV1,
    ReleaseV1,
    RolloutEventV1,
    RolloutV1,
    RulesV1,
    WithdrawalV1,
)
from drivetrain.promotion.rights import lacking, may_override, person, stranger
from drivetrain.promotion.signing import Signed, unsigned
from drivetrain.promotion.standing import Proposed, State

Body = ProposalV1 | ApprovalV1 | WithdrawalV1 | ReleaseV1 | RolloutEventV1
GUARDS = "guards"
"""Who writes what the watcher decides."""
STAGES_MAX = 100
"""A rollout with more of them is a mistake."""


def kind_of(body: Body) -> str:
    """The control log's kind for a body."""
    match body:
        case ProposalV1():
            return PROPOSED
        case ApprovalV1():
            return APPROVED
        case WithdrawalV1():
            return WITHDRAWN
        case ReleaseV1():
            return PROMOTED
    return ROLLOUT


def refusal(state: State, body: Body) -> str:
    """Why `body` does not count after `state`, its signature left aside; empty where it does."""
    match body:
        case ProposalV1():
            return _of_proposal(state, body)
        case ApprovalV1():
            return _of_approval(state, body)
        case WithdrawalV1():
            return _of_withdrawal(state, body)
        case ReleaseV1():
            return _of_rollback(state, body) if body.way == "rollback" else _of_release(state, body)
    return _of_event(state, body)


def refusal_of_signature(state: State, body: Body, is_signed: Callable[[Signed, str], bool]) -> str:
    """Why `body` does not count by its signature: whoever has a key must sign; empty where it counts."""
    if isinstance(body, RolloutEventV1) and body.by == GUARDS:
        return ""
    declared = person(_rules(state, body), body.by)
    if declared is None or not declared.key or is_signed(body, declared.key):
        return ""
    return f"it is not signed with the key of `{body.by}`" if body.signature else f"`{body.by}` has a key and must sign"


def _rules(state: State, body: Body) -> RulesV1:
    """Those in force: of what is live; before the first Release those of the proposal that it is about."""
    if state.live.release or isinstance(body, RolloutEventV1):
        return state.live.rules
    if isinstance(body, ProposalV1):
        return body.rules
    proposed = state.proposals.get(body.proposal)
    return proposed.proposal.rules if proposed is not None else RulesV1()


def _of_proposal(state: State, body: ProposalV1) -> str:
    if body.number != state.next_proposal:
        return f"it is numbered {body.number}, and {state.next_proposal} is next"
    if body.base != state.live.release or body.base_snapshot != state.live.snapshot:
        return f"it was made against Release {body.base}, and {_live(state)}"
    if body.snapshot == state.live.snapshot:
        return "it proposes what is live"
    if not body.changes:
        return "it does not say what it changes"
    return stranger(_rules(state, body), body.by)


def _of_approval(state: State, body: ApprovalV1) -> str:
    proposed, why = _open_proposal(state, body.proposal, body.proposal_hash)
    if proposed is None:
        return why
    if body.by == proposed.proposal.by:
        return f"`{body.by}` made the proposal, and nobody approves their own"
    if any(one.by == body.by for one in proposed.approvals):
        return f"`{body.by}` has approved it before; one person counts once"
    return stranger(_rules(state, body), body.by)


def _of_withdrawal(state: State, body: WithdrawalV1) -> str:
    proposed = state.proposals.get(body.proposal)
    if proposed is None or proposed.proposal.hash != body.proposal_hash:
        return f"there is no proposal {body.proposal} of this hash"
    if proposed.withdrawn_by or proposed.release:
        return f"proposal {body.proposal} is not open any more"
    return stranger(_rules(state, body), body.by)


def _of_release(state: State, body: ReleaseV1) -> str:
    if body.way not in WAYS:
        return f"`{body.way}` is no way to make a Release"
    proposed, why = _open_proposal(state, body.proposal, body.proposal_hash)
    if proposed is None:
        return why
    proposal, rules = proposed.proposal, _rules(state, body)
    if why := _of_place(state, body):
        return why
    if body.snapshot != proposal.snapshot or body.workflows != tuple(sorted(proposal.keys)) or body.restores:
        return f"it is not what proposal {proposal.number} proposes"
    if why := stranger(rules, body.by):
        return why
    if body.rollout is not None and (why := _of_rollout(state, body.rollout)):
        return why
    lacks = lacking(rules, proposal, [one.by for one in proposed.approvals], body.evidence)
    if body.way == "promote":
        if body.lacks:
            return "only an override says what it lacks"
        return f"proposal {proposal.number} lacks: {'; '.join(lacks)}" if lacks else ""
    if not may_override(rules, body.by):
        roles = " or ".join(rules.override_roles)
        return f"`{body.by}` may not override{f': that takes the role {roles}' if roles else ', and nobody may'}"
    if not body.reason.strip():
        return "an override says why"
    if not set(lacks) <= set(body.lacks):
        return f"it does not say what it lacks: {'; '.join(lacks)}"
    return ""


def _of_rollback(state: State, body: ReleaseV1) -> str:
    if why := _of_place(state, body):
        return why
    restored = state.releases.get(body.restores)
    if restored is None or not restored.since_ns:
        return f"Release {body.restores} was never live"
    if restored.release.snapshot != body.snapshot or body.proposal or body.rollout is not None:
        return f"it is not what Release {body.restores} was"
    if body.snapshot == state.live.snapshot:
        return "it restores what is live"
    if not body.reason.strip():
        return "a rollback says why"
    return stranger(state.live.rules, body.by)


def _of_place(state: State, body: ReleaseV1) -> str:
    """Whether it is the next Release, after what is live."""
    if body.number != state.next_release:
        return f"it is numbered {body.number}, and {state.next_release} is next"
    if body.previous != state.live.release:
        return f"it follows Release {body.previous}, and {_live(state)}"
    if state.live.active is not None and (body.way == "promote" or body.rollout is not None):
        return f"the rollout of Release {state.live.active.release} is under way"
    return ""


def _open_proposal(state: State, number: int, digest: str) -> tuple[Proposed | None, str]:
    """A proposal that can be approved and released, or why there is none."""
    found = state.proposals.get(number)
    if found is None:
        return None, f"there is no proposal {number}"
    if found.proposal.hash != digest:
        return None, f"it names another hash than proposal {number} has"
    if found.withdrawn_by:
        return None, f"proposal {number} was withdrawn by `{found.withdrawn_by}`"
    if found.release:
        return None, f"proposal {number} became Release {found.release}"
    if state.is_stale(found):
        return (
            None,
            f"proposal {number} is stale: it was made against Release {found.proposal.base}, and {_live(state)}",
        )
    return found, ""


def _of_rollout(state: State, rollout: RolloutV1) -> str:
    if not state.live.release:
        return "the first Release cannot be rolled out beside another"
    shares = [one.share_ppm for one in rollout.stages]
    if not 0 < len(shares) <= STAGES_MAX or any(not 0 <= one <= WHOLE for one in shares) or shares != sorted(shares):
        return "its rollout's stages are none, or do not grow"
    if any(not 0 <= one.shadow_ppm <= WHOLE or one.minutes < 0 or one.units < 0 for one in rollout.stages):
        return "its rollout's stages are none"
    return "" if 0 < rollout.level < 1 else "its rollout's level is no share"


def _of_event(state: State, body: RolloutEventV1) -> str:
    active = state.live.active
    if active is None or active.release != body.release:
        return f"no rollout of Release {body.release} is under way"
    if body.event not in ROLLOUT_EVENTS:
        return f"`{body.event}` is no event of a rollout"
    if body.by != GUARDS and (why := stranger(state.live.rules, body.by)):
        return why
    if (body.signature or body.rollout) and body.rollout != active.rollout.id:
        return "it is of another rollout"
    if body.signature and unsigned(body) in [unsigned(one) for _, one in state.releases[active.release].events]:
        return "the very same was signed before, and counts once; say another reason"
    last = len(active.rollout.stages) - 1
    if active.paused and body.event in ("stage", "completed", "paused"):
        return "it is paused"
    if body.event == "stage" and not (body.stage == active.stage + 1 <= last):
        return f"stage {body.stage} does not follow stage {active.stage}"
    if body.event == "completed" and active.stage != last:
        return f"stage {active.stage} is not the last"
    if body.event == "resumed" and not active.paused:
        return "it is not paused"
    return ""


def _live(state: State) -> str:
    if not state.live.release:
        return "nothing was released yet"
    return f"Release {state.live.release} by `{state.live.by}` is live"
