"""What the tests of Releases share: a control log in memory, plans without a project, and people."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from drivetrain.core.releases import (
    EVAL_RAN,
    ApprovalRuleV1,
    ApprovalV1,
    ChangeV1,
    EvalRanV1,
    EvidenceV1,
    Live,
    PersonV1,
    ProposalV1,
    ReleaseV1,
    RolloutEventV1,
    RulesV1,
    WithdrawalV1,
)
from drivetrain.ports.control import ControlRecord, Verification
from drivetrain.promotion import approving, releasing
from drivetrain.promotion.counting import Body, kind_of
from drivetrain.promotion.plan import Plan
from drivetrain.promotion.recorded import subject_of_run
from drivetrain.promotion.signing import PersonKey
from drivetrain.promotion.standing import State
from drivetrain.promotion.state import read, subject_of
from drivetrain.promotion.writing import Desk

ENV = "prod"
NOBODY = RulesV1()
"""As a project declares them that declares none."""
TEAM = RulesV1(
    people=(
        PersonV1(name="ann", roles=("lead",)),
        PersonV1(name="bob", roles=("risk",)),
        PersonV1(name="cid", roles=("risk",)),
        PersonV1(name="dee", roles=("oncall",)),
    ),
    approvals=(ApprovalRuleV1(aspect="policy", number=2, roles=("risk",)),),
    override_roles=("oncall",),
)
POLICY = (ChangeV1(workflow="refund", aspect="policy", what="policy refund changed"),)
GATE = EvidenceV1(eval="refund-golden", workflow="refund", key="a" * 16, eval_key="b" * 16)
PROVED = msgspec.structs.replace(GATE, report="c" * 16)
"""Of the run that the log of each World begins with."""
RAN = EvalRanV1(report=PROVED.report, eval=GATE.eval, workflow=GATE.workflow, passed=True, rows="d" * 64)


class MemoryLog:
    """An OrderedControlLog that anybody may write to; its clock counts records."""

    def __init__(self) -> None:
        self.kept: list[ControlRecord] = []

    def append(self, *, kind: str, actor: str, subject: str, body: Mapping[str, Any]) -> ControlRecord:
        number = len(self.kept) + 1
        record = ControlRecord(
            seq=number, at_ns=number * 1_000, kind=kind, actor=actor, subject=subject,
            body=msgspec.json.encode(body, order="deterministic").decode(), prev_hash="", hash=str(number),
        )  # fmt: skip
        self.kept.append(record)
        return record

    def append_after(
        self, seq: int, *, kind: str, actor: str, subject: str, body: Mapping[str, Any]
    ) -> ControlRecord | None:
        return self.append(kind=kind, actor=actor, subject=subject, body=body) if seq == len(self.kept) else None

    def records(self, after_seq: int = 0) -> Iterator[ControlRecord]:
        return iter(self.kept[after_seq:])

    def verify(self) -> Verification:
        return Verification(records=len(self.kept), head="", findings=())


class World:
    """One environment, its log, and those who act in it."""

    def __init__(self, rules: RulesV1 = NOBODY, keys: Mapping[str, PersonKey] | None = None) -> None:
        self.log = MemoryLog()
        self.rules = rules
        self.keys = keys or {}
        self._numbers = itertools.count(1)
        self.log.append(
            kind=EVAL_RAN, actor="ann", subject=subject_of_run(RAN.report), body=msgspec.to_builtins(RAN)
        )  # fmt: skip

    @property
    def state(self) -> State:
        return read(self.log.kept, ENV)

    @property
    def live(self) -> Live:
        return self.state.live

    def desk(self, name: str) -> Desk:
        return Desk(log=self.log, environment=ENV, user=name, key=self.keys.get(name))

    def plan(
        self,
        *,
        changes: tuple[ChangeV1, ...] = POLICY,
        evidence: tuple[EvidenceV1, ...] = (),
        rules: RulesV1 | None = None,
    ) -> Plan:
        """Of a Snapshot that nobody has seen before."""
        live = self.live
        return Plan(
            snapshot=f"{next(self._numbers):064x}", base=live.release, base_snapshot=live.snapshot, changes=changes,
            keys={one.workflow: "a" * 16 for one in changes if one.workflow}, evidence=evidence,
            rules=self.rules if rules is None else rules, prompts={}, lacks=(),
        )  # fmt: skip

    def propose(self, by: str = "ann", **plan: Any) -> ProposalV1:
        return approving.propose(self.desk(by), self.plan(**plan), "because").body

    def approve(self, number: int, *people: str) -> None:
        for name in people:
            approving.approve(self.desk(name), number)

    def promote(self, number: int, by: str = "ann", **more: Any) -> ReleaseV1:
        return releasing.promote(self.desk(by), number, **more).body

    def release(self, by: str = "ann", approvers: tuple[str, ...] = ("bob", "cid"), **plan: Any) -> ReleaseV1:
        """One that goes by the rules from beginning to end."""
        proposal = self.propose(by, **plan)
        self.approve(proposal.number, *approvers)
        return self.promote(proposal.number, by)

    def force(self, body: Body, *, actor: str | None = None, subject: str | None = None) -> None:
        """Append it as it is, past every command."""
        self.log.append(
            kind=kind_of(body), actor=body.by if actor is None else actor,
            subject=subject_of(body) if subject is None else subject, body=msgspec.to_builtins(body),
        )  # fmt: skip

    def refused(self) -> str:
        """The last record that does not count, and why."""
        return self.live.refused[-1] if self.live.refused else ""


def approval_of(proposal: ProposalV1, by: str, **more: Any) -> ApprovalV1:
    return ApprovalV1(environment=ENV, proposal=proposal.number, proposal_hash=more.pop("hash", proposal.hash), by=by)


def withdrawal_of(proposal: ProposalV1, by: str) -> WithdrawalV1:
    return WithdrawalV1(environment=ENV, proposal=proposal.number, proposal_hash=proposal.hash, by=by)


def release_of(state: State, proposal: ProposalV1, by: str, **more: Any) -> ReleaseV1:
    """The Release of a proposal as it would have to be written now."""
    made = ReleaseV1(
        number=state.next_release, environment=ENV, way="promote", snapshot=proposal.snapshot,
        previous=state.live.release, by=by, proposal=proposal.number, proposal_hash=proposal.hash,
        workflows=tuple(sorted(proposal.keys)),
    )  # fmt: skip
    return msgspec.structs.replace(made, **more)


def event_of(release: int, event: str, stage: int = 0, by: str = "guards") -> RolloutEventV1:
    return RolloutEventV1(environment=ENV, release=release, event=event, stage=stage, by=by)
