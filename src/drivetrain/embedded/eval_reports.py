"""Reports of evals in a project: found by id or by eval, compared, and told for each eval that is declared."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec

from drivetrain.adapters.files import FileVault
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.embedded.applying import person
from drivetrain.embedded.modelling import open_reports
from drivetrain.embedded.releasing import place_of, records_of
from drivetrain.evals.eval_key import eval_key
from drivetrain.evals.run_compare import compare_report, compare_runs
from drivetrain.evals.run_files import RunFiles
from drivetrain.evals.run_report import KIND
from drivetrain.evals.run_texts import with_notes
from drivetrain.evals.workflow_key import workflow_key
from drivetrain.project.files import find_root
from drivetrain.project.load import load
from drivetrain.promotion.recorded import runs_in
from drivetrain.registry.reports import Stored

_ID = re.compile(r"[0-9a-f]{4,64}")


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """An eval and what its newest Report says of the project as it is."""

    eval: str
    workflow: str
    dataset: str
    gates: int
    state: str
    """`passed`, `failed`, `no gates`, `not run`, `outdated` where workflow or eval changed since, or `unrecorded` where
    the control log has no run that made the Report, so that nothing is released upon it."""
    report: str = ""
    made_ns: int = 0


def find_report(name: str, project: Path | None) -> Stored:
    """The Report of that id, or the newest of the eval of that name. Raises: DrivetrainError."""
    reports = open_reports(project or Path.cwd())
    found = [one for one in reports.list(KIND) if one.report.facts.get("eval") == name]
    if found:
        return found[0]
    if _ID.fullmatch(name) is None:
        known = {str(one.report.facts.get("eval", "")) for one in reports.list(KIND)}
        raise DrivetrainError(
            f"There is no Report of an eval `{name[:100]}`, and it is no id of one.",
            do=did_you_mean(name, known) if known else f"Run it: `drivetrain eval run {name[:100]}`.",
        )
    one = reports.get(name)
    if one.report.kind != KIND:
        raise DrivetrainError(
            f"Report {one.id} is of kind `{one.report.kind}`.", do=f"`drivetrain report show {one.id}` shows it."
        )
    return one


class Noted(msgspec.Struct, frozen=True, kw_only=True):
    """What a scorer noted of one answer."""

    row: str
    call_id: str
    scorer: str
    value: float
    note: str


def notes_of(report: str, project: Path | None) -> list[Noted]:
    """What scorers noted in a run, as far as it was kept and its persons were not forgotten. report: its whole id.

    Raises: DrivetrainError where its rows are gone, or a note was altered.
    """
    place = place_of(find_root(project or Path.cwd()))
    with closing(FileVault(place.keys_folder)) as vault:
        rows = [with_notes(one, vault) for one in RunFiles(place.data_folder).run(report).rows]
    return [
        Noted(row=row.row, call_id=row.call_id, scorer=name, value=score.value, note=score.note)
        for row in rows
        for name, score in row.scores.items()
        if score.note
    ]


def compare_reports(
    first: str, second: str, project: Path | None, *, margin: float = 0.0, now_ns: Callable[[], int] = time.time_ns
) -> Stored:
    """A Report of the second run against the first one, which is kept. Raises: DrivetrainError."""
    root = find_root(project or Path.cwd())
    one, other = find_report(first, root), find_report(second, root)
    if one.id == other.id:
        raise DrivetrainError(f"Both are Report {one.id}.", do="Name two runs; `drivetrain report list --kind eval`.")
    files = RunFiles(place_of(root).data_folder)
    runs = files.run(one.id), files.run(other.id)
    report = compare_report(
        compare_runs(*runs, margin=margin), *runs, made_ns=now_ns(), made_by=person()
    )  # fmt: skip
    return Stored(open_reports(root, now_ns=now_ns).put(report), report)


def standings(project: Path | None) -> list[Standing]:
    """Every eval that the project declares, by name. Raises: DrivetrainError."""
    root = find_root(project or Path.cwd())
    snapshot = load(root)
    reports, runs = open_reports(root).list(KIND), runs_in(records_of(place_of(root)))
    found = []
    for name, declared in sorted(snapshot.evals.items()):
        newest = next((one for one in reports if one.report.facts.get("eval") == name), None)
        state = "not run"
        if newest is not None:
            facts = newest.report.facts
            keys = workflow_key(snapshot, declared.workflow), eval_key(declared, snapshot)
            if (facts["workflow_key"], facts["eval_key"]) != keys:
                state = "outdated"
            elif not facts["passed"]:
                state = "failed"
            elif newest.id not in runs:
                state = "unrecorded"
            else:
                state = "passed" if facts["gates"] else "no gates"
        found.append(
            Standing(
                eval=name, workflow=declared.workflow, dataset=declared.dataset, gates=len(declared.gates), state=state,
                report=newest.id if newest is not None else "",
                made_ns=newest.report.made_ns if newest is not None else 0,
            )
        )  # fmt: skip
    return found
