"""A Report of an eval held against the rows that it is of: what they are, and what its gates say of them now.

Owns the digest by which a run's record names its rows, and judging gates a second time. It asks nobody and scores
nothing again: what each scorer said stands in the rows. Pure. Called when a run is recorded, and before a Release
relies on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from drivetrain.core.evals import Eval
from drivetrain.core.reports import ReportV1
from drivetrain.core.scorers import scorers_of
from drivetrain.evals.calibration import Calibration
from drivetrain.evals.gates import PASSED, judge_gates
from drivetrain.evals.rows import RowV1, Run

AGAIN = "the workflow answers as what it was compared with"
"""Why nothing is worse, where a run was its own baseline."""


def rows_digest(run: Run) -> str:
    """SHA-256 over a run's rows and what they are of, 64 hex digits; without the Report, which comes after.

    Groups count by who belongs together, and notes not at all: an erasure gives groups other names and takes notes
    away, and no gate is judged otherwise for it.
    """
    places: dict[str, int] = {"": 0}
    rows = [
        msgspec.structs.replace(
            one, notes=b"", group=str(places.setdefault(one.group, len(places))),
            scores={name: msgspec.structs.replace(score, note="") for name, score in one.scores.items()},
        )
        for one in run.rows
    ]  # fmt: skip
    said = [run.eval, run.workflow, run.workflow_key, run.eval_key, run.dataset, rows]
    return hashlib.sha256(msgspec.json.encode(said, order="deterministic")).hexdigest()


def contradiction(report: ReportV1, run: Run, baseline: Run | None, declared: Eval) -> str:
    """Where rows and Report do not agree, in words; empty where they do.

    baseline: None where the Report was compared with nothing but itself. declared: the eval, as the Report's key has
    it. Judges' agreement with people is taken from the Report: its labels stand in the Dataset.
    """
    facts = report.facts
    for name in ("eval", "workflow", "workflow_key", "eval_key", "dataset"):
        if facts.get(name) != getattr(run, name):
            return f"its rows are of another {name.replace('_', ' ')}"
    if facts.get("answers") != len(run.rows) or facts.get("rows") != len({one.row for one in run.rows}):
        return "its rows are not as many as it says"
    if why := _impossible(run.rows):
        return why
    if baseline is not None and facts.get("baseline_key") != baseline.workflow_key:
        return "it was compared with other rows"
    if baseline is None and facts.get("baseline_key") not in ("", run.workflow_key):
        return "the rows that it was compared with have no record"
    alone = AGAIN if baseline is None and facts.get("baseline_key") else ""
    try:
        calibrations = msgspec.convert(report.body.get("judges") or {}, dict[str, Calibration])
    except msgspec.ValidationError:
        return "it does not say how its judges agree with people"
    judged = judge_gates(
        declared.gates, run, run if alone else baseline, scorers=scorers_of(declared), calibrations=calibrations,
        alone=alone,
    )  # fmt: skip
    if facts.get("gates") != len(judged):
        return "it has other gates than the eval"
    failed = next((one for one in judged if one.state != PASSED), None)
    return f"by its rows gate `{failed.gate}` is not passed: {failed.why}" if failed is not None else ""


def _impossible(rows: Iterable[RowV1]) -> str:
    for one in rows:
        if not one.call_id and (one.status == "answered" or any(score.value > 0 for score in one.scores.values())):
            return f"its row {one.row} was answered by no Call"
    return ""
