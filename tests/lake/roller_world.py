"""A data folder that is written to and rolled, and what a reader of lake and tail sees of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

from drivetrain.adapters.lake_places import lake_place
from drivetrain.core.calls import Call, OutcomeV1
from drivetrain.lake.plans import PlanGone, current, ledger_of
from drivetrain.lake.roller import Roller
from drivetrain.lake.rows import Limits, call_of, outcome_of, tail
from drivetrain.ports.tables import TableFiles, TableStore
from support.records import DAY_NS, T0_NS, call_id


def outcome(number: int, value: str | float | bool = True, day: int = 0, **fields: Any) -> OutcomeV1:
    arrived_ns = T0_NS + max(day, 0) * DAY_NS + number
    given = {"metric": "resolved", "source": "crm", "event_ns": T0_NS, "arrived_ns": arrived_ns, **fields}
    return OutcomeV1(call_id(number, day), given.pop("metric"), given.pop("source"), value, **given)


def stores(data_folder: Path) -> TableStore:
    return lake_place("", {}, folder=data_folder / "lake", mirror=data_folder / "mirror").tables


def roller(data_folder: Path, **options: Any) -> Roller:
    limits = Limits(**options) if options else None
    return Roller(data_folder, stores(data_folder), limits=limits)


def seen_calls(data_folder: Path, tables: TableStore | None = None) -> list[Call]:
    """Every Call that a reader sees, as often as it sees it: the table at a fixed version and the tail beyond it."""
    return sorted(map(call_of, seen_rows(data_folder, "calls", tables)), key=lambda call: call.call_id)


def seen_outcomes(data_folder: Path, tables: TableStore | None = None) -> list[OutcomeV1]:
    return sorted(map(outcome_of, seen_rows(data_folder, "outcomes", tables)), key=str)


def seen_rows(data_folder: Path, table: str, tables: TableStore | None = None) -> list[dict[str, Any]]:
    tables = tables or stores(data_folder)
    for _ in range(5):
        try:
            ledger = ledger_of(data_folder)
            files = tables.files(table, transactions=[ledger.application]) if ledger else None
            plan = current(data_folder, files.transactions if files else {})
            beyond = tail(plan, data_folder)
        except PlanGone:
            continue
        rows = [] if files is None else table_rows(files)
        known = {row["call_id"] for row in rows}
        doubtful = set(beyond.doubtful) & known
        rows += [
            row for row in arrow_rows(getattr(beyond, table)) if table != "calls" or row["call_id"] not in doubtful
        ]
        return rows
    raise AssertionError("plans vanish faster than they are read")


def table_rows(files: TableFiles) -> list[dict[str, Any]]:
    if not files.paths:
        return []
    with duckdb.connect() as connection:
        relation = connection.sql(
            "SELECT * FROM read_parquet(?, hive_partitioning=true, union_by_name=true)", params=[list(files.paths)]
        )
        return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def arrow_rows(table: Any) -> list[dict[str, Any]]:
    with duckdb.connect() as connection:
        connection.register("arrow_rows", table)
        relation = connection.sql("SELECT * FROM arrow_rows")
        return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def spent(data_folder: Path, by: Sequence[str] = ()) -> Mapping[tuple[Any, ...], tuple[int, ...]]:
    """Group -> (calls, attempts, tokens, nano-USD) of the table `spend`."""
    files = stores(data_folder).files("spend")
    if files is None or not files.paths:
        return {}
    names = ", ".join(f'"{name}"' for name in by)
    with duckdb.connect() as connection:
        rows = connection.execute(
            f"SELECT {names + ',' if by else ''} sum(calls), sum(attempts), sum(output_tokens), sum(cost_nano_usd) "
            f"FROM read_parquet(?, hive_partitioning=true) {'GROUP BY ' + names if by else ''}",
            [list(files.paths)],
        ).fetchall()
    return {row[: len(by)]: tuple(map(int, row[len(by) :])) for row in rows}


class Halted(BaseException):
    """The process ends here."""


class HaltingTables:
    """Tables whose appends end the process, before or after the commit, when the count comes to `at`."""

    def __init__(self, tables: TableStore, at: int, raising: type[BaseException] | BaseException = Halted) -> None:
        self._tables = tables
        self._steps = itertools.count()
        self._at = at
        self._raising = raising

    def append(self, table: str, rows: Any, **options: Any) -> bool:
        self._step()
        done = self._tables.append(table, rows, **options)
        self._step()
        return done

    def _step(self) -> None:
        if next(self._steps) == self._at:
            raise self._raising

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tables, name)
