"""Pushed rows: checked, kept in the lake as `push.NAME`, and seen online at once.

Owns what a pushed row must look like and where it goes. The lake's row is the truth: every later materialization and
every training set reads it. The online row is its shadow until then; a late one never overwrites a newer one. Views
that sum up windows of the source move with the next materialization only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.features import PushSource
from drivetrain.features.definitions import Definitions, FeatureDefinition, KeyDefinition, ViewDefinition
from drivetrain.features.dtypes import SQL_TYPES, coerce, dtype_name, kind_of
from drivetrain.features.materialize import tables_of
from drivetrain.features.online import EPOCH, US, stored, stored_key
from drivetrain.features.scratch import quoted
from drivetrain.features.sources import PUSHED_CREATED
from drivetrain.ports.online import STRING_BYTES_MAX, OnlineStore, PartRow, Pushed, entity_key, newer
from drivetrain.ports.tables import TableStore

if TYPE_CHECKING:
    import duckdb

PUSH_ROWS_MAX = 100_000
"""Rows of one push, which are in memory at once; more are a file."""
FUTURE_US_MAX = 60_000_000
"""A row may be ahead of our clock by a minute: clocks differ. Later it would hide the truth until then."""
KEY_BYTES_MAX = 60_000
"""Of a row's join keys together: vectors have 16 bits for the length of theirs."""
ERRORS_SHOWN = 20
PUSHED = "push"
"""Where pushed rows are: the schema of SQL and the folder of the lake's tables."""
TO = ("online", "offline", "online_and_offline")
"""Feast's modes."""


class PushShape(msgspec.Struct, frozen=True, kw_only=True):
    """What rows of a push source look like."""

    name: str
    views: tuple[ViewDefinition, ...]
    keys: tuple[KeyDefinition, ...]
    """Join keys of all views that read it."""
    event: str
    created: str
    columns: Mapping[str, str]
    """Column -> type, besides keys and times."""


class PushedRows(msgspec.Struct, frozen=True):
    """What became of a push."""

    rows: int
    online: int
    """Rows written to online tables, several per row where several views read the source."""
    offline: bool


def push_shape(definitions: Definitions, name: str) -> PushShape:
    """The rows that a push source takes. Raises: DrivetrainError."""
    sources = {
        view.source.name: view.source for view in definitions.views.values() if isinstance(view.source, PushSource)
    }
    source = sources.get(name)
    if source is None:
        raise DrivetrainError(f"No FeatureView reads a PushSource `{name}`.", do=did_you_mean(name, sources))
    views = tuple(view for view in definitions.views.values() if view.source.name == name)
    columns: dict[str, str] = {one.name: dtype_name(one.dtype) for one in source.schema}
    for view in views:
        if view.windows:
            for window in view.windows:
                if window.column != "*":
                    columns.setdefault(window.column, window.column_dtype or "float64")
        else:
            for feature in view.features:
                columns.setdefault(feature.name, feature.dtype)
    keys = tuple(dict.fromkeys(key for view in views for key in view.keys))
    created = source.created_timestamp_column or PUSHED_CREATED
    for key in (*(one.name for one in keys), source.timestamp_field, created):
        columns.pop(key, None)
    return PushShape(name=name, views=views, keys=keys, event=source.timestamp_field, created=created, columns=columns)


def make_empty(connection: duckdb.DuckDBPyConnection, definitions: Definitions) -> None:
    """On a private connection, an empty table for each push source that nothing was pushed to yet: it has no rows."""
    there = {
        name
        for (name,) in connection.execute(
            f"SELECT table_name FROM information_schema.tables WHERE table_schema = '{PUSHED}'"  # noqa: S608 - a constant
        ).fetchall()
    }
    sources = {view.source.name for view in definitions.views.values() if isinstance(view.source, PushSource)}
    for name in sorted(sources - there):
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {PUSHED}")
        shape = push_shape(definitions, name)
        # Our own created column may be left out: of no row there is no late one.
        types = [(one, dtype) for one, dtype in _types(shape) if one != PUSHED_CREATED]
        columns = ", ".join(f"{quoted(one)} {SQL_TYPES[dtype]}" for one, dtype in types)
        connection.execute(f"CREATE TABLE {PUSHED}.{quoted(name)} ({columns})")


def _types(shape: PushShape) -> list[tuple[str, str]]:
    """Every column of a pushed row, as the lake keeps it."""
    times = [(shape.event, "timestamp"), (shape.created, "timestamp")]
    return [*((key.name, key.dtype) for key in shape.keys), *times, *shape.columns.items()]


def push(
    definitions: Definitions,
    tables: TableStore | None,
    online: OnlineStore,
    name: str,
    rows: Iterable[Mapping[str, Any]],
    *,
    now_us: int,
    to: str = "online_and_offline",
) -> PushedRows:
    """Every row, or none where one is wrong: then the error names each with its row and column.

    rows: {column: value}; without a time a row holds as of now. The lake comes first: where the online store then
    fails, the next materialization brings the rows. Raises: DrivetrainError.
    """
    if to not in TO:
        raise DrivetrainError(f"Rows cannot be pushed to `{to}`.", do=did_you_mean(to, TO))
    shape = push_shape(definitions, name)
    typed = _typed(shape, rows, now_us)
    offline = to != "online"
    if offline and typed:
        if tables is None:
            raise DrivetrainError("There is no lake to push to.", do="Push to `online`, or give the lake's tables.")
        tables.append(f"{PUSHED}/{name}", _arrow(shape, typed))
    written = 0
    if to != "offline":
        views = [view.name for view in shape.views if view.online and not view.windows]
        for lookup in tables_of(definitions, views):
            given = [
                Pushed(key, read.view.name, _part(shape, row, read.features))
                for read in lookup.reads
                if read.view.name in views
                for key, row in _last(shape, lookup.keys, read.view, typed)
            ]
            try:
                written += online.push(lookup.layout, given)
            except (OSError, DrivetrainError) as error:
                if not offline:
                    raise
                raise DrivetrainError(
                    f"{len(typed)} rows of `{name}` are kept, and not all of them are online: {error}",
                    do="Do not push them again, or windows count them twice: run `drivetrain features materialize`.",
                ) from error
    return PushedRows(len(typed), written, offline)


