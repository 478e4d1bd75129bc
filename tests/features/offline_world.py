"""Random tables of features and labels, and what each label has to get, computed the slow and obvious way."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import msgspec
from arro3.core import Table

from drivetrain.core.features import AnySource, Entity, FeatureService, FeatureView, OnDemandFeatureView
from drivetrain.features.definitions import Definitions, define
from drivetrain.features.historical import Retrieved, historical_features
from drivetrain.features.labels import arrow_column
from drivetrain.project.snapshot import Features

START = datetime(2024, 2, 28, 23, 0, tzinfo=UTC)
"""Just before a leap day."""
NOWHERE = Path("/nowhere")
"""The project's folder where no file is read."""

_TYPES = {int: "int64", float: "float64", str: "string", bool: "bool", datetime: "timestamp"}


def minute(number: float) -> datetime:
    """A moment, by minutes after the start."""
    return START + timedelta(minutes=number)


def connection() -> duckdb.DuckDBPyConnection:
    """An empty database in memory, on two threads, in a time zone that must not matter."""
    database = duckdb.connect(config={"threads": 2})
    database.execute("SET TimeZone = 'America/New_York'")
    return database


def seed_of(name: str) -> int:
    """A new seed each time, printed; $DRIVETRAIN_TEST_SEED repeats one."""
    seed = int(os.environ.get("DRIVETRAIN_TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"{name}: DRIVETRAIN_TEST_SEED={seed}")
    return seed


def put(
    database: duckdb.DuckDBPyConnection, name: str, types: Mapping[str, type], rows: Iterable[Sequence[Any]]
) -> None:
    """Makes or replaces a table."""
    columns = list(zip(*rows, strict=True)) or [()] * len(types)
    arrays = {
        column: arrow_column(list(values), _TYPES[kind])
        for (column, kind), values in zip(types.items(), columns, strict=True)
    }
    database.register("put_rows", Table.from_pydict(arrays))
    database.execute(f'CREATE OR REPLACE TABLE "{name}" AS SELECT * FROM put_rows')
    database.unregister("put_rows")


def defined(*declared: FeatureView | OnDemandFeatureView | FeatureService) -> Definitions:
    """Definitions of what is given, and of nothing else."""
    views = {one.name: one for one in declared if isinstance(one, FeatureView)}
    entities: dict[str, Entity] = {one.name: one for view in views.values() for one in view.entities}
    sources: dict[str, AnySource] = {view.source.name: view.source for view in views.values()}
    on_demand = {one.name: one for one in declared if isinstance(one, OnDemandFeatureView)}
    services = {one.name: one for one in declared if isinstance(one, FeatureService)}
    return define(Features(entities=entities, views=views, on_demand=on_demand, services=services, sources=sources))


def ask(
    database: duckdb.DuckDBPyConnection,
    definitions: Definitions,
    labels: Any,
    features: str | Sequence[str],
    root: Path = NOWHERE,
    **options: Any,
) -> Retrieved:
    """`historical_features`, with less to write."""
    return historical_features(database, definitions, labels, features, root=root, **options)


class Row(msgspec.Struct, frozen=True):
    """One row of a source."""

    key: tuple[Any, ...]
    event: datetime | None
    created: datetime | None
    values: tuple[Any, ...]


def by_key(rows: Iterable[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows of each key; rows without a whole key belong to none."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if None not in row.key:
            found.setdefault(row.key, []).append(row)
    return found


def expected(
    rows: Iterable[Row], at: datetime, ttl: timedelta | None, *, created: bool, corrected: bool
) -> tuple[Any, ...] | None:
    """The values that hold at a moment, of rows of one key; None where none do. Written to be obvious.

    created: whether the source says when its rows were known.
    """
    best: Row | None = None
    for row in rows:
        if row.event is None or row.event > at:
            continue
        if created and not corrected and (row.created is None or row.created > at):
            continue
        if ttl is not None and row.event < at - ttl:
            continue
        if best is None or _rank(row, created) > _rank(best, created):
            best = row
    return None if best is None else best.values


def _rank(row: Row, created: bool) -> tuple[Any, ...]:
    known = _nulls_least(row.created) if created else ()
    return row.event, known, tuple(_nulls_least(value) for value in row.values)


def _nulls_least(value: Any) -> tuple[Any, ...]:
    return (False,) if value is None else (True, value)
