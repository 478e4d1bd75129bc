"""`drivetrain freshness`: the newest event of every source and view, its age, and whether a promise is kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from drivetrain.cli.ending import fail
from drivetrain.cli.options import Project
from drivetrain.cli.places import ledger_places, plain
from drivetrain.cli.tables import Column, print_table
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.times import iso

if TYPE_CHECKING:
    from drivetrain.features.freshness import Freshness

LATE_EXIT_CODE = 3
"""Something is later than promised; 1 stays for what went wrong."""


def freshness_command(
    project: Project = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """How old the newest event of every source and feature view is. Exit code 3 where one is later than promised.

    A promised source that is not there yet, or has no rows, is late too.
    """
    try:
        found = measured(project, now_ns=time.time_ns())
    except DrivetrainError as error:
        fail(error)
    if as_json:
        typer.echo(msgspec.json.encode([freshness_json(one) for one in found]).decode())
    elif found:
        _print(found)
    else:
        typer.echo("The project declares no source.")
    if any(one.standing == "late" for one in found):
        raise typer.Exit(LATE_EXIT_CODE)


def measured(project: Path | None, *, now_ns: int) -> list[Freshness]:
    """The freshness of everything that a project declares. Raises: DrivetrainError."""
    from drivetrain.cli.lake_place import lake_of
    from drivetrain.cli.lineage import opened_control
    from drivetrain.features.freshness import freshness
    from drivetrain.lineage.declared import declared_artifacts
    from drivetrain.lineage.graph import Graph
    from drivetrain.lineage.made import read_history
    from drivetrain.project import load, unload

    places = ledger_places(project)
    snapshot = load(places.root)
    try:
        control = opened_control(places)
        records = control.records() if control is not None else iter(())
        graph = Graph(read_history(records), declared_artifacts(snapshot))
        return freshness(snapshot, graph, lake_of(places), now_ns=now_ns)
    finally:
        unload(snapshot)


def freshness_json(one: Freshness) -> dict[str, Any]:
    """One row as JSON has it."""
    newest = None if one.newest_ns is None else iso(one.newest_ns)
    return {**msgspec.to_builtins(one), "newest": newest, "standing": one.standing}


def age_text(seconds: float | None) -> str:
    """`12.0 s`, `3.5 m`, `2.0 h`, `1.5 d`."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if abs(seconds) >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _print(found: list[Freshness]) -> None:
    rows = [
        [
            plain(one.artifact),
            "-" if one.newest_ns is None else iso(one.newest_ns),
            age_text(one.age_s),
            age_text(one.promise_s),
            one.standing.upper() if one.standing == "late" else one.standing,
            plain(one.note).replace("\n", " "),
        ]
        for one in found
    ]
    columns = [
        Column("of"), Column("newest event", drop=2), Column("age", right=True), Column("promised", right=True),
        Column("is"), Column("note", drop=1),
    ]  # fmt: skip
    print_table(columns, rows)
