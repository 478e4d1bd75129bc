"""Training sets: labels with the features that were known at each label's moment, one row per label, in their order.

Feast's `get_historical_features`, with two differences. A row counts only once it was known (see `asof`), and declared
defaults stand where a label has no value, as they do online: what a model learns from is what it will be served.
Features without a declared default stay null, and `defaults=False` gives Feast's nulls for all. Windows that count are
0 over nothing either way.
"""

# ruff: noqa: S608  every name that is not ours passes `identifier`, every value `_literal`

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.features import FeatureService
from drivetrain.core.sql import identifier, literal
from drivetrain.features.definitions import (
    COUNTING,
    Definitions,
    FeatureDefinition,
    OnDemandDefinition,
    ServiceDefinition,
    ViewDefinition,
)
from drivetrain.features.dtypes import SQL_TYPES, coerce
from drivetrain.features.labels import Labels, arrow_column, points_of, read_labels
from drivetrain.features.on_demand import compute, request_columns
from drivetrain.features.points import values_at
from drivetrain.features.scratch import Scratch, explained, scratch_of
from drivetrain.features.sources import typed
from drivetrain.ports.disk import whole_path

if TYPE_CHECKING:
    import duckdb

EVENT_TIMESTAMP = "event_timestamp"


class Retrieved:
    """A training set, in a temporary table of the connection it was asked on; `close` drops it."""

    def __init__(self, scratch: Scratch, select: str, service: ServiceDefinition, names: tuple[str, ...]) -> None:
        self._scratch = scratch
        self._select = select
        self.service = service
        """What was asked for, resolved."""
        self.names = names
        """The feature columns, behind the labels' own."""

    @property
    def relation(self) -> duckdb.DuckDBPyRelation:
        """The rows, for more SQL on the same connection."""
        return self._scratch.connection.sql(self._select)

    def arrow(self) -> Any:
        """An Arrow table (`arro3`); whatever takes Arrow data takes it."""
        from arro3.core import Table

        return Table.from_arrow(self.relation)

    def rows(self) -> list[dict[str, Any]]:
        """One dict per label; times are aware datetimes in UTC."""
        table = self.arrow()
        columns = [table.column(name).to_pylist() for name in table.column_names]
        return [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]

    def to_parquet(self, path: Path | str) -> None:
        """Writes the rows to one file, whole or not at all; one of that name is replaced. Raises: DrivetrainError."""
        target = Path(path)
        try:
            with whole_path(target) as half, explained(f"`{path}`", "written"):
                self.relation.write_parquet(str(half), compression="zstd")
        except OSError as error:
            raise DrivetrainError(
                f"{path} cannot be written: {error.strerror}.", do="Make room, or name another file."
            ) from error

    def __len__(self) -> int:
        return int(self._scratch.value(f"SELECT count(*) FROM ({self._select})"))

    def close(self) -> None:
        """The rows are gone."""
        self._scratch.drop()


class _Ask(msgspec.Struct, frozen=True):
    """How features are asked for."""

    root: Path
    corrected: bool
    defaults: bool
    timestamp: str


def historical_features(
    connection: duckdb.DuckDBPyConnection,
    definitions: Definitions,
    entity_rows: Any,
    features: str | FeatureService | Sequence[str],
    *,
    root: Path,
    full_feature_names: bool = False,
    corrected: bool = False,
    defaults: bool = True,
    timestamp: str = EVENT_TIMESTAMP,
) -> Retrieved:
    """The features of each label as of its moment: every label once, in order, whether anything is known of it or not.

    entity_rows: a file's path (Parquet, CSV, JSON lines), a SELECT over the lake's tables, `dataset:NAME@N`, Arrow data
    or a list of dicts, with the join keys, `timestamp`, and the request columns of on-demand views. features: a service
    or its name, or `["VIEW:FEATURE", ...]`. full_feature_names: columns are `VIEW__FEATURE`. corrected: Feast's rule,
    later corrections change the past. root: the project's folder, for sources that are files.
    Raises: DrivetrainError.
    """
    service = definitions.select(features)
    ask = _Ask(root, corrected, defaults, timestamp)
    with scratch_of(connection) as scratch:
        labels = read_labels(scratch, entity_rows)
        names = _output_names(service, labels, full_feature_names)
        places = {f"{read.view.name}__{one.name}" for read in service.reads for one in read.features}
        columns = {name: f"f{number}" for number, name in enumerate(sorted(places))}
        taken = _taken(scratch, service, labels, ask, columns)
        for view in service.on_demand:
            taken = _with_on_demand(scratch, view, taken, ask, columns)
        chosen = [f"l{number} AS {identifier(name)}" for number, name in enumerate(labels.types)]
        for feature, name in zip(service.features, names, strict=True):
            chosen.append(f"{columns[feature.full_name]} AS {identifier(name)}")
        return Retrieved(scratch, f"SELECT {', '.join(chosen)} FROM {taken}", service, names)


def _output_names(service: ServiceDefinition, labels: Labels, full: bool) -> tuple[str, ...]:
    """The features' columns. Raises: DrivetrainError where two columns would have one name."""
    names = tuple(one.full_name if full else one.feature for one in service.features)
    taken = {name.lower(): f"the labels' column `{name}`" for name in labels.types}
    for feature, name in zip(service.features, names, strict=True):
        other = taken.setdefault(name.lower(), f"`{feature.reference}`")
        if other != f"`{feature.reference}`":
            fix = "Rename the column." if full else "Ask for full feature names, or rename the column."
            raise DrivetrainError(f"`{feature.reference}` would have the same name as {other}.", do=fix)
    return names


