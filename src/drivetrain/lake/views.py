"""The named tables: what each is called, its columns, and the SQL that makes it of the lake's files and the tail.

Owns the names that people write in SQL. Each named table stands on the rows of one or two stored tables (`calls`,
`outcomes`, `spend`), which are the lake's Parquet files of one version and Arrow tables of what the segments hold
beyond it. Called by the lake, once per connection.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from drivetrain.core.sql import identifier, literal, literals
from drivetrain.lake.spend import spend_sql
from drivetrain.ports.control import ControlRecord

if TYPE_CHECKING:
    import duckdb

STORED = "stored_{}"
"""Name of the view over a stored table's rows, of the lake and of the tail together."""

CALLS_SQL = """
SELECT call_id, day, make_timestamp(opened_ns // 1000) AS opened, make_timestamp(closed_ns // 1000) AS closed,
    latency_us / 1000 AS latency_ms, * EXCLUDE (call_id, day, segment)
FROM stored_calls
"""
ATTEMPTS_SQL = """
SELECT call_id, day, opened, workflow, tenant, team, use_case, key, "user", tags, call_status, number,
    one.* REPLACE (one.variant AS variant)
FROM (
    SELECT * EXCLUDE (status, attempts), status AS call_status, unnest(attempts) AS one,
        generate_subscripts(attempts, 1) AS number
    FROM calls
)
"""
DECISIONS_SQL = """
SELECT call_id, day, opened, opened_ns, workflow, tenant, team, use_case, key, "user", tags, business_key, snapshot,
    status AS call_status, variant, degraded, cost_nano_usd, decision.policy AS policy, decision.version AS version,
    decision.action AS action, decision.reason AS reason, decision.rule AS rule, decision.chosen AS chosen,
    decision.explored AS explored, decision.propensity AS propensity, decision.confidence AS confidence,
    decision.failed AS failed, decision.sealed AS sealed
FROM calls WHERE decision IS NOT NULL
"""
HISTORY_SQL = """
SELECT call_id, workflow, business_key, metric, source, kind, text AS value, number,
    make_timestamp(event_ns // 1000) AS event_time, make_timestamp(arrived_ns // 1000) AS arrived,
    event_ns, arrived_ns, key, day
FROM stored_outcomes
"""
OUTCOMES_SQL = """
SELECT * FROM (
    SELECT * FROM outcomes_history WHERE call_id <> ''
    UNION ALL BY NAME
    SELECT o.* REPLACE (c.call_id AS call_id, c.day AS day)
    FROM outcomes_history o JOIN stored_calls c ON c.workflow = o.workflow AND c.business_key = o.business_key
    WHERE o.call_id = '' AND o.business_key <> ''
)
QUALIFY row_number() OVER (
    PARTITION BY call_id, metric, source ORDER BY arrived_ns DESC, event_ns DESC, value DESC
) = 1
"""
SPEND_SQL = "SELECT * FROM stored_spend"
"""Sums that are added up: one row per roll and group, so that a question sums them again."""
CONTROL_SQL = "SELECT seq, make_timestamp(at_ns // 1000) AS recorded, * EXCLUDE (seq) FROM stored_control"

NAMED: dict[str, tuple[str, tuple[str, ...]]] = {
    "calls": (CALLS_SQL, ("calls",)),
    "attempts": (ATTEMPTS_SQL, ("calls",)),
    "decisions": (DECISIONS_SQL, ("calls",)),
    "outcomes_history": (HISTORY_SQL, ("outcomes",)),
    "outcomes": (OUTCOMES_SQL, ("outcomes", "calls")),
    "spend": (SPEND_SQL, ("spend",)),
    "control": (CONTROL_SQL, ("control",)),
}
"""Name -> its SQL and the stored tables it stands on; later ones may use earlier ones."""
NEEDS: dict[str, tuple[str, ...]] = {
    "attempts": ("calls",),
    "decisions": ("calls",),
    "outcomes": ("outcomes_history",),
}
"""Named tables that a named table's SQL uses."""


class NamedTable(msgspec.Struct, frozen=True):
    """A table as it is written in SQL."""

    name: str
    columns: Mapping[str, str]
    """Name -> DuckDB's type."""


