"""Whether Reports prove what a proposal says, and whether a proposal says what its Snapshot is.

The fold sees records only; here the Snapshots and the Reports themselves are looked at. Called before a proposal, an
approval and a Release are written, and by whoever is about to serve a Release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.evals import Eval
from drivetrain.core.releases import EvidenceV1, ProposalV1, ReleaseV1, RulesV1
from drivetrain.core.reports import ReportV1
from drivetrain.evals.gate_text import needs_baseline
from drivetrain.evals.workflow_key import workflow_key
from drivetrain.project.snapshot import Snapshot
from drivetrain.promotion.plan import Proof, changed_keys, changes_between, evidence_needed
from drivetrain.promotion.recorded import Runs, unrecorded
from drivetrain.promotion.rights import lacking_evidence
from drivetrain.promotion.rollouts import declared_rollouts, rollout_of
from drivetrain.registry.reports import Stored
from drivetrain.version import VERSION

KIND = "eval"

Newest = Callable[[str], Sequence[int]]
"""A Dataset's name -> its newest number, then older ones with the very same rows and schema; empty where there is
none."""

Doubted = Callable[[EvidenceV1, ReportV1], str]
"""A gate with its Report's id, and that Report -> why the records do not bear it out; empty where they do."""


def undoubted(evidence: EvidenceV1, report: ReportV1) -> str:
    """Nothing is doubted."""
    return ""


def proof_in(stored: Iterable[Stored], before: Snapshot | None, after: Snapshot, newest: Newest, runs: Runs) -> Proof:
    """What finds the newest Report that a gate was passed. stored: Reports, newest first; before: what is live; runs:
    of the control log."""
    reports = [one for one in stored if one.report.kind == KIND]

    def proof(needed: EvidenceV1) -> str:
        for one in reports:
            if unrecorded(runs, one.id, needed):
                continue
            if not why_not(one.report, needed, before=before, after=after, newest=newest):
                return one.id
        return ""

    return proof