def _typed(shape: PushShape, rows: Iterable[Mapping[str, Any]], now_us: int) -> list[dict[str, Any]]:
    now = EPOCH + now_us * US
    types = dict(_types(shape))
    wrong: list[str] = []
    typed: list[dict[str, Any]] = []
    for number, row in enumerate(rows, start=1):
        if number > PUSH_ROWS_MAX:
            raise DrivetrainError(
                f"More than {PUSH_ROWS_MAX} rows are pushed at once.", do="Push fewer, or declare a `batch_source`."
            )
        made: dict[str, Any] = dict.fromkeys(types)
        if not isinstance(row, Mapping):
            raise DrivetrainError(
                f"Nothing was pushed to `{shape.name}`: row {number} is {kind_of(row)}.",
                do='Give each row as {"column": value}.',
            )
        for column, value in row.items():
            if column not in types:
                wrong.append(f"row {number}: no column `{column}` is known. {did_you_mean(str(column), types)}")
                continue
            try:
                made[column] = _value(types[column], value)
            except ValueError as error:
                wrong.append(f"row {number}, column `{column}`: {error}")
        if len(entity_key([str(made[key.name]) for key in shape.keys])) > KEY_BYTES_MAX:
            wrong.append(f"row {number}: its join keys have more than {KEY_BYTES_MAX:,} bytes")
        if all(made[key.name] is None for key in shape.keys) and shape.keys:
            named = ", ".join(f"`{key.name}`" for key in shape.keys)
            wrong.append(f"row {number}: it has no join key; {named} must be given")
        wrong += [
            f"row {number}, column `{column}`: the naive time {value.isoformat()} could be in any zone"
            for column in (shape.event, shape.created)
            if isinstance(value := row.get(column), datetime) and value.tzinfo is None
        ]
        made[shape.event] = made[shape.event] or now
        made[shape.created] = made[shape.created] or max(now, made[shape.event])
        if made[shape.event] > now + FUTURE_US_MAX * US or made[shape.created] > now + FUTURE_US_MAX * US:
            wrong.append(f"row {number}: its time lies in the future")
        typed.append(made)
        if len(wrong) >= ERRORS_SHOWN:
            break
    if wrong:
        raise DrivetrainError(
            f"Nothing was pushed to `{shape.name}`:\n" + "\n".join(f"  {one}" for one in wrong[:ERRORS_SHOWN]),
            do="Correct the rows, and push all of them again.",
        )
    return typed


def _value(dtype: str, value: Any) -> Any:
    """As `coerce`. A text that the online store refuses may not get into the lake, which every later read sees."""
    typed = coerce(dtype, value)
    if isinstance(typed, str) and len(typed.encode()) > STRING_BYTES_MAX:
        raise ValueError(f"it has {len(typed.encode()):,} bytes, and at most {STRING_BYTES_MAX:,} are kept")
    return typed


def _last(
    shape: PushShape, keys: Sequence[KeyDefinition], view: ViewDefinition, rows: Sequence[Mapping[str, Any]]
) -> list[tuple[bytes, Mapping[str, Any]]]:
    """Per entity the row that holds, by all features of the view, whichever of them are asked for."""
    held: dict[bytes, tuple[PartRow, Mapping[str, Any]]] = {}
    for row in rows:
        if all(row[key.name] is not None for key in keys):
            entity = stored_key(keys, [row[key.name] for key in keys])
            part = _part(shape, row, view.features)
            before = held.get(entity)
            if before is None or newer(before[0], part) is part:
                held[entity] = (part, row)
    return [(entity, row) for entity, (_, row) in held.items()]


def _part(shape: PushShape, row: Mapping[str, Any], features: Sequence[FeatureDefinition]) -> PartRow:
    return PartRow(
        stored("timestamp", row[shape.event]),
        stored("timestamp", row[shape.created]),
        tuple(stored(one.dtype, row[one.name]) for one in features),
    )


def _arrow(shape: PushShape, rows: Sequence[Mapping[str, Any]]) -> Any:
    from arro3.core import Array, DataType, Table

    kinds = {
        "int64": DataType.int64(),
        "float64": DataType.float64(),
        "string": DataType.string(),
        "bool": DataType.bool(),
        "timestamp": DataType.int64(),
    }
    columns: dict[str, Any] = {}
    for name, dtype in _types(shape):
        values = Array([stored(dtype, row[name]) for row in rows], type=kinds[dtype])
        columns[name] = values.cast(DataType.timestamp("us", tz="UTC")) if dtype == "timestamp" else values
    return Table.from_pydict(columns)
