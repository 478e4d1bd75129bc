"""`drivetrain sql`: one SELECT over the lake's named tables, as a table, JSON, CSV or Parquet."""

from __future__ import annotations

import base64
import csv
import math
import os
import resource
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import msgspec
import typer

from drivetrain.cli.ending import fail
from drivetrain.cli.options import Project
from drivetrain.cli.places import plain
from drivetrain.cli.tables import Column, print_table
from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.disk import whole_path

if TYPE_CHECKING:
    from drivetrain.lake.answers import Stream
    from drivetrain.lake.lake import Lake

CELL_CHARACTERS = 60
"""Of a value in the table for people; the other forms have all of it."""
STDIN_BYTES_MAX = 4 * 1024 * 1024
"""A longer query was not written by anybody."""
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""Spreadsheets run a text that begins so."""
INT64_MAX = 2**63 - 1
PROCESS_BYTES_MAX = 4 * 1024**3
"""Of this command: DuckDB's 1 GiB, an answer, and what functions take beside them. Others need the rest."""
GRACE_S = 10.0
"""An interrupted query ends within a second, unless one call of a function takes that long."""


def sql_command(
    query: Annotated[
        str | None,
        typer.Argument(help="One SELECT; `-` or nothing: from standard input. With --tables: part of a name."),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array of objects.")] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV; a text that a spreadsheet would run gets a `'`.")
    ] = False,
    csv_raw: Annotated[bool, typer.Option("--csv-raw", help="Print CSV with every text as it is.")] = False,
    parquet: Annotated[Path | None, typer.Option(help="Write a Parquet file.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Rows in the table for people.")] = 100,
    timeout: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds that it may take.")] = 300.0,
    tables: Annotated[bool, typer.Option("--tables", help="List the named tables and their columns.")] = False,
    project: Project = None,
) -> None:
    """Ask the lake: calls, attempts, outcomes, spend, control, dataset.NAME, feature.VIEW, push.SOURCE. Read-only."""
    from drivetrain.cli.lake_place import lake_of
    from drivetrain.cli.places import ledger_places

    try:
        if sum((as_json, as_csv or csv_raw, parquet is not None)) > 1:
            raise DrivetrainError("One form at a time.", do="Give --json, --csv or --parquet FILE.")
        lake = lake_of(ledger_places(project))
        if tables:
            _list_tables(lake, as_json, query or "")
            return
        text = _read() if query is None or query == "-" else query
        with _bounded_process(timeout), lake.stream(text, timeout_s=timeout) as rows:
            if as_json:
                _print_json(rows)
            elif as_csv or csv_raw:
                _print_csv(rows, sys.stdout, safe=not csv_raw)
            elif parquet is not None:
                count = _write_parquet(rows, parquet)
                typer.echo(f"{count:,} row{'s' if count != 1 else ''} in {parquet}", err=True)
            else:
                _print_rows(rows, limit)
    except DrivetrainError as error:
        fail(error)
    except MemoryError:
        typer.echo("The answer needs more memory than a query may take.\nAsk for fewer columns or rows.", err=True)
        raise typer.Exit(1) from None


