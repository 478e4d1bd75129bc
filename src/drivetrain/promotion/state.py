"""What is live in an environment, and how that came to be, computed from the control log.

The only authority: a record counts where the ones before it allow it, whoever wrote it and by whatever means; one that
does not is told in `Live.refused` and changes nothing. Pure, and the same for everybody who reads the same records.
Called by the gateway's watch of the log, by the commands before they write, and by the dossier.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from drivetrain.core.releases import (
    RELEASE_KINDS,
    ActiveRollout,
    ApprovalV1,
    Live,
    ProposalV1,
    ReleaseV1,
    RolloutEventV1,
    WithdrawalV1,
)
from drivetrain.ports.control import ControlRecord
from drivetrain.promotion.counting import Body, kind_of, refusal, refusal_of_signature
from drivetrain.promotion.signing import is_signed
from drivetrain.promotion.standing import Proposed, Released, State

REFUSED_MAX = 100
"""Of the newest records that do not count, as they are told; a log that somebody floods is told of as well by ten."""

_BODY: msgspec.json.Decoder[Body] = msgspec.json.Decoder(Body)


def live(records: Iterable[ControlRecord], environment: str) -> Live:
    """What is to be served in an environment, by all records of the control log in their order."""
    return read(records, environment).live


def history(records: Iterable[ControlRecord], environment: str) -> tuple[Released, ...]:
    """Every Release of an environment, oldest first."""
    return tuple(read(records, environment).releases.values())


def read(records: Iterable[ControlRecord], environment: str) -> State:
    """Everything about an environment; other environments and other kinds of records are passed over."""
    state = State(live=Live(environment=environment))
    for record in records:
        state = after(state, record)
    return state


def lives(records: Iterable[ControlRecord], environment: str) -> list[Live]:
    """What was live, one after the other, with what was rolled out beside it last; the last one is live now."""
    found: list[Live] = []
    state = State(live=Live(environment=environment))
    for record in records:
        state = after(state, record)
        if found and found[-1].release == state.live.release:
            found[-1] = state.live
        elif state.live.release:
            found.append(state.live)
    return found


def read_at(records: Sequence[ControlRecord], environment: str, at_ns: int) -> State:
    """As `read`, of the log as it was at a time: up to the last record that is not younger."""
    until = max((place for place, one in enumerate(records, start=1) if one.at_ns <= at_ns), default=0)
    return read(records[:until], environment)


def after(state: State, record: ControlRecord) -> State:
    """The state once `record` is in the log."""
    environment = state.live.environment
    state = msgspec.structs.replace(state, seq=record.seq)
    if record.kind not in RELEASE_KINDS or record.subject.rpartition("/")[0] != environment:
        return state
    try:
        body = _BODY.decode(record.body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _refused(state, record, "it cannot be read")
    if record.kind != kind_of(body) or record.subject != subject_of(body) or record.actor != body.by:
        return _refused(state, record, "its kind, its subject or its actor is not what its body says")
    why = refusal(state, body) or refusal_of_signature(state, body, is_signed)
    return _refused(state, record, why) if why else _taken(state, body, record)


def subject_of(body: Body) -> str:
    """A record's subject: `ENVIRONMENT/NUMBER`, of the proposal or of the Release that it is about."""
    if isinstance(body, ApprovalV1 | WithdrawalV1):
        number = body.proposal
    else:
        number = body.release if isinstance(body, RolloutEventV1) else body.number
    return f"{body.environment}/{number}"


def _refused(state: State, record: ControlRecord, why: str) -> State:
    what = f"record {record.seq} ({record.kind} {record.subject} by {record.actor}): {why}"
    told = (*state.live.refused, what)[-REFUSED_MAX:]
    return msgspec.structs.replace(state, live=msgspec.structs.replace(state.live, refused=told))


def _taken(state: State, body: Body, record: ControlRecord) -> State:
    match body:
        case ProposalV1():
            return _with_proposal(state, Proposed(proposal=body, at_ns=record.at_ns, seq=record.seq))
        case ApprovalV1():
            proposed = state.proposals[body.proposal]
            return _with_proposal(state, msgspec.structs.replace(proposed, approvals=(*proposed.approvals, body)))
        case WithdrawalV1():
            return _with_proposal(state, msgspec.structs.replace(state.proposals[body.proposal], withdrawn_by=body.by))
        case ReleaseV1():
            return _release(state, body, record)
    return _event(state, body, record.at_ns)


def _with_proposal(state: State, proposed: Proposed) -> State:
    return msgspec.structs.replace(state, proposals={**state.proposals, proposed.proposal.number: proposed})


def _release(state: State, body: ReleaseV1, record: ControlRecord) -> State:
    """A Release counts: it is live at once, or its rollout begins."""
    if body.way == "rollback":
        # The rules stay: a rollback needs nobody's approval, so it must not bring back laxer ones.
        rules, lacks = state.live.rules, state.releases[body.restores].lacks
    else:
        proposed = state.proposals[body.proposal]
        rules, lacks = proposed.proposal.rules, body.lacks
        state = _with_proposal(state, msgspec.structs.replace(proposed, release=body.number))
    at_ns = record.at_ns
    made = Released(release=body, at_ns=at_ns, seq=record.seq, state="rollout", lacks=lacks, rules=rules)
    if body.rollout is None:
        return _goes_live(state, made, at_ns)
    active = ActiveRollout(
        release=body.number, snapshot=body.snapshot, workflows=body.workflows, rollout=body.rollout,
        stage=0, stage_ns=at_ns, started_ns=at_ns,
    )  # fmt: skip
    return _with_release(state, made, msgspec.structs.replace(state.live, active=active))


def _goes_live(state: State, made: Released, at_ns: int) -> State:
    """A Release has all callers: what was live is retired, and what was rolled out is aborted."""
    releases = dict(state.releases)
    if state.live.release:
        releases[state.live.release] = _ended(releases[state.live.release], "retired", at_ns)
    if state.live.active is not None and state.live.active.release != made.release.number:
        releases[state.live.active.release] = _ended(releases[state.live.active.release], "aborted", at_ns)
    made = msgspec.structs.replace(made, state="live", since_ns=at_ns)
    now = msgspec.structs.replace(
        state.live, release=made.release.number, snapshot=made.release.snapshot, since_ns=at_ns,
        way=made.release.way, by=made.release.by, lacks=made.lacks, rules=made.rules, active=None,
    )  # fmt: skip
    return _with_release(msgspec.structs.replace(state, releases=releases), made, now)


def _event(state: State, body: RolloutEventV1, at_ns: int) -> State:
    active = state.live.active
    assert active is not None  # else it does not count
    made = state.releases[active.release]
    made = msgspec.structs.replace(made, events=(*made.events, (at_ns, body)))
    if body.event == "completed":
        return _goes_live(state, made, at_ns)
    if body.event == "aborted":
        return _with_release(state, _ended(made, "aborted", at_ns), msgspec.structs.replace(state.live, active=None))
    if body.event == "stage":
        active = msgspec.structs.replace(active, stage=body.stage, stage_ns=at_ns)
    else:
        active = msgspec.structs.replace(active, paused=body.event == "paused")
    return _with_release(state, made, msgspec.structs.replace(state.live, active=active))


def _ended(made: Released, how: str, at_ns: int) -> Released:
    return msgspec.structs.replace(made, state=how, until_ns=at_ns)


def _with_release(state: State, made: Released, now: Live) -> State:
    return msgspec.structs.replace(state, releases={**state.releases, made.release.number: made}, live=now)