def _taken(scratch: Scratch, service: ServiceDefinition, labels: Labels, ask: _Ask, columns: Mapping[str, str]) -> str:
    """A table (n, l0 ... the labels' columns, r0 ... request columns, f0 ... the views' features), in order."""
    outputs = [f"l.{labels.n} AS n"]
    outputs += [f"l.{identifier(name)} AS l{number}" for number, name in enumerate(labels.types)]
    for column in service.request:
        outputs.append(f"{_request(labels, column)} AS {_request_place(column)}")
    joins, dropped = [f"{labels.table} l"], [labels.table]
    for group in service.groups:
        points = points_of(scratch, labels, group.keys, ask.timestamp)
        for read in group.reads:
            values = values_at(scratch, points, read.view, read.features, root=ask.root, corrected=ask.corrected)
            joins.append(f"LEFT JOIN {values} ON {values}.n = l.{labels.n}")
            dropped.append(values)
            for number, feature in enumerate(read.features):
                value = _with_default(f"{values}.c{number}", read.view, feature, ask.defaults)
                outputs.append(f"{value} AS {columns[f'{read.view.name}__{feature.name}']}")
        scratch.drop(points)
    with explained("The labels"):
        taken = scratch.table(f"SELECT {', '.join(outputs)} FROM {' '.join(joins)} ORDER BY l.{labels.n}")
    scratch.drop(*dropped)
    return taken


def _with_default(value: str, view: ViewDefinition, feature: FeatureDefinition, defaults: bool) -> str:
    default = feature.default if defaults else None
    if default is None and any(one.feature == feature.name and one.function in COUNTING for one in view.windows):
        default = 0
    return value if default is None else f"coalesce({value}, {_literal(feature.dtype, default)})"


def _literal(dtype: str, value: Any) -> str:
    text = value.isoformat() if isinstance(value, datetime) else repr(value) if dtype != "string" else value
    return f"CAST({literal(text)} AS {SQL_TYPES[dtype]})"


def _request(labels: Labels, column: FeatureDefinition) -> str:
    if column.name not in labels.types and column.default is not None:
        return _literal(column.dtype, column.default)
    name = labels.column(column.name, "an on-demand view reads it from the request")
    return typed(f"l.{identifier(name)}", labels.types[name], column.dtype)


def _request_place(column: FeatureDefinition) -> str:
    return identifier(f"r_{column.name}")


def _with_on_demand(scratch: Scratch, view: OnDemandDefinition, taken: str, ask: _Ask, columns: dict[str, str]) -> str:
    """The table with one on-demand view's features behind, computed row by row in Python."""
    from arro3.core import RecordBatchReader, Table

    inputs = [columns[one.full_name] for one in view.inputs]
    read = ", ".join(["n", *inputs, *(_request_place(one) for one in view.request)])
    answers: list[Any] = []
    for batch in RecordBatchReader.from_arrow(scratch.connection.sql(f"SELECT {read} FROM {taken}")):
        answers.append(_answers(view, batch, ask.defaults))
    for feature in view.features:
        columns[f"{view.name}__{feature.name}"] = f"f{len(columns)}"
    registered = scratch.name()
    places = [columns[f"{view.name}__{one.name}"] for one in view.features]
    outputs = ", ".join(f"o.c{number} AS {place}" for number, place in enumerate(places))
    if not answers:
        nothing = ", ".join(
            f"CAST(NULL AS {SQL_TYPES[one.dtype]}) AS {place}" for one, place in zip(view.features, places, strict=True)
        )
        return scratch.table(f"SELECT *, {nothing} FROM {taken}")
    scratch.connection.register(registered, Table.from_batches(answers))
    made = scratch.table(f"SELECT t.*, {outputs} FROM {taken} t JOIN {registered} o ON o.n = t.n ORDER BY t.n")
    scratch.connection.unregister(registered)
    scratch.drop(taken)
    return made


def _answers(view: OnDemandDefinition, batch: Any, defaults: bool) -> Any:
    """(n, c0, c1 ...): what the function makes of a batch of rows."""
    from arro3.core import RecordBatch

    numbers, *values = [_python(column) for column in batch.columns]
    inputs, requested = values[: len(view.inputs)], values[len(view.inputs) :]
    names = [one.full_name for one in view.inputs]
    answered: dict[str, list[Any]] = {one.name: [] for one in view.features}
    for place, number in enumerate(numbers):
        row = {name: column[place] for name, column in zip(names, inputs, strict=True)}
        request = {one.name: column[place] for one, column in zip(view.request, requested, strict=True)}
        try:
            answer = compute(view, row, request_columns(view.request, request), defaults=defaults)
        except DrivetrainError as error:
            raise DrivetrainError(f"Row {number + 1} of the labels: {error.what}", do=error.do) from error
        for name, value in answer.items():
            answered[name].append(value)
    arrays = {"n": arrow_column(numbers, "int64")}
    arrays |= {f"c{place}": arrow_column(answered[one.name], one.dtype) for place, one in enumerate(view.features)}
    return RecordBatch.from_pydict(arrays)


def _python(column: Any) -> list[Any]:
    """A column's values, as a Call's features have them."""
    values = column.to_pylist()
    return [coerce("timestamp", one) for one in values] if any(isinstance(one, datetime) for one in values) else values
