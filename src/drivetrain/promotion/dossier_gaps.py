"""What a dossier lacks, stated plainly: each gap is one sentence for whom it concerns."""

from __future__ import annotations

from collections.abc import Iterator

from drivetrain.core.declarations import Variant
from drivetrain.core.models import is_trained
from drivetrain.promotion.dossier_material import Material
from drivetrain.registry.reports import Stored

LABELLED_MIN = 0.01
"""Of answered Calls: below that, what its callers got is hardly known."""


def gaps_of(material: Material) -> tuple[str, ...]:
    """Every gap that is looked for, in the order of the dossier."""
    return (*_declared(material), *_releases(material), *_evidence(material), *_use(material), *_log(material))


def _declared(material: Material) -> Iterator[str]:
    declared = material.declared
    if not declared.owner:
        yield "Nobody is declared to answer for it: it has no owner."
    if not any(isinstance(one, Variant) for one in declared.route):
        yield "Its route has no model."
    if declared.budget is None:
        yield "No budget is declared for it; only limits of the project, its team or its use case hold."
    if declared.slo is None:
        yield "It promises its callers neither a latency nor an availability."
    if (declared.retention or material.snapshot.ledger.retention) == "none":
        yield "No request and no answer is kept, so its Calls cannot be replayed, compared or read again."
    for reference, one in sorted(material.versions.items()):
        if not one.dataset:
            yield f"What {reference} ({one.artifact}) was trained on is not recorded."
        if not one.licence:
            yield f"The licence of {reference} ({one.artifact}) is not declared."
    trained = {one.model for one in declared.route if isinstance(one, Variant) and is_trained(one.model)}
    for reference in sorted(trained - material.versions.keys()):
        yield f"{reference} is not in the registry: nothing is recorded of it."
    for retirement in material.retirements:
        if retirement.warning and material.workflow in retirement.workflows:
            yield retirement.warning


def _releases(material: Material) -> Iterator[str]:
    live = material.state.live
    if not live.release:
        yield "It was never released: what the project's folder holds is served, and nobody had to approve it."
    if live.lacks:
        yield f"What is live went live without {', '.join(live.lacks)}."
    rules = live.rules if live.release else material.snapshot.rules
    if not rules.approvals:
        yield "No approval is declared: one person alone can change it."
    if not rules.gates:
        yield "Releases need no passed evals."


def _evidence(material: Material) -> Iterator[str]:
    evals = sorted(one.name for one in material.snapshot.evals.values() if one.workflow == material.workflow)
    if not evals:
        yield "No eval is declared for it, so nothing is measured before a change."
    for name in evals:
        if not material.snapshot.evals[name].gates:
            yield f"The eval {name} has no gate, so it stops no change."
        run = next((one for one in material.reports if _is_of(one, name)), None)
        if run is None:
            yield f"The eval {name} was never run."
        elif run.report.facts.get("workflow_key") != material.key:
            yield f"The newest run of the eval {name} is of another version of the workflow."
        elif material.snapshot.evals[name].gates and run.report.facts.get("passed") is not True:
            yield f"The newest run of the eval {name} did not pass its gates."


def _use(material: Material) -> Iterator[str]:
    traffic = material.traffic
    if traffic is None:
        yield "The ledger could not be read: how it is used is not told here."
        return
    if not traffic.total.calls:
        yield "No Call of it is recorded."
        return
    labelled = max((one.labelled for one in traffic.labels), default=0)
    answered = max((one.calls for one in traffic.labels), default=0)
    if not labelled:
        yield "No Outcome is recorded: whether its answers were right in use is not known."
    elif labelled < LABELLED_MIN * answered:
        yield f"Only {labelled:,} of {answered:,} answered Calls have an Outcome."


def _log(material: Material) -> Iterator[str]:
    if not material.records:
        yield "Its control log is empty: no change is recorded."
    for finding in material.log_findings:
        yield f"The control log is not whole: {finding}"
    if material.state.live.refused:
        yield f"{len(material.state.live.refused)} records of Releases do not count; they are told under Incidents."
    yield from material.unreadable


def _is_of(stored: Stored, name: str) -> bool:
    return stored.report.kind == "eval" and stored.report.facts.get("eval") == name
