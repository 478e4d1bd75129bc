"""What a Report of an eval rests on: recorded when a run ends, and looked at again before a Release relies on it.

Owns the order: rows, then Report, then the record in the control log, so that whatever the log tells of is there. Rows
are held against the record, gates against rows, and rows against the Calls in the ledger. Called by runs, by what
proposes, approves and promotes, and by `drivetrain audit verify`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from pathlib import Path

import msgspec

from drivetrain.adapters.sqlite import open_control_log
from drivetrain.core.calls import EVAL
from drivetrain.core.errors import DrivetrainError, ProjectError
from drivetrain.core.ids import CALL_PREFIX, is_call_id
from drivetrain.core.releases import EVAL_RAN, EvalRanV1, EvidenceV1
from drivetrain.core.reports import ReportV1
from drivetrain.embedded.applying import person
from drivetrain.embedded.asking import lake_for
from drivetrain.evals.rejudged import contradiction, rows_digest
from drivetrain.evals.rows import Run
from drivetrain.evals.run_files import BASELINES, RunFiles
from drivetrain.evals.run_report import KIND
from drivetrain.evals.workflow_key import workflow_key
from drivetrain.ports.control import ControlRecord
from drivetrain.project.load import unload
from drivetrain.project.snapshot import Snapshot
from drivetrain.project.stored import load_stored
from drivetrain.promotion.recorded import Runs, runs_in, subject_of_run
from drivetrain.registry.reports import FOLDER, Reports

SNAPSHOTS_MAX = 16
"""Of the Calls of one run, which reuses answers of before: each is loaded to see that it answers in the same way."""
TOLD_MAX = 20
"""Of Reports that are gone; the rest is counted."""
_BEFORE_NS = 60_000_000_000
"""A Call's id is made a moment before it opens, and clocks are put back."""


def keep_run(snapshot: Snapshot, files: RunFiles, report: ReportV1, run: Run, baseline: Run | None) -> None:
    """The rows of a run whose Report is stored, and the record that stands for it; a process that is killed before has
    a Report that proves nothing.

    baseline: None where it was compared with nothing; the run itself where nothing could be worse.
    Raises: DrivetrainError.
    """
    digest = ""
    if baseline is not None and baseline.workflow_key != run.workflow_key:
        baseline = msgspec.structs.replace(baseline, report=run.report)
        files.keep(baseline, BASELINES)
        digest = rows_digest(baseline)
    files.keep(run)
    ran = EvalRanV1(
        report=run.report, eval=run.eval, workflow=run.workflow, passed=report.facts.get("passed") is True,
        rows=rows_digest(run), baseline=digest,
    )  # fmt: skip
    open_control_log(snapshot.data_folder, snapshot.keys_folder).append(
        kind=EVAL_RAN, actor=person(), subject=subject_of_run(run.report), body=msgspec.to_builtins(ran)
    )


class _Called(msgspec.Struct, frozen=True):
    """What is compared of a Call."""

    status: str
    variant: str
    snapshot: str


