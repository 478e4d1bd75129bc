"""`drivetrain outcomes`: labels from a file into the ledger, and how well Calls are labelled."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from drivetrain.cli.ending import fail
from drivetrain.cli.freshness import age_text
from drivetrain.cli.options import Json, Project
from drivetrain.cli.places import ledger_places, moment_ns, plain
from drivetrain.cli.tables import Column, print_table
from drivetrain.core.errors import DrivetrainError, did_you_mean

if TYPE_CHECKING:
    from drivetrain.cli.outcome_files import LabelFile
    from drivetrain.core.declarations import Workflow
    from drivetrain.embedded.coverage import Coverage, LabelCoverage
    from drivetrain.lake.lake import Lake

app = typer.Typer(help="Outcomes: the truth about Calls, arriving later.", no_args_is_help=True)

VALUES = ("guess", "text")


@app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(help="CSV with a header, or JSON lines.")],
    *,
    workflow: Annotated[str | None, typer.Option(help="For rows without one; they have a `key` then.")] = None,
    metric: Annotated[str | None, typer.Option(help="For rows without one.")] = None,
    source: Annotated[str, typer.Option(help="Who says so, for rows that do not tell.")] = "import",
    values: Annotated[
        str, typer.Option(help="Of a CSV: `guess` takes 4 for a number and true for a truth value, `text` nothing.")
    ] = "guess",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file and say what is new; record nothing.")
    ] = False,
    project: Project = None,
    as_json: Json = False,
) -> None:
    """Record the labels of a file: all of them or, where a row is wrong, none. The same file again changes nothing."""
    try:
        if values not in VALUES:
            raise DrivetrainError(f"`{values}` is no way to read values.", do="Write --values guess or --values text.")
        root = ledger_places(project).root
        given = {"workflow": workflow, "metric": metric, "source": source}
        labels, recorded = _imported(
            root, file, {name: value for name, value in given.items() if value is not None}, values == "text", dry_run
        )
    except DrivetrainError as error:
        fail(error)
    if as_json:
        answer = {"rows": labels.rows, "dry_run": dry_run, **recorded, "mistakes": labels.mistakes}
        typer.echo(msgspec.json.encode(answer).decode())
    elif labels.mistakes:
        typer.echo(plain(_told(labels)), err=True)
    else:
        verb = "would be recorded" if dry_run else "recorded"
        rows = f"{labels.rows:,} row{'s' if labels.rows != 1 else ''}"
        typer.echo(f"{rows}: {recorded['new']:,} {verb}, {recorded['known']:,} known before")
    if labels.mistakes:
        raise typer.Exit(1)


@app.command("show")
def show_command(
    *,
    workflow: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    since: Annotated[str | None, typer.Option(help="Calls since: ISO time, `today`, or how long ago: `7d`.")] = None,
    project: Project = None,
    as_json: Json = False,
) -> None:
    """Per workflow and metric: how many answered Calls have a label, how late labels came, and which disagree."""
    from drivetrain.embedded.coverage import label_coverage

    try:
        since_ns = moment_ns(since) if since else 0
        found = label_coverage(_lake(project), workflow=workflow, since_ns=since_ns)
        if workflow is not None and not found.rows:
            _check_workflow(ledger_places(project).root, workflow)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        typer.echo(msgspec.json.encode(coverage_json(found)).decode())
    else:
        _print_coverage(found)


def coverage_json(coverage: Coverage) -> dict[str, Any]:
    """A Coverage as JSON has it."""
    rows = [{**msgspec.to_builtins(row), "share": row.share} for row in coverage.rows]
    return {"rows": rows, "unmatched": coverage.unmatched}


def _check_workflow(root: Path, name: str) -> None:
    """Whether the project declares a workflow of which it has no Call. Raises: DrivetrainError."""
    from drivetrain.project import load, unload

    snapshot = load(root)
    try:
        if name not in snapshot.workflows:
            raise DrivetrainError(
                f"There is no workflow `{name}`, and no Call of one.", do=did_you_mean(name, snapshot.workflows)
            )
    finally:
        unload(snapshot)


def _imported(
    root: Path, file: Path, given: Mapping[str, str], as_text: bool, dry_run: bool
) -> tuple[LabelFile, dict[str, int]]:
    from drivetrain.cli.outcome_files import read_labels
    from drivetrain.embedded.outcomes import OutcomeWriter
    from drivetrain.project import load, unload

    snapshot = load(root)
    writer = OutcomeWriter(snapshot.data_folder, _opener(root))
    try:
        workflows: Mapping[str, Workflow[Any, Any]] = snapshot.workflows
        labels = read_labels(file, now_ns=time.time_ns(), workflows=workflows, given=given, as_text=as_text)
        if labels.mistakes:
            return labels, {"new": 0, "known": 0}
        if dry_run:
            new = len(writer.unknown(labels.outcomes))
            return labels, {"new": new, "known": len(labels.outcomes) - new}
        recorded = writer.record(labels.outcomes, once=True)
        return labels, {"new": recorded.new, "known": recorded.known}
    finally:
        writer.close()
        unload(snapshot)


def _opener(root: Path) -> Callable[[], Lake]:
    return lambda: _lake(root)


def _lake(project: Path | None) -> Lake:
    from drivetrain.cli.lake_place import lake_of

    return lake_of(ledger_places(project))


def _told(labels: LabelFile) -> str:
    from drivetrain.cli.outcome_files import MISTAKES_MAX

    lines = [
        f"row {one.row} (line {one.line}){', column ' + one.column if one.column else ''}: {one.what}"
        for one in labels.mistakes
    ]
    if len(labels.mistakes) >= MISTAKES_MAX:
        lines.append(f"(only the first {MISTAKES_MAX} are told)")
    lines.append("Nothing was imported.")
    return "\n".join(lines)


def _print_coverage(coverage: Coverage) -> None:
    if coverage.rows:
        print_table(
            [
                Column("workflow"),
                Column("metric"),
                Column("calls", right=True),
                Column("labelled", right=True),
                Column("share", right=True),
                Column("delay p50", right=True, drop=2),
                Column("delay p95", right=True, drop=3),
                Column("corrected", right=True, drop=1),
                Column("contradictory", right=True),
            ],
            [_row(one) for one in coverage.rows],
        )
    else:
        typer.echo("No Call was answered yet.")
    if coverage.unmatched:
        told = "1 outcome names" if coverage.unmatched == 1 else f"{coverage.unmatched:,} outcomes name"
        typer.echo(f"{told} no Call of the ledger, by id or by business key.")


def _row(one: LabelCoverage) -> list[str]:
    return [
        plain(one.workflow) or "-",
        plain(one.metric) or "(no label)",
        f"{one.calls:,}",
        f"{one.labelled:,}",
        f"{one.share:.1%}",
        age_text(one.delay_p50_s),
        age_text(one.delay_p95_s),
        f"{one.corrected:,}",
        f"{one.contradictory:,}",
    ]
