"""Runs of evals as a run leaves them: Calls in the ledger, rows, a Report, and its record; without asking anybody."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import msgspec

from drivetrain.core.calls import EVAL
from drivetrain.core.evals import Score
from drivetrain.core.reports import ReportV1
from drivetrain.embedded.applying import keep
from drivetrain.embedded.eval_recorded import keep_run
from drivetrain.embedded.modelling import reports_in
from drivetrain.evals.eval_key import eval_key
from drivetrain.evals.gates import needs_baseline
from drivetrain.evals.rows import RowV1, Run
from drivetrain.evals.run_files import RunFiles
from drivetrain.evals.workflow_key import workflow_key
from drivetrain.project.snapshot import Snapshot
from support.records import attempt, call_id, closed, opened, write

ROWS = 40
_numbers = itertools.count(1)
"""Calls of all runs are different ones."""

Facts = Mapping[str, str | int | float | bool]


def run_of(snapshot: Snapshot, name: str, workflow_in: Snapshot | None = None, *, right: float = 1.0) -> Run:
    """A run of an eval whose Calls stand in the ledger, each row scored alike. workflow_in: who answered."""
    declared, answering = snapshot.evals[name], workflow_in or snapshot
    keep(answering)
    numbers = [next(_numbers) for _ in range(ROWS)]
    records = [
        one
        for number in numbers
        for one in (
            opened(number, snapshot=answering.short_hash, workflow=declared.workflow, door=EVAL),
            closed(number, attempt()),
        )
    ]
    write(snapshot.data_folder, *records)
    rows = tuple(
        RowV1(
            row=f"{place:016x}", slices={"language": "de"}, scores={"exact": Score(value=right)},
            call_id=call_id(number), variant="small",
        )
        for place, number in enumerate(numbers)
    )  # fmt: skip
    return Run(
        eval=name, workflow=declared.workflow, workflow_key=workflow_key(answering, declared.workflow),
        eval_key=eval_key(declared, snapshot), dataset="golden@1", rows=rows,
    )  # fmt: skip


def report_of(snapshot: Snapshot, run: Run, baseline: Run | None = None, **facts: str | int | bool) -> ReportV1:
    """A Report that says that a run has passed. facts: what it says otherwise."""
    alone = any(map(needs_baseline, snapshot.evals[run.eval].gates))
    kept: dict[str, str | int | float | bool] = {
        "eval": run.eval, "workflow": run.workflow, "workflow_key": run.workflow_key, "eval_key": run.eval_key,
        "dataset": run.dataset, "snapshot": snapshot.hash, "passed": True, "finished": True, "gates": 1,
        "rows": len({one.row for one in run.rows}), "answers": len(run.rows),
        "baseline_key": baseline.workflow_key if baseline is not None else run.workflow_key if alone else "",
    }  # fmt: skip
    against = {"workflow_key": baseline.workflow_key} if baseline is not None else None
    return ReportV1(
        kind="eval", subject=f"workflow:{run.workflow}", made_ns=1, made_by="ann", verdict="passed",
        facts={**kept, **facts}, body={"against": against},
    )  # fmt: skip


def store_report(snapshot: Snapshot, report: ReportV1) -> str:
    """The id of a Report that is stored, with no record of a run."""
    return reports_in(snapshot.data_folder, snapshot.keys_folder).put(report)


def record_run(snapshot: Snapshot, report: ReportV1, run: Run, baseline: Run | None = None) -> str:
    """The id of a Report that is stored and recorded as a run's end is."""
    id = store_report(snapshot, report)
    keep_run(snapshot, RunFiles(snapshot.data_folder), report, msgspec.structs.replace(run, report=id), baseline)
    return id
