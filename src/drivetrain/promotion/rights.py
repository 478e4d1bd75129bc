"""Who may do what, and what a proposal lacks still: the rules of an environment, applied.

Pure. Called by the fold, which decides whether a record counts, and by the plan, which tells what will be asked.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from drivetrain.core.releases import ApprovalRuleV1, ChangeV1, EvidenceV1, PersonV1, ProposalV1, RulesV1


def person(rules: RulesV1, name: str) -> PersonV1 | None:
    """The declared person of a name."""
    return next((one for one in rules.people if one.name == name), None)


def stranger(rules: RulesV1, name: str) -> str:
    """Why somebody may change nothing here; empty where they may. Where no people are declared, everybody may."""
    if not name:
        return "it does not say who did it"
    if not rules.people or person(rules, name) is not None:
        return ""
    return f"`{name}` is not among `[people]`"


def may_override(rules: RulesV1, name: str) -> bool:
    """Whether somebody has one of the roles that may release what lacks something."""
    found = person(rules, name)
    return found is not None and bool(set(found.roles) & set(rules.override_roles))


def holding(rules: RulesV1, changes: Sequence[ChangeV1]) -> tuple[ApprovalRuleV1, ...]:
    """The rules for approvals that these changes fall under."""
    return tuple(rule for rule in rules.approvals if any(_falls_under(rule, one) for one in changes))


def lacking_approvals(rules: RulesV1, changes: Sequence[ChangeV1], by: Collection[str]) -> tuple[str, ...]:
    """What approvals are lacking where the people `by` gave theirs, in words."""
    lacks = []
    for rule in holding(rules, changes):
        given = sum(1 for name in set(by) if _has_role(rules, name, rule.roles))
        if given < rule.number:
            who = " or ".join(rule.roles) if rule.roles else "anybody else"
            what = "any change" if rule.aspect == "any" else f"changes of {rule.aspect}"
            where = f" of {', '.join(rule.workflows)}" if rule.workflows else ""
            lacks.append(f"{what}{where}: {given} of {rule.number} approvals by {who}")
    return tuple(lacks)


def lacking_evidence(rules: RulesV1, needed: Sequence[EvidenceV1], given: Sequence[EvidenceV1] = ()) -> tuple[str, ...]:
    """Which of the gates that a change must pass have no Report, in words."""
    if not rules.gates:
        return ()
    proved = {_gate(one) for one in (*needed, *given) if one.report}
    return tuple(
        f"eval {one.eval} of {one.workflow}: no Report that it passed" for one in needed if _gate(one) not in proved
    )


def lacking(
    rules: RulesV1, proposal: ProposalV1, approved_by: Collection[str], evidence: Sequence[EvidenceV1] = ()
) -> tuple[str, ...]:
    """All that a proposal lacks before it may be released; empty where it lacks nothing."""
    return (
        *lacking_evidence(rules, proposal.evidence, evidence),
        *lacking_approvals(rules, proposal.changes, approved_by),
    )


def _gate(one: EvidenceV1) -> tuple[str, str, str, str]:
    return one.eval, one.workflow, one.key, one.eval_key


def _falls_under(rule: ApprovalRuleV1, change: ChangeV1) -> bool:
    return rule.aspect in ("any", change.aspect) and (not rule.workflows or change.workflow in rule.workflows)


def _has_role(rules: RulesV1, name: str, roles: Collection[str]) -> bool:
    if not roles:
        return True
    found = person(rules, name)
    return found is not None and bool(set(found.roles) & set(roles))
