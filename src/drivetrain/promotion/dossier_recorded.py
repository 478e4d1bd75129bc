"""Sections of a dossier that tell what was recorded: Releases, Reports, Calls and incidents."""

from __future__ import annotations

from collections.abc import Sequence

from drivetrain.core.markup import Table
from drivetrain.core.money import usd
from drivetrain.core.releases import EvidenceV1
from drivetrain.lake.costs import CostRow
from drivetrain.promotion.dossier_changes import Change, changes_of
from drivetrain.promotion.dossier_evals import eval_tables, newest_evals
from drivetrain.promotion.dossier_material import NOT_RECORDED, Material, Section, day, words
from drivetrain.promotion.standing import Released

CHANGES_MAX = 200
"""Shown, the newest; the control log has all."""
REPORTS_MAX = 50
"""Listed, the newest."""
ERRORS_MAX = 20
_COST = ("calls#", "cost USD#", "cost per call USD#", "escalated#", "p50 ms#", "p95 ms#", "p99 ms#")


def versions(material: Material) -> Section:
    """What is live, and every Release that touched the workflow."""
    live = material.state.live
    served = (
        f"Release {live.release}, since {day(live.since_ns)}" if live.release else "the project's folder: no Release"
    )
    facts = [
        ("Live", served), ("Snapshot", material.snapshot.hash), ("Workflow's key", material.key),
        ("Drivetrain", material.snapshot.versions.drivetrain),
    ]  # fmt: skip
    if live.lacks:
        facts.append(("Went live without", words(live.lacks)))
    if live.active is not None and material.workflow in live.active.workflows:
        share = live.active.share_ppm / 10_000
        reach = f"to {share:g} % of users" if share else "as a shadow: it answers nobody yet"
        facts.append(("Rolled out now", f"Release {live.active.release}, {reach}"))
    rows = []
    for number, one in sorted(material.state.releases.items()):
        if material.workflow in one.release.workflows:
            rows.append((
                str(number), day(one.at_ns), one.release.way, one.state, one.release.by, _approved(material, one),
                one.release.snapshot[:16], words([each.report or f"none for {each.eval}" for each in _evidence(material,
                one)], "-"), one.release.reason or "-",
            ))  # fmt: skip
    return Section(
        title="Versions and Releases",
        facts=tuple(facts),
        tables=(
            Table(title="Releases that changed it", none="None is recorded.", rows=tuple(rows),
                  head=("number#", "made", "way", "is", "by", "approved by", "snapshot", "evidence", "reason")),
        ),
    )  # fmt: skip


def measured(material: Material) -> Section:
    """The newest eval's figures by group and its gates, and every Report about the workflow."""
    tables = [table for stored in newest_evals(material.reports) for table in eval_tables(material, stored)]
    reports = tuple(
        (one.id, one.report.kind, day(one.report.made_ns), one.report.made_by, one.report.verdict)
        for one in material.reports[:REPORTS_MAX]
    )
    tables.append(Table(title="Reports", head=("report", "kind", "made", "by", "verdict"), rows=reports))
    declared = sorted(one.name for one in material.snapshot.evals.values() if one.workflow == material.workflow)
    gates = tuple((name, gate) for name in declared for gate in material.snapshot.evals[name].gates)
    gated = Table(title="Declared gates", head=("eval", "must hold"), rows=gates, none="No gate is declared.")
    return Section(title="Metrics by group and gates", facts=(("Evals", words(declared)),), tables=(gated, *tables))


