"""Where a Dataset's rows come from: a query of the lake, a file, or Calls; staged, with what they were made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from drivetrain.core.codec import JSON_ANY
from drivetrain.core.errors import DrivetrainError
from drivetrain.datasets.schema import Declared
from drivetrain.datasets.staging import Bench, Staged, stage_stream
from drivetrain.lake.lake import Lake, again
from drivetrain.ports.tables import TableStore

_DERIVED = {"attempts": "calls", "outcomes_history": "outcomes"}
"""Views of the lake -> the table that they show."""


class FromQuery(msgspec.Struct, frozen=True):
    """`--from`: one SELECT over the lake's named tables."""

    sql: str


class FromFile(msgspec.Struct, frozen=True):
    """`--from-file`: a CSV, JSON-lines or Parquet file."""

    path: str
    """Relative to the project."""
    anywhere: bool = False
    """Whether it may lie outside the project."""


class FromCalls(msgspec.Struct, frozen=True):
    """`--from-calls`: Calls with what they were asked and what they answered."""

    where: str
    """A condition over the lake's table `calls`."""
    outcomes: tuple[str, ...] = ()
    """Metrics whose value becomes a column `outcome_METRIC`."""


Origin = FromQuery | FromFile | FromCalls


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Staged rows and where they came from."""

    staged: Staged
    inputs: tuple[str, ...]
    origin: str
    declared: Declared


def stage_query(bench: Bench, lake: Lake, query: FromQuery, declared: Declared) -> Source:
    """The rows of a query; times without a zone are UTC, as the lake's are. Raises: DrivetrainError."""

    def ask() -> Staged:
        with lake.stream(query.sql) as stream:
            return stage_stream(bench, stream.columns, stream.types, stream, naive_is_utc=True)

    staged = again(ask)
    if not staged.rows:
        raise DrivetrainError(
            "The query gives no row, and a Dataset has at least one.", do="Ask it by `drivetrain sql`."
        )
    return Source(staged=staged, inputs=inputs_of(bench, query.sql, lake.tables), origin=query.sql, declared=declared)


def inputs_of(bench: Bench, sql: str, tables: TableStore | None) -> tuple[str, ...]:
    """The artifacts that a SELECT reads, each as it is now."""
    tree = JSON_ANY.decode(bench.one("SELECT json_serialize_sql(?)", [sql.strip().rstrip(";")]))
    common = {name for node in _nodes(tree) for name in _common_names(node)}
    found = set()
    for node in _nodes(tree):
        if node.get("type") == "BASE_TABLE":
            schema, name = str(node.get("schema_name", "")), str(node.get("table_name", ""))
            if schema or name not in common:
                found.add(_artifact(schema, name, tables))
    return tuple(sorted(found))


def _artifact(schema: str, name: str, tables: TableStore | None) -> str:
    if schema == "dataset":
        return f"dataset:{name}"
    if schema == "feature":
        return f"features:{name.partition('@')[0]}"  # what follows is a moment, and no version of a definition
    table = f"{schema}/{name}" if schema not in ("", "main", "temp") else _DERIVED.get(name, name)
    info = tables.info(table) if tables is not None else None
    return f"table:{table}@{info.version}" if info is not None else f"table:{table}"


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    below: Sequence[Any] = ()
    if isinstance(tree, dict):
        yield tree
        below = list(tree.values())
    elif isinstance(tree, list):
        below = tree
    for one in below:
        yield from _nodes(one)


def _common_names(node: dict[str, Any]) -> Iterator[str]:
    """Names of a WITH, which are no tables."""
    common = node.get("cte_map")
    if isinstance(common, dict):
        for entry in common.get("map", ()):
            yield str(entry.get("key", ""))