class RunProofs:
    """Whether Reports agree with what was recorded of their runs. after: the Snapshot that they are evidence for."""

    def __init__(self, after: Snapshot, runs: Runs) -> None:
        self._after = after
        self._runs = runs
        self._files = RunFiles(after.data_folder)
        self._known: dict[str, str] = {}

    def doubt(self, evidence: EvidenceV1, report: ReportV1) -> str:
        """Why a Report is not borne out by its rows and their Calls, in words; empty where it is.

        Reads the workflow's Calls since the oldest that it cites: 100,000 take about half a second, and 5 s where
        they are not rolled yet.
        """
        if evidence.report not in self._known:
            self._known[evidence.report] = self._doubt(evidence, report)
        return self._known[evidence.report]

    def _doubt(self, evidence: EvidenceV1, report: ReportV1) -> str:
        ran = self._runs.get(evidence.report)
        if ran is None:
            return "the control log has no record of a run that made it"
        declared = self._after.evals.get(evidence.eval)
        if declared is None:
            return "the eval is not declared"
        try:
            run = self._files.run(evidence.report)
            baseline = self._files.run(evidence.report, BASELINES) if ran.run.baseline else None
        except DrivetrainError as error:
            return f"{error.what} Run the eval again"
        if rows_digest(run) != ran.run.rows:
            return "its rows are not those that the control log has; run the eval again"
        if baseline is not None and rows_digest(baseline) != ran.run.baseline:
            return "the rows that it was compared with are not those that the control log has; run the eval again"
        why = contradiction(report, run, baseline, declared)
        for one in (run, baseline):
            if not why and one is not None:
                why = self._uncalled(one)
        return why

    def _uncalled(self, run: Run) -> str:
        """Why a run's rows are not what its Calls were, in words."""
        cited = {one.call_id: one for one in run.rows if one.call_id}
        if any(not is_call_id(one) for one in cited):
            return "it cites what is no Call"
        calls = self._calls(run.workflow, list(cited)) if cited else {}
        if len(calls) < len(cited):
            return (
                f"{len(cited) - len(calls):,} of its {len(cited):,} Calls are not in the ledger as Calls of an eval; "
                "run the eval again with --fresh"
            )
        for row in run.rows:
            call = calls.get(row.call_id)
            if call is not None and (row.status, row.variant) != (call.status, call.variant):
                return f"its row {row.row} is not what Call {row.call_id} was"
        return self._otherwise({one.snapshot for one in calls.values()}, run)

    def _calls(self, workflow: str, cited: Sequence[str]) -> dict[str, _Called]:
        """Those of the Calls that the ledger has as the eval's of this workflow, by id."""
        since_ns = max(0, min(map(_made_ns, cited)) - _BEFORE_NS)
        found = lake_for(self._after).query(
            "SELECT call_id, status, variant, snapshot FROM calls WHERE workflow = $workflow AND door = $door "
            "AND opened_ns >= $since AND call_id IN (SELECT unnest($cited))",
            {"workflow": workflow, "door": EVAL, "since": since_ns, "cited": cited},
        )
        return {str(row[0]): _Called(*map(str, row[1:])) for row in found.rows}

    def _otherwise(self, snapshots: Set[str], run: Run) -> str:
        """Why Calls of these Snapshots tell nothing of the workflow's key, in words."""
        short = sorted(snapshots - {self._after.short_hash})
        if len(short) > SNAPSHOTS_MAX:
            return f"its Calls are of more than {SNAPSHOTS_MAX} Snapshots; run the eval again with --fresh"
        keys = [workflow_key(self._after, run.workflow)] if self._after.short_hash in snapshots else []
        for one in short:
            try:
                stored = load_stored(self._after.snapshots_folder, one, self._after.root)
            except (DrivetrainError, ProjectError):
                return f"Snapshot {one}, which its Calls are of, cannot be loaded; run the eval again with --fresh"
            try:
                keys.append(workflow_key(stored, run.workflow))
            finally:
                unload(stored)
        return "" if all(one == run.workflow_key for one in keys) else "its Calls were answered in another way"


class Unmatched(msgspec.Struct, frozen=True, kw_only=True):
    """Where Reports of evals and the control log do not meet."""

    unrecorded: tuple[str, ...] = ()
    """Ids of Reports that prove nothing, since the log tells no run of them: written by hand, or before it told any."""
    gone: tuple[str, ...] = ()
    """What the log tells of and is not there as it was, in words."""


def unmatched(data_folder: Path, records: Iterable[ControlRecord]) -> Unmatched:
    """Reports without a record, and records without their Report. Reads every Report."""
    reports, runs = Reports(data_folder / FOLDER), runs_in(records)
    try:
        stored = {one.id for one in reports.list(KIND)}
    except DrivetrainError:
        # One is damaged, which may be none of a run: `drivetrain report list` tells of it.
        stored = {id for id in runs if _is_whole(reports, id)}
    gone = [
        f"Record {ran.seq} tells of a run of eval {ran.run.eval}, and its Report {id} is not there as it was."
        for id, ran in runs.items()
        if id not in stored
    ]
    more = [f"And {len(gone) - TOLD_MAX} more Reports."] if len(gone) > TOLD_MAX else []
    return Unmatched(unrecorded=tuple(sorted(stored - runs.keys())), gone=(*gone[:TOLD_MAX], *more))


def _is_whole(reports: Reports, id: str) -> bool:
    try:
        return reports.get(id).id == id
    except DrivetrainError:
        return False


def _made_ns(call_id: str) -> int:
    """When a Call's id was made; it begins with milliseconds."""
    return int(call_id[len(CALL_PREFIX) : len(CALL_PREFIX) + 12], 16) * 1_000_000
