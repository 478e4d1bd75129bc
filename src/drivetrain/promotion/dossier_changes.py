"""Which records of the control log touched a workflow, and what they say in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from drivetrain.core.declarations import Variant
from drivetrain.core.lineage import MADE
from drivetrain.core.models import ALIAS_MOVED, is_trained, parse_reference
from drivetrain.core.releases import APPROVED, PROMOTED, PROPOSED, ROLLOUT, WITHDRAWN, Live
from drivetrain.ports.control import APPLIED, ControlRecord
from drivetrain.promotion.dossier_material import Material
from drivetrain.promotion.standing import State
from drivetrain.promotion.state import after

WHAT_CHARS_MAX = 400
DONE_TO_PROPOSALS = {APPROVED: "approved", WITHDRAWN: "withdrawn"}
"""Kind -> what happened, in a word."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One record that touched the workflow."""

    seq: int
    at_ns: int
    kind: str
    subject: str
    actor: str
    what: str
    """Begins with `does not count` where the records before it do not allow it."""


def changes_of(material: Material) -> list[Change]:
    """Every record that touched it, oldest first; a Snapshot that is applied again and again is told once in a row."""
    found: list[Change] = []
    applied, about = "", _About(material)
    refused = _refused(material)
    for record in material.records:
        if record.kind == APPLIED:
            if record.subject == applied:
                continue
            applied = record.subject
        body = _body(record)
        if about.touches(record, body):
            what = refused.get(record.seq, "") + _what(record, body, material.workflow)
            found.append(
                Change(
                    seq=record.seq, at_ns=record.at_ns, kind=record.kind, subject=record.subject[:80],
                    actor=record.actor, what=what[:WHAT_CHARS_MAX],
                )
            )  # fmt: skip
    return found


class _About:
    """What a record must name to be about the workflow."""

    def __init__(self, material: Material) -> None:
        workflow, declared = material.workflow, material.declared
        self.workflow, self.environment = workflow, material.snapshot.environment
        models = [one.model for one in declared.route if isinstance(one, Variant) and is_trained(one.model)]
        self.models = {parse_reference(one).name for one in models}
        whose = {"workflow": workflow, "team": declared.team, "use_case": declared.use_case}
        self.limits = {
            name
            for name, one in material.snapshot.limits.items()
            if one.dimension in whose and one.value == whose[one.dimension]
        }
        self.proposals: set[str] = set()
        self.releases: set[str] = set()

    def touches(self, record: ControlRecord, body: Mapping[str, Any]) -> bool:
        """Whether a record is about the workflow; the ones before it were asked already."""
        kind, subject = record.kind, record.subject
        if kind == APPLIED:
            return body.get("environment") in (None, self.environment)
        if kind == PROPOSED:
            named = {str(one.get("workflow", "")) for one in _rows(body.get("changes"))}
            about = self.workflow in {*named, *_names(body.get("keys"))}
            return self._kept(self.proposals, subject, about)
        if kind in (APPROVED, WITHDRAWN):
            return subject in self.proposals
        if kind == PROMOTED:
            return self._kept(self.releases, subject, self.workflow in _names(body.get("workflows")))
        if kind == ROLLOUT:
            return subject in self.releases
        if kind == ALIAS_MOVED:
            return subject.partition("@")[0] in self.models
        if kind == MADE:
            inputs = _names(body.get("inputs"))
            own = subject.startswith("report:") and f"workflow:{self.workflow}" in inputs
            return own or any(subject.startswith(f"model:{name}@") for name in self.models)
        return (kind.startswith("budget.") and subject in self.limits) or (
            kind.startswith("probe") and f"workflow:{self.workflow}" in _names(body.get("workflows"))
        )

    def _kept(self, known: set[str], subject: str, about: bool) -> bool:
        if about and subject.partition("/")[0] == self.environment:
            known.add(subject)
            return True
        return False


def _body(record: ControlRecord) -> Mapping[str, Any]:
    try:
        found = msgspec.json.decode(record.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _refused(material: Material) -> dict[int, str]:
    """Records that do not count -> that, and why."""
    found: dict[int, str] = {}
    before = State(live=Live(environment=material.snapshot.environment))
    for record in material.records:
        now = after(before, record)
        if now.live.refused[-1:] != before.live.refused[-1:]:
            found[record.seq] = f"does not count ({now.live.refused[-1].partition('): ')[2]}): "
        before = now
    return found


def _what(record: ControlRecord, body: Mapping[str, Any], workflow: str) -> str:
    """In one line: what changed, of this workflow first, and the reason that was given."""
    changes = sorted(_rows(body.get("changes")), key=lambda one: one.get("workflow", "") not in (workflow, ""))
    parts = [f"{one['workflow']}: {one.get('what', '')}" if one.get("workflow") else str(one.get("what", ""))
             for one in changes]  # fmt: skip
    if record.kind in DONE_TO_PROPOSALS:
        parts.append(f"proposal {body.get('proposal', '')} {DONE_TO_PROPOSALS[record.kind]}")
    facts = body.get("facts")
    told = facts.get("verdict") if isinstance(facts, dict) else ""
    parts += [str(body.get(key) or "") for key in ("way", "event", "verdict", "reason", "why")]
    parts += [str(told or ""), "; ".join(_names(body.get("lacks")))]
    said = "; ".join(one for one in parts if one)
    if said or record.kind == APPLIED:
        return said or f"version {body.get('version', '')} of Drivetrain"
    told_of = facts if isinstance(facts, dict) else body
    plain = {key: value for key, value in told_of.items() if isinstance(value, str | int | float) and value != ""}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in sorted(plain.items()))


def _rows(value: Any) -> Iterator[Mapping[str, Any]]:
    yield from (one for one in value if isinstance(one, dict)) if isinstance(value, list) else ()


def _names(value: Any) -> tuple[str, ...]:
    return tuple(str(one) for one in value) if isinstance(value, list | dict) else ()