def in_use(material: Material) -> Section:
    """Calls of its callers: volume, errors, latency, cost; and which of them have a truth."""
    traffic = material.traffic
    if traffic is None:
        return Section(title="In use", notes=("The ledger could not be read.",))
    answered = sum(row.calls for row in traffic.by_status if row.keys[0] == "answered")
    total = traffic.total.calls
    rate = f"{total - answered:,} of {total:,} ({(total - answered) / total:.2%})" if total else NOT_RECORDED
    labels = tuple(
        (one.metric or "-", f"{one.calls:,}", f"{one.labelled:,}", f"{one.corrected:,}", f"{one.contradictory:,}")
        for one in traffic.labels
    )
    actions = tuple((*one[:2], *(f"{number:,}" for number in one[2:])) for one in traffic.actions)
    return Section(
        title="In use",
        facts=(
            ("Calls opened since", day(traffic.since_ns) if traffic.since_ns else "the ledger's beginning"),
            ("Not answered", rate),
            ("Answered by the fallback alone", f"{traffic.degraded:,}"),
        ),
        tables=(
            Table(title="By team", head=("team", *_COST), rows=(*_costs(traffic.by_team), *_total(traffic.total))),
            Table(title="By variant, over attempts", head=("variant", *_COST), rows=_costs(traffic.by_variant)),
            Table(title="How they ended", head=("status", *_COST), rows=_costs(traffic.by_status)),
            Table(title="Errors", head=("code", "calls#"), none="None is recorded.",
                  rows=tuple((code, f"{number:,}") for code, number in traffic.errors[:ERRORS_MAX])),
            Table(title="Decisions", head=("policy's version", "action", "decisions#", "explored#", "failed#"),
                  rows=actions),
            Table(title="Outcomes", rows=labels,
                  head=("metric", "answered calls#", "with a truth#", "corrected#", "contradictory#")),
            Table(title="Calls that nobody waited for", head=("door", *_COST), rows=_costs(traffic.others),
                  none="None is recorded."),
        ),
    )  # fmt: skip


def changes(material: Material) -> Section:
    """Records of the control log that touched it."""
    found = changes_of(material)
    left = len(found) - CHANGES_MAX
    return Section(
        title="Changes",
        tables=(
            Table(head=("record#", "when", "kind", "subject", "by", "what and why"), none="None is recorded.",
                  rows=tuple(_row(one) for one in found[-CHANGES_MAX:])),
        ),
        notes=(f"{left} earlier ones are in the control log.",) if left > 0 else (),
    )  # fmt: skip


def incidents(material: Material) -> Section:
    """Failed gates, changed providers, overrides, rollbacks, aborted rollouts, and records that do not count."""
    rows = []
    for stored in material.reports:
        report = stored.report
        if report.kind == "eval" and report.facts.get("passed") is False and report.facts.get("gates"):
            rows.append((report.made_ns, "gates not passed", f"Report {stored.id}", report.verdict))
        if report.kind == "probe" and report.facts.get("changed") is True:
            rows.append((report.made_ns, "a provider changed", f"Report {stored.id}", report.verdict))
    for number, one in material.state.releases.items():
        if material.workflow not in one.release.workflows:
            continue
        name = f"Release {number}"
        if one.release.way == "override":
            rows.append((one.at_ns, "override", name, f"without {words(one.release.lacks, 'nothing')}"))
        if one.release.way == "rollback":
            rows.append((one.at_ns, "rollback", name, one.release.reason or NOT_RECORDED))
        for at_ns, event in one.events:
            if event.event == "aborted":
                why = event.verdict or event.guard or NOT_RECORDED
                rows.append((at_ns, "rollout aborted", name, f"by {event.by}: {why}"))
    return Section(
        title="Incidents",
        tables=(
            Table(head=("when", "what", "where", "told as"), none="None is recorded.",
                  rows=tuple((day(at_ns), *rest) for at_ns, *rest in sorted(rows))),
        ),
        notes=tuple(f"Not counted: {one}" for one in material.state.live.refused),
    )  # fmt: skip


def _evidence(material: Material, one: Released) -> list[EvidenceV1]:
    return [each for each in one.release.evidence if each.workflow == material.workflow]


def _approved(material: Material, one: Released) -> str:
    proposed = material.state.proposals.get(one.release.proposal)
    return words([each.by for each in proposed.approvals], "nobody") if proposed is not None else "-"


def _costs(rows: Sequence[CostRow]) -> tuple[tuple[str, ...], ...]:
    return tuple(_cost(row.keys[0] or "-", row) for row in sorted(rows, key=lambda row: row.keys))


def _total(row: CostRow) -> tuple[tuple[str, ...], ...]:
    return (_cost("total", row),) if row.calls else ()


def _cost(name: str, row: CostRow) -> tuple[str, ...]:
    each = usd(row.cost_nano_usd // row.calls) if row.calls else "-"
    latencies = ("-" if ms is None else f"{ms:,.1f}" for ms in (row.p50_ms, row.p95_ms, row.p99_ms))
    return (name, f"{row.calls:,}", usd(row.cost_nano_usd), each, f"{row.escalated_share or 0.0:.1%}", *latencies)


def _row(one: Change) -> tuple[str, ...]:
    return str(one.seq), day(one.at_ns), one.kind, one.subject, one.actor or NOT_RECORDED, one.what or NOT_RECORDED