class Known(msgspec.Struct, frozen=True):
    """The Calls of the lake up to one roll."""

    paths: tuple[str, ...]
    """Files of the table `calls`."""
    ledger: str
    roll: int

    def sql(self, ids: Sequence[str]) -> str:
        """Those of `ids` that are there. Rolls of other ledgers are numbered apart, and all of them count."""
        return (
            f"SELECT call_id FROM {parquet(self.paths, by_day=True)} "  # noqa: S608 - quoted, or a number
            f"WHERE call_id IN ({', '.join(map(literal, ids))}) "
            f"AND (ledger <> {literal(self.ledger)} OR roll <= {self.roll})"
        )


class Rows(msgspec.Struct, frozen=True):
    """A stored table's rows at one moment."""

    tail: Any
    """An Arrow table with every column; for `spend` the Calls that it has not summed up yet."""
    paths: tuple[str, ...] = ()
    """The lake's Parquet files, below folders `day=...`."""
    doubtful: tuple[str, ...] = ()
    """Ids in `tail` that count only where the lake's files have none of them."""
    known: Known | None = None
    """Where to look for them."""


def stored_for(names: Collection[str]) -> set[str]:
    """The stored tables that these named tables stand on."""
    return {stored for name in names for stored in NAMED[name][1]}


def make_views(connection: duckdb.DuckDBPyConnection, names: Collection[str], stored: Mapping[str, Rows]) -> None:
    """The named tables `names`; stored: at least `stored_for(names)`."""
    for name, rows in stored.items():
        connection.register(f"tail_{name}", rows.tail)
        own = " EXCLUDE (ledger, roll)" if name != "control" else ""
        fresh, files = f"SELECT *{own} FROM tail_{name}", ""  # noqa: S608 - our own names, here and below
        if rows.paths:
            files = f" UNION ALL BY NAME SELECT *{own} FROM {parquet(rows.paths, by_day=True)}"  # noqa: S608
        if rows.doubtful and rows.known is not None:
            fresh += f" WHERE call_id NOT IN ({rows.known.sql(rows.doubtful)})"
        if name == "spend":
            fresh = spend_sql(f"({fresh})")
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {STORED.format(name)} AS {fresh}{files}")
    wanted = set(names).union(*(NEEDS.get(name, ()) for name in names))
    for name, (sql, _) in NAMED.items():
        if name in wanted:
            connection.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS {sql}")


def make_registered(
    connection: duckdb.DuckDBPyConnection, schema: str, tables: Mapping[str, Sequence[Path | str]]
) -> None:
    """Tables of another room, as `schema.name`; one without files has no columns and is left out."""
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {identifier(schema)}")
    for name, paths in tables.items():
        if paths:
            source = parquet([str(path) for path in paths])
            view = f"{identifier(schema)}.{identifier(name)}"
            connection.execute(f"CREATE OR REPLACE VIEW {view} AS SELECT * FROM {source}")  # noqa: S608 - quoted


def table_columns(connection: duckdb.DuckDBPyConnection) -> list[NamedTable]:
    """Every named table that a connection has."""
    rows = connection.execute(
        "SELECT schema_name, table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal "
        "ORDER BY schema_name, table_name, column_index"
    ).fetchall()
    found: dict[str, dict[str, str]] = {name: {} for name in NAMED}
    for schema, table, column, kind in rows:
        if schema != "main":
            found.setdefault(f"{schema}.{table}", {})[column] = kind
        elif table in NAMED:
            found[table][column] = kind
    return [NamedTable(name, columns) for name, columns in found.items() if columns]


def control_rows(records: Iterable[ControlRecord]) -> Rows:
    """The control log as rows."""
    from arro3.core import Array, DataType, Table

    found = list(records)
    fields = ControlRecord.__struct_fields__
    kinds = {"seq": DataType.int64(), "at_ns": DataType.int64()}
    columns: dict[str, Any] = {
        name: Array([getattr(record, name) for record in found], kinds.get(name, DataType.string())) for name in fields
    }
    return Rows(Table.from_pydict(columns))


def parquet(paths: Sequence[str], *, by_day: bool = False) -> str:
    """SQL that reads Parquet files; columns that only some have are null in the others."""
    days = ", hive_partitioning=true, hive_types={'day': DATE}" if by_day else ""
    return f"read_parquet({literals(paths)}, union_by_name=true{days})"
