"""What the newest run of each eval measured, as tables of a dossier: gates, figures by group, failures by cause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from drivetrain.core.markup import Table
from drivetrain.evals.run_report import Compared, Failures, Figure, Part
from drivetrain.promotion.dossier_material import Material, day
from drivetrain.registry.reports import Stored

GROUPS_MAX = 200
"""Of one eval; its Report has all."""
_Read = TypeVar("_Read")
_NAMES = ("rows", "answers", "dataset", "passed", "finished", "gates", "gates_failed", "snapshot", "workflow_key")


def newest_evals(reports: Sequence[Stored]) -> list[Stored]:
    """The newest run of each eval, by its name."""
    found: dict[str, Stored] = {}
    for stored in reports:
        if stored.report.kind == "eval":
            found.setdefault(str(stored.report.facts.get("eval", "")), stored)
    return [found[name] for name in sorted(found)]


def eval_tables(material: Material, stored: Stored) -> list[Table]:
    """Everything of one run that has no row and no Call in it."""
    report, name = stored.report, str(stored.report.facts.get("eval", ""))
    fits = report.facts.get("workflow_key") == material.key
    whose = f"Report {stored.id} of {day(report.made_ns)}{'' if fits else ', of another version of the workflow'}"
    facts = tuple((one.replace("_", " "), _said(report.facts[one])) for one in _NAMES if one in report.facts)
    gates = tuple(_gate(one) for one in _read(report.body.get("gates"), list[dict[str, Any]]) or ())
    figures = _read(report.body.get("scores"), dict[str, Figure]) or {}
    groups = [("all", scorer, one) for scorer, one in figures.items()]
    for part in _read(report.body.get("parts"), list[Part]) or ():
        groups += [(part.name, scorer, one) for scorer, one in part.scores.items()]
    failures = _read(report.body.get("failures"), list[Failures]) or []
    compared = _read(report.body.get("compared"), list[Compared]) or []
    return [
        Table(title=f"{name}: {whose}", head=("figure", "value"), rows=facts),
        Table(title=f"{name}: gates", head=("gate", "is", "why"), rows=gates, none="It has no gate."),
        Table(
            title=f"{name}: figures by group, with 95 % intervals",
            head=("group", "scorer", "mean#", "from#", "to#", "rows#", "groups#"),
            rows=tuple(
                (group, scorer, f"{one.value:.4f}", _bound(one.low), _bound(one.high), str(one.rows), str(one.groups))
                for group, scorer, one in groups[:GROUPS_MAX]
            ),
        ),
        Table(
            title=f"{name}: what was not right",
            head=("scorer", "cause", "answers#"),
            rows=tuple((one.scorer, one.cause, str(one.answers)) for one in failures),
            none="Nothing.",
        ),
        Table(
            title=f"{name}: against what it was compared with",
            head=("scorer", "difference#", "from#", "to#", "rows#", "better#", "worse#"),
            rows=tuple(
                (one.scorer, f"{one.difference:+.4f}", f"{one.low:+.4f}", f"{one.high:+.4f}", str(one.rows),
                 str(one.better), str(one.worse))
                for one in compared
            ),
            none="It was compared with nothing.",
        ),
    ]  # fmt: skip


def _gate(one: dict[str, Any]) -> tuple[str, str, str]:
    gate = one.get("gate")
    text = gate.get("text", "") if isinstance(gate, dict) else gate
    return str(text or ""), str(one.get("state", "")), str(one.get("why", ""))


def _read(value: Any, kind: type[_Read]) -> _Read | None:
    """A part of a Report's body; None where it is absent or of another version."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return None


def _bound(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _said(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