def why_not(
    report: ReportV1,
    needed: EvidenceV1,
    *,
    before: Snapshot | None,
    after: Snapshot,
    newest: Newest | None = None,
) -> str:
    """Why a Report does not prove that a gate was passed; empty where it does.

    before: what is live; None: nothing. newest: None where a Dataset that grew since makes no difference, as when a
    Release is served.
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
    declared = after.evals.get(needed.eval)
    if declared is None:
        return "the eval is not declared"
    return _why_not_compared(report, declared, before) or _why_not_newest(report, declared, newest)


def unfit(
    stored: Iterable[Stored],
    needed: Iterable[EvidenceV1],
    *,
    before: Snapshot | None,
    after: Snapshot,
    newest: Newest,
    runs: Runs,
) -> tuple[str, ...]:
    """Why the newest Report of each gate does not prove it, in words; none of gates without a Report, or with proof.

    stored: Reports, newest first. before: what is live; None: nothing. runs: of the control log.
    """
    reports = list(stored)
    found = []
    for gate in needed:
        own = (one for one in reports if (one.report.facts.get("eval"), one.report.facts.get("workflow")) == _of(gate))
        one = next(own, None)
        if one is None:
            continue
        why = why_not(one.report, gate, before=before, after=after, newest=newest) or unrecorded(runs, one.id, gate)
        if why:
            found.append(f"the newest Report of eval {gate.eval}, {one.id}, does not prove it: {why}")
    return tuple(found)


def untold(proposal: ProposalV1, *, before: Snapshot | None, after: Snapshot, in_force: RulesV1) -> tuple[str, ...]:
    """Where a proposal says less than its Snapshot does, in words: somebody wrote it who did not plan it.

    No override releases it: what it says is what people approve, and its rules are the ones that would hold.
    """
    found = []
    if proposal.snapshot != after.hash or proposal.base_snapshot != (before.hash if before is not None else ""):
        found.append("the proposal is of other Snapshots")
    if proposal.environment != after.environment:
        found.append(f"its Snapshot is of the environment `{after.environment}`")
    if proposal.rules != after.rules:
        found.append("the proposal's rules are not its Snapshot's")
    ruled = in_force if before is not None else RulesV1()
    changes = changes_between(before, after, ruled)
    told = {(one.workflow, one.aspect) for one in proposal.changes}
    for one in dict.fromkeys((one.workflow, one.aspect) for one in changes):
        if one not in told:
            found.append(f"the proposal does not tell that {one[1]} of {one[0] or 'the project'} changes")
    if not found and after.versions.drivetrain == VERSION and set(proposal.changes) != set(changes):
        # Another version may say the same in other words.
        wrong = min({*proposal.changes} ^ {*changes}, key=lambda one: (one.workflow, one.aspect, one.what))
        found.append(
            f"the proposal does not say what changes as it is: {wrong.aspect} of {wrong.workflow or 'the project'}"
        )
    if proposal.keys != changed_keys(before, after, changes):
        found.append("the proposal's workflows are not the ones that change")
    return tuple(found)


def hurried(release: ReleaseV1, proposal: ProposalV1, *, before: Snapshot | None, after: Snapshot) -> tuple[str, ...]:
    """Where a Release reaches its callers with less care than its workflows declare, and does not say why, in words."""
    declared = declared_rollouts(proposal, before, after)
    if not declared:
        return ()
    if release.rollout is None:
        return (
            () if release.reason.strip() else ("it skips the stages that its workflows declare, and does not say why",)
        )
    asked = rollout_of(
        declared, environment=release.environment, release=release.number, proposal_hash=release.proposal_hash
    )
    return () if release.rollout == asked else ("its stages or guards are not the ones that its workflows declare",)


def missing(
    evidence: Sequence[EvidenceV1],
    *,
    before: Snapshot | None,
    after: Snapshot,
    in_force: RulesV1,
    report: Callable[[str], ReportV1],
    newest: Newest | None = None,
    doubted: Doubted = undoubted,
) -> tuple[str, ...]:
    """Which gates are not proved to be passed, and why, in words; empty where all are.

    evidence: of the proposal and of its Release. before: what was live when it was made; None: nothing. in_force: the
    rules that held then. report: the Report of an id; may raise DrivetrainError, as `doubted` may.
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
            cited = report(one.report)
            why = why_not(cited, needed, before=before, after=after, newest=newest) or doubted(one, cited)
        except DrivetrainError as error:
            why = error.what
        if why:
            found.append(f"eval {needed.eval} of {needed.workflow}: Report {one.report} does not prove it: {why}")
    return tuple(found)


def _of(gate: EvidenceV1) -> tuple[str, str]:
    return gate.eval, gate.workflow


def _why_not_compared(report: ReportV1, declared: Eval, before: Snapshot | None) -> str:
    """A gate that compares must have compared with what is live: with something worse it would pass anything."""
    if before is None or declared.workflow not in before.workflows or not any(map(needs_baseline, declared.gates)):
        return ""
    against = report.body.get("against")
    compared = against.get("workflow_key") if isinstance(against, dict) else None
    return "" if compared == workflow_key(before, declared.workflow) else "it was not compared with what is live"


def _why_not_newest(report: ReportV1, declared: Eval, newest: Newest | None) -> str:
    """Each Dataset without a number must be the newest, or the same rows under an older number; suites are told by the
    Report's inputs."""
    if newest is None:
        return ""
    said = {f"dataset:{report.facts.get('dataset', '')}", *report.inputs}
    for dataset in (declared.dataset, *declared.suites.values()):
        fit = [dataset] if "@" in dataset else [f"{dataset}@{number}" for number in newest(dataset) or (0,)]
        if not any(f"dataset:{one}" in said for one in fit):
            return f"it is not over {fit[0]}"
    return ""
