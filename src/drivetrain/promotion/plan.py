"""The plan of a change: what differs from what is live, which gates must be passed, and who must approve it.

Pure: Snapshots and Reports come in. A proposal is a plan that somebody stands for, and is checked by planning anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import ChangeV1, EvidenceV1, RulesV1
from drivetrain.evals.eval_key import eval_key
from drivetrain.evals.workflow_key import workflow_key
from drivetrain.project.snapshot import Snapshot
from drivetrain.promotion.differences import change, eval_changes, gates_text, prompt_diffs, workflow_changes
from drivetrain.promotion.rights import lacking_approvals, lacking_evidence
from drivetrain.promotion.settings_differences import file_changes, rules_changes, settings_changes

CHANGES_MAX = 2_000
"""A proposal is kept in one record of the control log, changes and all; a greater change is a new project."""

Proof = Callable[[EvidenceV1], str]
"""A gate -> id of a Report that it was passed; empty where there is none."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What making a Snapshot live would change."""

    snapshot: str
    base: int
    """The Release that it was compared with; 0: nothing was released."""
    base_snapshot: str
    changes: tuple[ChangeV1, ...]
    keys: dict[str, str]
    """Each workflow that changes -> its key; what left has an empty one."""
    evidence: tuple[EvidenceV1, ...]
    rules: RulesV1
    """As the Snapshot declares them."""
    prompts: Mapping[str, str]
    """Template's path -> unified diff."""
    lacks: tuple[str, ...]
    """What it needs still before it can be released, in words."""


def plan_of(before: Snapshot | None, after: Snapshot, *, release: int, in_force: RulesV1 | None, proof: Proof) -> Plan:
    """What differs between what is live and `after`.

    before: what is live; None where nothing is. in_force: the rules that hold now; None: those of `after`.
    Raises: DrivetrainError where there is more than `CHANGES_MAX`, or where a policy cannot be compiled.
    """
    rules = after.rules if in_force is None else in_force
    changes = changes_between(before, after, RulesV1() if in_force is None else in_force)
    if len(changes) > CHANGES_MAX:
        raise DrivetrainError(
            f"{len(changes):,} things changed; at most {CHANGES_MAX:,} are released at a time.",
            do="Release it in parts.",
        )
    evidence = tuple(msgspec.structs.replace(one, report=proof(one)) for one in evidence_needed(before, after))
    return Plan(
        snapshot=after.hash,
        base=release,
        base_snapshot=before.hash if before is not None and release else "",
        changes=changes,
        keys=changed_keys(before, after, changes),
        evidence=evidence,
        rules=after.rules,
        prompts=prompt_diffs(before, after),
        lacks=(*lacking_evidence(rules, evidence), *lacking_approvals(rules, changes, ())),
    )


def changes_between(before: Snapshot | None, after: Snapshot, in_force: RulesV1) -> tuple[ChangeV1, ...]:
    """Every difference; none only where the Snapshots are one and the same."""
    found: list[ChangeV1] = []
    if before is None:
        found = [change(name, "workflow", "is new") for name in sorted(after.workflows)]
        found += [
            change(one.workflow, "evals", f"eval {name} is new, with {gates_text(one)}")
            for name, one in sorted(after.evals.items())
        ]
        found.append(change("", "settings", "nothing was released before"))
    else:
        found = [
            *workflow_changes(before, after), *eval_changes(before, after), *settings_changes(before, after)
        ]  # fmt: skip
    found += rules_changes(in_force, after.rules)
    if not found and before is not None:
        found += file_changes(before, after)
    return tuple(dict.fromkeys(found))


def changed_keys(before: Snapshot | None, after: Snapshot, changes: Sequence[ChangeV1]) -> dict[str, str]:
    """Each workflow that changes -> its key in `after`; empty where it left."""
    named = {one.workflow for one in changes if one.workflow}
    named |= {name for name in after.workflows if before is not None and _key(before, name) != _key(after, name)}
    return {name: _key(after, name) for name in sorted(named)}


def evidence_needed(before: Snapshot | None, after: Snapshot) -> tuple[EvidenceV1, ...]:
    """Every eval with gates whose workflow, or which itself, is not as it is in what is live."""
    found = []
    for name, declared in sorted(after.evals.items()):
        if not declared.gates:
            continue
        key, own = _key(after, declared.workflow), eval_key(declared, after)
        if before is None or (key, own) != _keys_of(before, name, declared.workflow):
            found.append(EvidenceV1(eval=name, workflow=declared.workflow, key=key, eval_key=own))
    return tuple(found)


def _keys_of(snapshot: Snapshot, name: str, workflow: str) -> tuple[str, str]:
    """The workflow's key and the eval's; empty where the Snapshot has no such eval."""
    declared = snapshot.evals.get(name)
    return (_key(snapshot, workflow), eval_key(declared, snapshot)) if declared is not None else ("", "")


def _key(snapshot: Snapshot, workflow: str) -> str:
    return workflow_key(snapshot, workflow) if workflow in snapshot.workflows else ""
