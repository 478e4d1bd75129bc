"""`drivetrain dataset`: make frozen, numbered selections of rows, and show, compare, prove and export them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import Json, Project
from drivetrain.cli.places import ledger_places, plain
from drivetrain.cli.tables import Column, print_table
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.times import iso

if TYPE_CHECKING:
    from drivetrain.core.datasets import ColumnV1, DatasetV1, SplitV1
    from drivetrain.datasets import Datasets
    from drivetrain.datasets.diff import Difference
    from drivetrain.datasets.sources import Origin

app = typer.Typer(help="Frozen, numbered, checked selections of rows.", no_args_is_help=True)

Reference = Annotated[str, typer.Argument(help="NAME for the newest number, or NAME@NUMBER.")]


@app.command("create")
def create_command(
    name: Annotated[str, typer.Argument(help="What it is called; each creation is its next number.")],
    *,
    query: Annotated[str | None, typer.Option("--from", help="One SELECT over the lake's tables.")] = None,
    from_file: Annotated[str | None, typer.Option(help="A .csv, .jsonl or .parquet file of the project.")] = None,
    from_calls: Annotated[str | None, typer.Option(help="A condition: Calls with what was asked and answered.")] = None,
    with_outcomes: Annotated[list[str] | None, typer.Option(help="A metric that becomes a column; repeatable.")] = None,
    schema: Annotated[Path | None, typer.Option(help="A TOML file with types and constraints.")] = None,
    sample: Annotated[int | None, typer.Option(help="Take only so many rows, with weights.")] = None,
    by: Annotated[str, typer.Option(help="Sample each value of this column alike.")] = "",
    seed: Annotated[int, typer.Option(help="Another one gives another sample and split.")] = 0,
    split: Annotated[str | None, typer.Option(help="Shares: train=0.8,test=0.2.")] = None,
    key: Annotated[str, typer.Option(help="Columns that tell rows apart, comma-separated; by default all.")] = "",
    group_by: Annotated[str, typer.Option(help="Rows alike in this column stay in one split.")] = "",
    similar: Annotated[float | None, typer.Option(help="How alike texts must be for that; 1: equal. [0.7]")] = None,
    allow_quarantine: Annotated[bool, typer.Option("--allow-quarantine", help="Leave bad rows out.")] = False,
    anywhere: Annotated[bool, typer.Option("--anywhere", help="The file may lie outside the project.")] = False,
    project: Project = None,
    as_json: Json = False,
) -> None:
    """Make the next number: every row is checked, and any violation refuses the whole."""
    from drivetrain.core.datasets import SampleV1
    from drivetrain.datasets import NOTHING_DECLARED, read_schema
    from drivetrain.datasets.checks import counted

    try:
        origin = _origin(query, from_file, from_calls, tuple(with_outcomes or ()), anywhere)
        if sample is None and by:
            raise DrivetrainError("--by says how to sample.", do="Say --sample ROWS too.")
        keys = tuple(one.strip() for one in key.split(",") if one.strip())
        created = datasets_of(project).create(
            name,
            origin,
            declared=read_schema(schema) if schema is not None else NOTHING_DECLARED,
            sampling=SampleV1(rows=sample, seed=seed, by=by) if sample is not None else None,
            split=_split(split, keys, group_by, similar, seed),
            key=keys,
            allow_quarantine=allow_quarantine,
        )
    except DrivetrainError as error:
        fail(error)
    made = created.dataset
    if as_json:
        print_json({**dataset_json(made), "violations": msgspec.to_builtins(created.quarantined)})
        return
    typer.echo(f"{made.name}@{made.number}: {counted(made.rows, 'row')}, content {made.content_hash}")
    for part, rows in made.split_rows.items():
        typer.echo(f"  {part}: {rows:,}")
    if made.quarantine is not None:
        rows, violations = made.quarantine.rows, made.quarantine.violations
        typer.echo(f"left out, in quarantine: {counted(rows, 'row')}, {counted(violations, 'violation')}:")
        for one in created.quarantined:
            typer.echo(f"  {plain(str(one))}")


@app.command("list")
def list_command(project: Project = None, as_json: Json = False) -> None:
    """List the newest number of every Dataset."""
    try:
        found = datasets_of(project).newest()
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({"datasets": [dataset_json(one) for one in found]})
    elif not found:
        typer.echo("There is no Dataset. `drivetrain dataset create NAME --from-file FILE` makes one.")
    else:
        columns = [Column("dataset"), Column("rows", right=True), Column("columns", right=True, drop=3)]
        columns += [Column("made", drop=2), Column("from", drop=4)]
        print_table(
            columns,
            [
                [f"{one.name}@{one.number}", f"{one.rows:,}", str(len(one.all_columns)), iso(one.made_ns),
                 plain(", ".join(_short(artifact) for artifact in one.inputs))]
                for one in found
            ],
        )  # fmt: skip


@app.command("show")
def show_command(reference: Reference, project: Project = None, as_json: Json = False) -> None:
    """Show one number: columns and constraints, counts, splits, what it was made from, how fresh it is."""
    try:
        datasets = datasets_of(project)
        found = datasets.show(reference)
        numbers = datasets.numbers(found.name)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({**dataset_json(found), "numbers": numbers})
        return
    facts = {
        "dataset": f"{found.name}@{found.number} of {', '.join(map(str, numbers[-10:]))}",
        "made": f"{iso(found.made_ns)} by {found.made_by or '-'}",
        "rows": f"{found.rows:,}",
        "content": found.content_hash,
        "from": found.origin,
        "inputs": ", ".join(found.inputs) or "-",
        "newest": ", ".join(f"{name} {_moment(us)}" for name, us in found.newest.items()) or "-",
        "personal": ", ".join(one.name for one in found.schema.columns if one.personal) or "-",
    }
    if found.split is not None:
        facts["splits"] = ", ".join(f"{name} {rows:,}" for name, rows in found.split_rows.items())
        facts["split by"] = _told_split(found.split)
    if found.sample is not None:
        by = f", the same of each {found.sample.by}" if found.sample.by else ""
        facts["sample"] = f"{found.sample.rows:,} of {found.sample.of:,}{by}, seed {found.sample.seed}"
    if found.erased:
        facts["erased"] = f"{sum(one.rows for one in found.erased):,} rows, last {iso(found.erased[-1].at_ns)}"
    if found.quarantine is not None:
        facts["left out"] = f"{found.quarantine.rows:,} rows, {found.quarantine.violations:,} violations"
    for name, value in facts.items():
        typer.echo(f"{name:9} {plain(value)}")
    typer.echo("")
    print_table(
        [Column("column"), Column("type"), Column("constraints", drop=1)],
        [[plain(one.name), one.type, plain(_constraints(one))] for one in found.all_columns],
    )


@app.command("diff")
def diff_command(
    before: Reference,
    after: Reference,
    *,
    key: Annotated[str, typer.Option(help="Columns that tell rows apart; by default what both know.")] = "",
    label: Annotated[str, typer.Option(help="Compare how often this column has each value.")] = "",
    project: Project = None,
    as_json: Json = False,
) -> None:
    """Say what changed: columns, rows by key, labels."""
    try:
        keys = tuple(one.strip() for one in key.split(",") if one.strip())
        found = datasets_of(project).diff(before, after, key=keys, label=label)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({**msgspec.to_builtins(found), "same": found.is_same})
    else:
        _print_difference(found)


@app.command("verify")
def verify_command(reference: Reference, project: Project = None, as_json: Json = False) -> None:
    """Check files, rows, constraints and the control log against the manifest; exit code 1 where they differ."""
    try:
        found = datasets_of(project).verify(reference)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({**msgspec.to_builtins(found), "whole": found.whole})
    elif found.whole:
        typer.echo(f"whole: {found.artifact}, {found.rows:,} rows, content {found.content_hash}")
    else:
        typer.echo("\n".join(plain(one) for one in found.findings), err=True)
    if not found.whole:
        raise typer.Exit(1)


@app.command("export")
def export_command(
    reference: Reference,
    *,
    format: Annotated[str, typer.Option(help="csv, jsonl or parquet.")] = "csv",
    to: Annotated[Path | None, typer.Option(help="The file; by default NAME@NUMBER.FORMAT here.")] = None,
    split: Annotated[str | None, typer.Option(help="Only this split.")] = None,
    without_personal: Annotated[bool, typer.Option("--without-personal", help="Leave personal columns out.")] = False,
    project: Project = None,
    as_json: Json = False,
) -> None:
    """Write its rows to a file that is not there yet; the control log keeps that it was done."""
    from drivetrain.datasets.checks import counted

    try:
        datasets = datasets_of(project)
        found = datasets.show(reference)
        part = f".{split}" if split else ""
        target = to if to is not None else Path(f"{found.name}@{found.number}{part}.{format}")
        numbered = f"{found.name}@{found.number}"
        done = datasets.export(numbered, target, format=format, split=split, personal=not without_personal)
    except DrivetrainError as error:
        fail(error)
    if done.personal:
        told = f"{done.path} holds personal columns: {', '.join(done.personal)}; --without-personal leaves them out"
        typer.echo(plain(told), err=True)
    if as_json:
        print_json(msgspec.to_builtins(done))
        return
    without = f", without {', '.join(done.left_out)}" if done.left_out else ""
    typer.echo(plain(f"{done.path}: {counted(done.rows, 'row')}{without}"))


def dataset_json(dataset: DatasetV1) -> dict[str, Any]:
    """A Dataset as JSON has it: its manifest, with times for people beside those for machines."""
    newest = {name: _moment(us) for name, us in dataset.newest.items()}
    return {**msgspec.to_builtins(dataset), "made": iso(dataset.made_ns), "newest_times": newest}


def datasets_of(project: Path | None) -> Datasets:
    """The Datasets of a project, by its settings alone: its code may be broken."""
    from drivetrain.adapters.files import FileVault
    from drivetrain.adapters.sqlite import open_control_log
    from drivetrain.cli.lake_place import lake_of
    from drivetrain.datasets import Datasets, staging_folder
    from drivetrain.embedded.applying import person

    places = ledger_places(project)
    lake = lake_of(places)
    assert lake.objects is not None, "a project's lake has a place for files"
    return Datasets(
        lake,
        lake.objects,
        open_control_log(places.data_folder, places.keys_folder),
        vault=FileVault(places.keys_folder, payload_days=places.payload_days),
        root=places.root,
        scratch=staging_folder(places.data_folder),
        actor=person(),
    )


def _origin(
    query: str | None, from_file: str | None, from_calls: str | None, outcomes: tuple[str, ...], anywhere: bool
) -> Origin:
    from drivetrain.datasets import FromCalls, FromFile, FromQuery

    if sum(one is not None for one in (query, from_file, from_calls)) != 1:
        raise DrivetrainError("A Dataset comes from one place.", do="Give one of --from, --from-file and --from-calls.")
    if outcomes and from_calls is None:
        raise DrivetrainError("--with-outcomes goes with --from-calls.", do="A query joins `outcomes` itself.")
    if query is not None:
        return FromQuery(query)
    if from_file is not None:
        return FromFile(from_file, anywhere)
    assert from_calls is not None
    return FromCalls(from_calls, outcomes)


def _split(shares: str | None, key: tuple[str, ...], group_by: str, similar: float | None, seed: int) -> SplitV1 | None:
    from drivetrain.core.datasets import SplitV1
    from drivetrain.datasets.splits import SIMILAR, parse_shares

    if shares is None:
        if group_by or similar is not None:
            raise DrivetrainError(
                "--group-by and --similar say how to split.", do="Say --split train=0.8,test=0.2 too."
            )
        return None
    alike = (SIMILAR if similar is None else similar) if group_by else 1.0
    return SplitV1(shares=parse_shares(shares), seed=seed, key=key, group_by=group_by, similar=alike)


def _constraints(column: ColumnV1) -> str:
    said = [] if column.nullable else ["not null"]
    said += ["unique"] if column.unique else []
    said += [f"{name} {value}" for name in ("minimum", "maximum") if (value := getattr(column, name)) is not None]
    said += [f"one of {', '.join(map(str, column.values))}"] if column.values else []
    said += [
        f"{name} {value}" for name in ("pattern", "references", "fresh_within") if (value := getattr(column, name))
    ]
    return "; ".join(said + (["personal"] if column.personal else []))


def _told_split(split: SplitV1) -> str:
    shares = ", ".join(f"{name}={share:g}" for name, share in split.shares)
    alike = "" if split.similar >= 1 else f" at least {split.similar:g} alike"
    grouped = f", together what is{alike or ' equal'} in {split.group_by}" if split.group_by else ""
    return f"{shares} by {', '.join(split.key) or 'the whole row'}{grouped}, seed {split.seed}"


def _print_difference(found: Difference) -> None:
    if found.is_same:
        typer.echo(f"{found.before} and {found.after} are the same: {found.rows_after:,} rows.")
        return
    for sign, names in (("+", found.columns_added), ("-", found.columns_removed), ("~", found.columns_changed)):
        for name in names:
            typer.echo(f"{sign} column {plain(name)}")
    by = f"by {', '.join(found.key)}" if found.key else "as a whole"
    typer.echo(plain(f"rows {found.rows_before:,} -> {found.rows_after:,}, told apart {by}:"))
    for sign, word, count, keys in (
        ("+", "added", found.added, found.keys_added),
        ("-", "removed", found.removed, found.keys_removed),
        ("~", "changed", found.changed, found.keys_changed),
    ):
        shown = ", ".join(keys) + (" ..." if count > len(keys) else "") if found.key and keys else ""
        typer.echo(plain(f"  {sign} {count:,} {word}{': ' if shown else ''}{shown}"))
    if found.moved:
        typer.echo(f"  > {found.moved:,} in another split")
    for name, counts in found.labels.items():
        typer.echo("")
        print_table(
            [Column(plain(name)), Column(found.before, right=True), Column(found.after, right=True)],
            [[plain(one.value), f"{one.before:,}", f"{one.after:,}"] for one in counts],
        )


def _short(artifact: str) -> str:
    """Without the 64 digits of a file's hash."""
    name, at, version = artifact.rpartition("@")
    return f"{name}{at}{version[:8]}" if at else artifact


def _moment(us: int) -> str:
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
    except OverflowError:
        return f"{us} us"  # beyond the years that Python has
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
