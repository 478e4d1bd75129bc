"""Whether Reports prove what a proposal says, and whether a proposal says what its Snapshot is.

The fold sees records only; here the Snapshots and the Reports themselves are looked at. Called before a proposal, an
approval and a Release are written, and by whoever is about to serve a Release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import EvidenceV1, ProposalV1, RulesV1
from drivetrain.core.reports import ReportV1
from drivetrain.project.snapshot import Snapshot
from drivetrain.promotion.plan import Proof, changed_keys, changes_between, evidence_needed
from drivetrain.promotion.rights import lacking_evidence
from drivetrain.registry.reports import Stored

KIND = "eval"

Newest = Callable[[str], int]
"""A Dataset's name -> its newest number; 0 where there is none."""


def proof_in(stored: Iterable[Stored], evals: Snapshot, newest: Newest) -> Proof:
    """What finds the newest Report that a gate was passed. stored: Reports, newest first; evals: who declares them."""
    reports = [one for one in stored if one.report.kind == KIND]

    def proof(needed: EvidenceV1) -> str:
        for one in reports:
            if not why_not(one.report, needed, evals, newest):
                return one.id
        return ""

    return proof


def why_not(report: ReportV1, needed: EvidenceV1, snapshot: Snapshot, newest: Newest | None = None) -> str:
    """Why a Report does not prove that a gate was passed; empty where it does.

    newest: None where a Dataset that grew since makes no difference, as when a Release is served.
    """
    facts = report.facts
    if report.kind != KIND:
        return f"it is a Report of kind {report.kind}"
    said = {"eval": needed.eval, "workflow": needed.workflow}
    if any(facts.get(name) != value for name, value in said.items()):
        return "it is of another eval or workflow"
    if facts.get("workflow_key") != needed.key:
        return "the workflow it is of answers in another way"
    if facts.get("eval_key") != needed.eval_key:
        return "the eval was edited since"
    if facts.get("passed") is not True:
        return "its gates were not passed"
    gates = facts.get("gates")
    if isinstance(gates, bool) or not isinstance(gates, int) or gates < 1:
        return "it had no gates"
    return _why_not_newest(str(facts.get("dataset", "")), needed, snapshot, newest)


def untold(proposal: ProposalV1, *, before: Snapshot | None, after: Snapshot, in_force: RulesV1) -> tuple[str, ...]:
    """Where a proposal says less than its Snapshot does, in words: somebody wrote it who did not plan it.

    No override releases it: what it says is what people approve, and its rules are the ones that would hold.
    """
    found = []
    if proposal.snapshot != after.hash or proposal.base_snapshot != (before.hash if before is not None else ""):
        found.append("the proposal is of other Snapshots")
    if proposal.rules != after.rules:
        found.append("the proposal's rules are not its Snapshot's")
    ruled = in_force if before is not None else RulesV1()
    changes = changes_between(before, after, ruled)
    told = {(one.workflow, one.aspect) for one in proposal.changes}
    for one in dict.fromkeys((one.workflow, one.aspect) for one in changes):
        if one not in told:
            found.append(f"the proposal does not tell that {one[1]} of {one[0] or 'the project'} changes")
    if proposal.keys != changed_keys(before, after, changes):
        found.append("the proposal's workflows are not the ones that change")
    return tuple(found)


def missing(
    evidence: Sequence[EvidenceV1],
    *,
    before: Snapshot | None,
    after: Snapshot,
    in_force: RulesV1,
    report: Callable[[str], ReportV1],
    newest: Newest | None = None,
) -> tuple[str, ...]:
    """Which gates are not proved to be passed, and why, in words; empty where all are.

    evidence: of the proposal and of its Release. before: what was live when it was made; None: nothing. in_force: the
    rules that held then. report: the Report of an id; may raise DrivetrainError.
    """
    found: list[str] = []
    if not in_force.gates:
        return ()
    given = {(one.eval, one.workflow, one.key, one.eval_key): one for one in evidence if one.report}
    for needed in evidence_needed(before, after):
        one = given.get((needed.eval, needed.workflow, needed.key, needed.eval_key))
        if one is None:
            found += lacking_evidence(in_force, [needed])
            continue
        try:
            why = why_not(report(one.report), needed, after, newest)
        except DrivetrainError as error:
            why = error.what
        if why:
            found.append(f"eval {needed.eval} of {needed.workflow}: Report {one.report} does not prove it: {why}")
    return tuple(found)


def _why_not_newest(said: str, needed: EvidenceV1, snapshot: Snapshot, newest: Newest | None) -> str:
    declared = snapshot.evals.get(needed.eval)
    if declared is None or newest is None:
        return ""
    name, _, number = said.rpartition("@")
    wanted, at, pinned = declared.dataset.partition("@")
    if name != wanted:
        return f"it is over `{said}`"
    expected = pinned if at else str(newest(name))
    return "" if number == expected else f"it is over {said}, and {name}@{expected} is what counts"
