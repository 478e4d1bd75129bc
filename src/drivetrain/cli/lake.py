"""`drivetrain lake`: what is in it, and its upkeep; a serving gateway does the upkeep by itself."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from drivetrain.cli.ending import fail
from drivetrain.cli.options import AnyJson, Project
from drivetrain.core.errors import DrivetrainError

MAINTAIN_S = 3_600
"""Between two tidyings by `roll`: they rewrite files, which is dear."""

app = typer.Typer(help="The lake: what is in it, rolling records into it, tidying it up.", no_args_is_help=True)


@app.command("show")
def show_command(project: Project = None, as_json: AnyJson = False) -> None:
    """Every table: rows, files, size, when it last changed; and what waits to be rolled."""
    import msgspec

    from drivetrain.cli.tables import Column, print_table
    from drivetrain.core.times import iso
    from drivetrain.embedded.upkeep import Upkeep

    try:
        upkeep = Upkeep(project)
        found = {name: upkeep.tables.info(name) for name in upkeep.tables.tables()}
        waiting = upkeep.waiting_bytes()
    except DrivetrainError as error:
        fail(error)
    if as_json:
        typer.echo(msgspec.json.encode({"tables": found, "waiting_bytes": waiting}).decode())
        return
    rows = [
        (name, f"{info.version}", f"{info.rows:,}", f"{info.files:,}", f"{info.size_bytes:,}", iso(info.changed_ns))
        for name, info in found.items()
        if info is not None
    ]
    columns = [Column("table"), *(Column(name, right=True) for name in ("version", "rows", "files", "bytes"))]
    print_table([*columns, Column("changed")], rows)
    typer.echo(f"{waiting:,} bytes of records wait to be rolled")


@app.command("roll")
def roll_command(
    project: Project = None,
    as_json: AnyJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing where all went well.")] = False,
) -> None:
    """Roll what waits into the lake; once an hour, tidy it up too. Harmless beside a serving gateway."""
    import msgspec

    from drivetrain.embedded.upkeep import Upkeep

    try:
        upkeep = Upkeep(project)
        rolled = upkeep.roller().roll()
        if not rolled.elsewhere and upkeep.due(time.time(), MAINTAIN_S):
            upkeep.maintain()
    except DrivetrainError as error:
        fail(error)
    if as_json:
        typer.echo(msgspec.json.encode(rolled).decode())
    elif rolled.elsewhere:
        if not quiet:
            typer.echo("another process is rolling; nothing was done")
    elif not quiet:
        typer.echo(f"{rolled.calls:,} Calls and {rolled.outcomes:,} Outcomes rolled; roll {rolled.number}")


@app.command("maintain")
def maintain_command(project: Project = None, as_json: AnyJson = False) -> None:
    """Delete what is over (`keep_days`, `history_s`), make few files of many."""
    import msgspec

    from drivetrain.embedded.upkeep import Upkeep

    try:
        done = Upkeep(project).maintain()
    except DrivetrainError as error:
        fail(error)
    if as_json:
        typer.echo(msgspec.json.encode(done).decode())
    elif done.elsewhere:
        typer.echo("a roller is at work; nothing was done")
    else:
        typer.echo(
            f"deleted: {done.segments:,} rolled segments, {done.calls:,} Calls, {done.outcomes:,} Outcomes, "
            f"{done.vacuumed:,} replaced files; {done.compacted:,} files fewer"
        )
