"""What a run of an eval is compared with: the live Release, another folder, an earlier Report, or what came before.

Owns the choice, and loads the Snapshot. Whether a baseline must be asked first is for the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from drivetrain.adapters.sqlite import open_control_log
from drivetrain.core.errors import DrivetrainError, ProjectError
from drivetrain.embedded.modelling import reports_in
from drivetrain.embedded.releasing import live_of
from drivetrain.evals.run_report import KIND
from drivetrain.evals.workflow_key import workflow_key
from drivetrain.ports.control import APPLIED, CONTROL_FILE
from drivetrain.project.files import SETTINGS_FILE
from drivetrain.project.load import load
from drivetrain.project.snapshot import Snapshot
from drivetrain.project.stored import load_stored
from drivetrain.promotion.recorded import runs_in

LIVE = "live"
NOTHING_BEFORE = "nothing was live before, and nothing has passed"
LOADED_MAX = 5
"""Of the past, so many Snapshots are tried: an older one than that is no baseline of today's."""


class Baseline(msgspec.Struct, frozen=True):
    """What is compared with."""

    what: str
    """In words, for people."""
    snapshot: Snapshot


def baseline_of(snapshot: Snapshot, eval_name: str, workflow: str, against: str | None) -> Baseline | None:
    """against: `live`, a folder, or the id of a Report; None: the live Release, else what last passed this eval with
    another route, else what was last applied with another route. None where there is nothing of the kind.

    Raises: DrivetrainError where what was named is not to be had.
    """
    if against not in (None, LIVE):
        assert against is not None
        return _named(snapshot, workflow, against)
    live = live_of(snapshot.root, snapshot.environment)
    if live.release:
        stored = load_stored(snapshot.snapshots_folder, live.snapshot, snapshot.root)
        return Baseline(f"Release {live.release}", stored) if workflow in stored.workflows else None
    if against == LIVE:
        raise DrivetrainError(
            f"Nothing is live in `{snapshot.environment}`: there is no Release to compare with.",
            do="Leave out --against, or name a Report or a folder.",
        )
    key = workflow_key(snapshot, workflow)
    for what, digest in _before(snapshot, eval_name, key):
        try:
            stored = load_stored(snapshot.snapshots_folder, digest, snapshot.root)
        except (DrivetrainError, ProjectError):
            continue  # stored by another version, or gone: what came before it is as good
        if workflow in stored.workflows and workflow_key(stored, workflow) != key:
            return Baseline(what, stored)
    return None


def _named(snapshot: Snapshot, workflow: str, against: str) -> Baseline:
    folder = Path(against)
    if (folder / SETTINGS_FILE).is_file():
        other = load(folder, snapshot.environment)
        # Its Calls are records of this project, and its secrets are those of this one.
        found = Baseline(f"folder {folder.name}", msgspec.structs.replace(other, root=snapshot.root))
    elif folder.is_dir():
        raise DrivetrainError(f"{folder} is no project: it has no {SETTINGS_FILE}.")
    else:
        report = reports_in(snapshot.data_folder, snapshot.keys_folder).get(against)
        if report.report.kind != KIND:
            raise DrivetrainError(
                f"Report {report.id} is of kind `{report.report.kind}`, and a run is compared with a run.",
                do="`drivetrain report list --kind eval` lists them.",
            )
        digest = str(report.report.facts["snapshot"])
        found = Baseline(f"Report {report.id}", load_stored(snapshot.snapshots_folder, digest, snapshot.root))
    if workflow not in found.snapshot.workflows:
        raise DrivetrainError(f"What is compared with, {found.what}, has no workflow `{workflow}`.")
    return found


def _before(snapshot: Snapshot, eval_name: str, key: str) -> Iterator[tuple[str, str]]:
    """(in words, hash of a Snapshot) of what passed this eval with another route, then of what was applied."""
    if not (snapshot.data_folder / CONTROL_FILE).exists():
        return  # neither can be without a record
    records = list(open_control_log(snapshot.data_folder, snapshot.keys_folder).records())
    runs = runs_in(records)
    for one in reports_in(snapshot.data_folder, snapshot.keys_folder).list(KIND):
        facts = one.report.facts
        if one.id not in runs or facts.get("eval") != eval_name:
            continue
        if facts.get("passed") is True and facts.get("workflow_key") != key:
            yield f"Report {one.id}, which passed before", str(facts["snapshot"])
            break
    applied = [
        one.subject
        for one in records
        if one.kind == APPLIED and msgspec.json.decode(one.body).get("environment") == snapshot.environment
    ]
    for digest in list(dict.fromkeys(reversed(applied)))[:LOADED_MAX]:
        yield f"Snapshot {digest[:16]}, which was applied before", digest
