"""`drivetrain cost`: what Calls cost, by any attribute, with the ledger's own total, and what idle machines cost."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from drivetrain.cli.ending import fail
from drivetrain.cli.options import Json, Moment, Project, Until
from drivetrain.cli.places import ledger_places, moment_ns, plain
from drivetrain.cli.tables import Column, print_table
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.money import usd

if TYPE_CHECKING:
    from drivetrain.cli.machines import MachineCost
    from drivetrain.lake.costs import CostRow, CostTable

ROWS_SHOWN = 100
"""In the table for people; the rest is one row. --json and --csv have all."""


def cost_command(
    *,
    by: Annotated[
        str,
        typer.Option(help="Dimensions, comma-separated: team, workflow, variant, model, user, tag:NAME, day ..."),
    ] = "workflow",
    since: Moment = None,
    until: Until = None,
    where: Annotated[list[str] | None, typer.Option(help="DIMENSION=VALUE; several of one are alternatives.")] = None,
    project: Project = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, without the total.")] = False,
) -> None:
    """What Calls cost, dearest first, with the total of the ledger, and the idle time of machines paid by the hour."""
    from drivetrain.cli.lake_place import lake_of
    from drivetrain.cli.machines import machine_costs, machine_notices, machine_prices, print_machines
    from drivetrain.lake.costs import LedgerQueries

    try:
        places = ledger_places(project)
        names = tuple(name.strip() for name in by.split(",") if name.strip())
        since_ns = moment_ns(since) if since else None
        until_ns = moment_ns(until) if until else None
        lake = lake_of(places)
        table = LedgerQueries(lake).cost(names, since_ns=since_ns or 0, until_ns=until_ns, where=_filters(where or []))
        machines = machine_costs(
            lake,
            machine_prices(places.root),
            since_ns=since_ns,
            until_ns=until_ns,
            now_ns=time.time_ns(),
        )
    except DrivetrainError as error:
        fail(error)
    if as_json:
        typer.echo(msgspec.json.encode(table_json(table, machines)).decode())
    elif as_csv:
        _print_csv(table)
        for one in machines:
            typer.echo(f"idle: {plain(one.model)} {usd(one.idle_nano_usd)} USD of its hours is in no row", err=True)
    else:
        _print_table(table)
        if machines:
            print_machines(machines)
    for notice in machine_notices(machines):
        typer.echo(f"warning: {notice}", err=True)
    for problem in table.problems:
        if problem.kind != "torn":
            typer.echo(f"warning: {problem}", err=True)


def table_json(table: CostTable, machines: Sequence[MachineCost] = ()) -> dict[str, Any]:
    """A CostTable as JSON has it: money as integer nano-USD and as a decimal string."""
    from drivetrain.cli.machines import machines_json

    return {
        "by": list(table.by),
        "rows": [{**dict(zip(table.by, row.keys, strict=True)), **_measures(row)} for row in table.rows],
        "total": _measures(table.total),
        "machines": machines_json(machines),
        "problems": [str(problem) for problem in table.problems],
    }


def _filters(where: list[str]) -> dict[str, list[str]]:
    filters: dict[str, list[str]] = {}
    for text in where:
        name, equals, value = text.partition("=")
        if not equals:
            raise DrivetrainError(f"`{text}` is no filter.", do="Write DIMENSION=VALUE, such as team=support.")
        filters.setdefault(name.strip(), []).append(value)
    return filters


def _measures(row: CostRow) -> dict[str, Any]:
    measures: dict[str, Any] = {name: getattr(row, name) for name in row.__struct_fields__ if name != "keys"}
    measures["cost_usd"] = usd(row.cost_nano_usd)
    return measures


def _print_csv(table: CostTable) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*table.by, *_measures(table.total)])
    for row in table.rows:
        writer.writerow([*(_cell(key) for key in row.keys), *_measures(row).values()])


def _cell(key: str) -> str:
    """A value that a spreadsheet does not take for a formula."""
    return f"'{key}" if key.startswith(("=", "+", "-", "@", "\t", "\r")) else key


def _print_table(table: CostTable) -> None:
    total = _texts(table.total)
    columns = [
        Column(plain(name), footer="total" if index == 0 else " " * bool(index)) for index, name in enumerate(table.by)
    ]
    columns += [
        Column(name, right=True, drop=DROPPED.get(name, 0), footer=footer)
        for name, footer in zip(MEASURES, total, strict=True)
    ]
    rows = [[*(plain(key) or "-" for key in row.keys), *_texts(row)] for row in table.rows[:ROWS_SHOWN]]
    rest = table.rows[ROWS_SHOWN:]
    if rest:
        label = [f"({len(rest)} more)", *[""] * (len(table.by) - 1)]
        cost = usd(sum(row.cost_nano_usd for row in rest))
        rows.append([*label, *("" if name != "USD" else cost for name in MEASURES)])
    print_table(columns, rows)


DROPPED = {"p95 ms": 8, "cached": 7, "reasoning": 6, "p99 ms": 5, "p50 ms": 4, "attempts": 3, "escalated": 2}
"""Measures that a narrow terminal does without, the highest first."""
MEASURES = ("calls", "attempts", "in", "cached", "out", "reasoning", "escalated", "p50 ms", "p95 ms", "p99 ms", "USD")


def _texts(row: CostRow) -> list[str]:
    latencies = ("-" if ms is None else f"{ms:,.1f}" for ms in (row.p50_ms, row.p95_ms, row.p99_ms))
    counts = (
        row.calls,
        row.attempts,
        row.input_tokens,
        row.input_cached_tokens,
        row.output_tokens,
        row.reasoning_tokens,
    )
    return [
        *(f"{count:,}" for count in counts),
        f"{row.escalated_share or 0.0:.1%}",
        *latencies,
        usd(row.cost_nano_usd),
    ]