@contextmanager
def _bounded_process(timeout_s: float) -> Iterator[None]:
    """In it this process takes no more than `PROCESS_BYTES_MAX`, and ends `GRACE_S` after the query had to.

    DuckDB neither counts nor interrupts what one call of a function does: `repeat('x', 3000000000)`.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    most = PROCESS_BYTES_MAX if before[1] == resource.RLIM_INFINITY else min(PROCESS_BYTES_MAX, before[1])
    watch = threading.Timer(timeout_s + GRACE_S, _give_up, (timeout_s,))
    watch.daemon = True
    watch.start()
    resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
        watch.cancel()


def _give_up(timeout_s: float) -> None:
    sys.stderr.write(f"The query took longer than {timeout_s:g} s, and cannot be interrupted: the process ends.\n")
    sys.stderr.flush()
    os._exit(1)


def _read() -> str:
    if sys.stdin.isatty():
        raise DrivetrainError("There is no query.", do='Write it in quotes: `drivetrain sql "from calls limit 5"`.')
    content = sys.stdin.buffer.read(STDIN_BYTES_MAX + 1)
    if len(content) > STDIN_BYTES_MAX:
        raise DrivetrainError(f"The query on standard input has more than {STDIN_BYTES_MAX:,} bytes.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DrivetrainError(f"The query on standard input is not UTF-8: {error}.") from None


def _list_tables(lake: Lake, as_json: bool, part: str) -> None:
    found = [table for table in lake.named() if part.lower() in table.name.lower()]
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
        return
    if not found:
        raise DrivetrainError(f"No table's name has `{part}`.", do="`drivetrain sql --tables` lists all.")
    rows = [
        [plain(table.name) if place == 0 else "", plain(column), plain(kind)]
        for table in found
        for place, (column, kind) in enumerate(table.columns.items())
    ]
    print_table([Column("table"), Column("column"), Column("type", drop=1)], [_cut(row) for row in rows])


def _print_json(rows: Stream) -> None:
    names = _distinct(rows.columns)
    before = "["
    for batch in rows.batches():
        for row in batch:
            one = dict(zip(names, map(_for_json, row), strict=True))
            sys.stdout.write(f"{before}{msgspec.json.encode(one).decode()}")
            before = ",\n"
    sys.stdout.write("[]\n" if before == "[" else "]\n")


def _for_json(value: Any) -> Any:
    """What JSON has no form for, as text; a number that is none as null."""
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int):
        return value if -INT64_MAX <= value <= INT64_MAX else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return f"{value.isoformat()}Z" if value.tzinfo is None else value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(name): _for_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(one) for one in value]
    return str(value)


def _print_csv(rows: Stream, file: TextIO, *, safe: bool) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_cell(name, safe) for name in rows.columns])
    for batch in rows.batches():
        writer.writerows([_cell(value, safe) for value in row] for row in batch)


def _cell(value: Any, safe: bool) -> Any:
    """A value as CSV has it: nested ones as JSON, null as nothing. Only texts can be formulas, numbers never are."""
    if value is None or isinstance(value, bool | int | float):
        return (
            {None: "", True: "true", False: "false"}.get(value, value)
            if not isinstance(value, int | float) or isinstance(value, bool)
            else value
        )
    if isinstance(value, dict | list | tuple):
        text = msgspec.json.encode(_for_json(value)).decode()
    else:
        text = str(_for_json(value))
    return f"'{text}" if safe and isinstance(value, str) and text.startswith(FORMULA_STARTS) else text


def _write_parquet(rows: Stream, path: Path) -> int:
    """The rows as one file, whole or not at all; how many there were."""
    import duckdb

    config: dict[str, str | bool | int | float | list[str]] = {"threads": 1, "python_enable_replacements": False}
    try:
        with whole_path(path) as half, duckdb.connect(":memory:", config=config) as connection:
            connection.register("answer", rows)
            (count,) = connection.execute(
                "COPY answer TO $path (FORMAT parquet, COMPRESSION zstd)", {"path": str(half)}
            ).fetchall()[0]
    except (OSError, duckdb.IOException) as error:
        raise DrivetrainError(
            f"{path} cannot be written: {error}.", do="Make room there, or name another file."
        ) from error
    return int(count)


def _print_rows(rows: Stream, limit: int) -> None:
    shown: list[Sequence[Any]] = []
    for batch in rows.batches():
        shown.extend(batch[: limit + 1 - len(shown)])
        if len(shown) > limit:
            break
    numbers = {place for place, kind in enumerate(rows.types) if kind.startswith(NUMBERS)}
    columns = [Column(plain(name), right=place in numbers, drop=place) for place, name in enumerate(rows.columns)]
    print_table(columns, [_cut(map(_text, row)) for row in shown[:limit]])
    if not shown:
        typer.echo("no rows")
    if len(shown) > limit:
        typer.echo(f"(more than {limit:,} rows; --limit shows more, --json, --csv and --parquet have all)", err=True)


NUMBERS = ("BIGINT", "DECIMAL", "DOUBLE", "FLOAT", "HUGEINT", "INTEGER", "SMALLINT", "TINYINT", "U")
"""How DuckDB's names of numeric types begin; all that begin with U, but UUID, are unsigned."""


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return plain(value).replace("\n", "\\n").replace("\t", "\\t")
    made = _for_json(value)
    return plain(made if isinstance(made, str) else msgspec.json.encode(made).decode())


def _cut(cells: Iterator[str] | Sequence[str]) -> list[str]:
    return [cell if len(cell) <= CELL_CHARACTERS else cell[: CELL_CHARACTERS - 1] + "…" for cell in cells]


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of an object's fields: a second `n` becomes `n_2`, or its value would be lost."""
    found: list[str] = []
    for name in names:
        fresh, number = name, 1
        while fresh in found:
            number += 1
            fresh = f"{name}_{number}"
        found.append(fresh)
    return found
