"""The world of `explain` over recorded Calls: Cases by the Snapshots that were live, Decisions by their policies.

Owns which Snapshots answer the same, and what of a Call is opened when. Snapshots, scorers and payloads are given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from drivetrain.core.calls import Call
from drivetrain.core.declarations import Workflow
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.policies import Action, Case
from drivetrain.evals.explain import Moment, State, Unanswered
from drivetrain.evals.past import Lost, Past, PastReader, cluster_of
from drivetrain.evals.redeciding import FAILS, action_of, as_seen, decided, redecide_past
from drivetrain.evals.rerun import Answered, Route, Scorers
from drivetrain.evals.workflow_key import route_key
from drivetrain.execution.replay import open_payloads
from drivetrain.execution.verdicts import Recorded
from drivetrain.policies.compile import CompiledPolicy, as_policy, compile_policy
from drivetrain.policies.engine import EngineMissing
from drivetrain.ports.journal import Vault
from drivetrain.project.snapshot import Snapshot

KEPT_CALLS = 8
"""Calls whose exchanges are remembered: all combinations of one are computed together."""
NO_POLICY = "the Snapshot of a policy's version is not stored any more"
NO_SNAPSHOT = "its Snapshot is not stored any more"
NO_PAYLOADS = "its prompt and answers were not kept, so no other models can answer it"

Snapshots = Callable[[str], Snapshot]
"""Short hash -> the Snapshot. Raises: DrivetrainError."""


class Replayed:
    """Implements `explain.World` over Calls of one workflow."""

    def __init__(self, workflow: Workflow[Any, Any], snapshots: Snapshots, vault: Vault, scorers: Scorers) -> None:
        """workflow: as it is declared now. scorers: loads a trained model."""
        self._workflow = workflow.name
        self._load = snapshots
        self._vault = vault
        self._scorers = scorers
        self._snapshots: dict[str, Snapshot] = {}
        self._key_of: dict[str, str] = {}
        """Short hash -> key of its route."""
        self._lead: dict[str, str] = {}
        """Key of a route -> short hash of the first Snapshot that has it."""
        self._policies: dict[str, CompiledPolicy] = {}
        self._routes: dict[str, Route] = {}
        self._recent: OrderedDict[str, tuple[Recorded, Answered]] = OrderedDict()
        self._pasts: OrderedDict[str, Past] = OrderedDict()
        self._reader = PastReader(vault, workflow, self.whole)

    def moment(self, call: Call) -> Moment:
        """A Call as one of a period; it must have a Decision. What was kept of it is opened when a combination asks."""
        decision = call.decision
        assert decision is not None
        return Moment(
            call_id=call.call_id,
            state=State(self._key(call.snapshot), decision.version),
            action=Action(decision.action, decision.reason),
            cluster=cluster_of(call),
            subject=call,
        )

    def whole(self, call: Call) -> Case:
        """The whole Case from a Call's payloads. Raises: DrivetrainError."""
        try:
            return self._rerun(call)[1].case
        except Lost as why:
            raise DrivetrainError(str(why)) from None

    # explain.World

    def acted(self, moment: Moment) -> Action:
        past = self._past(moment.subject)
        return Action(past.decision.action, past.decision.reason, past.values)

    def case(self, moment: Moment, model: str) -> Case:
        """By its own models what the Decision kept, or its payloads; by others what a replay gives."""
        if model == moment.state.model:
            return self._past(moment.subject).case
        recorded, answered = self._rerun(moment.subject)
        return self._route(model).other(recorded, answered.exchanges)

    def decide(self, moment: Moment, case: Case, policy: str) -> Action:
        compiled = self._policies.get(policy)
        if compiled is None:
            raise Lost(NO_POLICY)
        past = self._pasts.get(moment.call_id)
        if past is not None and case is past.case:
            verdict = redecide_past(past, moment.subject, compiled, self._reader).verdict
        else:
            verdict = decided(compiled, as_seen(compiled, case), moment.call_id)
        if verdict.action == FAILS:
            raise Unanswered
        return action_of(verdict)

    # What is opened once and kept a while: all combinations of one Call are computed together.

    def _past(self, call: Call) -> Past:
        known = self._pasts.get(call.call_id)
        if known is None:
            known = self._pasts[call.call_id] = self._reader.open(call)
            _shorten(self._pasts)
        return known

    def _rerun(self, call: Call) -> tuple[Recorded, Answered]:
        """Raises: Lost where it cannot be replayed."""
        known = self._recent.get(call.call_id)
        if known is None:
            try:
                recorded = open_payloads(call, self._vault)
            except DrivetrainError:
                raise Lost(NO_PAYLOADS) from None
            known = self._recent[call.call_id] = (recorded, self._route(self._key(call.snapshot)).own(recorded))
            _shorten(self._recent)
        return known

    def _route(self, key: str) -> Route:
        """Raises: Lost where no Snapshot with this key is stored, or it cannot be used any more."""
        if key not in self._lead:
            raise Lost(NO_SNAPSHOT)
        if key not in self._routes:
            snapshot = self._snapshots[self._lead[key]]
            try:
                self._routes[key] = Route(snapshot, self._workflow, self._scorers)
            except DrivetrainError as error:
                raise Lost(f"Snapshot {snapshot.short_hash} cannot be used any more: {error.what}") from None
        return self._routes[key]

    def _key(self, short_hash: str) -> str:
        """A Snapshot's route, or what stands for one that is not stored: itself."""
        if short_hash not in self._key_of:
            self._key_of[short_hash] = self._learn(short_hash)
        return self._key_of[short_hash]

    def _learn(self, short_hash: str) -> str:
        try:
            snapshot = self._load(short_hash)
            declared = snapshot.workflows[self._workflow]
            key = route_key(snapshot, self._workflow)
            if declared.policy is not None:
                policy = as_policy(declared.policy, self._workflow)
                compiled = compile_policy(policy, snapshot.files, clock_ns=lambda: 0)
                self._policies.setdefault(compiled.version, compiled)
        except EngineMissing:
            raise
        except (DrivetrainError, KeyError):
            return f"missing:{short_hash}"
        self._snapshots[short_hash] = snapshot
        self._lead.setdefault(key, short_hash)
        return key


def _shorten(kept: OrderedDict[str, Any]) -> None:
    while len(kept) > KEPT_CALLS:
        kept.popitem(last=False)
