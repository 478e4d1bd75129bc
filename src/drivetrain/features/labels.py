"""Labels, in whatever form they come, as one table: the keys and moments that a training set asks features for."""

# ruff: noqa: S608  every name that is not ours passes `quoted`

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.features.definitions import KeyDefinition
from drivetrain.features.dtypes import COERCE, microseconds
from drivetrain.features.scratch import Scratch, explained, quoted
from drivetrain.features.sources import (
    check_parquet,
    column_types,
    is_time,
    known_table,
    named_only,
    reading,
    time_us,
    typed,
)

DATASET = "dataset:"
_QUERY = re.compile(r"\s*(select|with|from|values)[\s(]", re.IGNORECASE)
_ARROW_KINDS: Mapping[type, str] = {bool: "bool", int: "int64", float: "float64", str: "string", datetime: "timestamp"}


class Labels(msgspec.Struct, frozen=True):
    """A temporary table of labels, in their order."""

    table: str
    """Their own columns, and `n`: 0, 1, 2 ..."""
    types: dict[str, str]
    """Column -> its DuckDB type, without `n`."""
    n: str
    """The name of that column, which no label has."""

    def column(self, name: str, why: str) -> str:
        """A column's name as the labels write it. Raises: DrivetrainError."""
        if name in self.types:
            return name
        raise DrivetrainError(f"The labels have no column `{name}`: {why}.", do=did_you_mean(name, self.types))


def read_labels(scratch: Scratch, rows: Any) -> Labels:
    """Labels from a file's path, a SELECT over the lake's tables, `dataset:NAME@N`, Arrow data or a list of dicts.

    Raises: DrivetrainError where they cannot be read.
    """
    connection = scratch.connection
    n, given = scratch.name(), ""
    if isinstance(rows, Path | str):
        relation = _named(connection, rows)
    else:
        relation = given = scratch.name()
        connection.register(given, _arrow(rows))
    try:
        with explained("The labels"):
            types = column_types(connection, relation)
            table = scratch.table(f"SELECT *, row_number() OVER () - 1 AS {n} FROM {relation}")
    finally:
        if given:
            connection.unregister(given)
    lowered: dict[str, str] = {}
    for name in types:
        if lowered.setdefault(name.lower(), name) != name:
            raise DrivetrainError(f"The labels have the columns `{lowered[name.lower()]}` and `{name}`: they are one.")
    return Labels(table, types, n)


def points_of(scratch: Scratch, labels: Labels, keys: Sequence[KeyDefinition], timestamp: str) -> str:
    """A table (n, k0, k1 ..., t_us) of the labels that have every key and a time. Raises: DrivetrainError."""
    parts, present = [], []
    for number, key in enumerate(keys):
        name = labels.column(key.name, "features are joined by it")
        parts.append(f"{typed(quoted(name), labels.types[name], key.dtype)} AS k{number}")
        present.append(f"k{number} IS NOT NULL")
    name = labels.column(timestamp, "it says as of when features are asked for")
    if not is_time(labels.types[name]):
        raise DrivetrainError(f"The labels have no times in `{name}`: its type is {labels.types[name]}.")
    present.append("t_us IS NOT NULL")
    outputs = ", ".join(
        [f"{labels.n} AS n", *(parts or ["0 AS k0"]), f"{time_us(quoted(name), labels.types[name])} AS t_us"]
    )
    try:
        with explained("The labels"):
            return scratch.table(
                f"SELECT * FROM (SELECT {outputs} FROM {labels.table}) WHERE {' AND '.join(present)} ORDER BY n"
            )
    except DrivetrainError:
        for column, dtype in [*((key.name, key.dtype) for key in keys), (timestamp, "timestamp")]:
            _refuse_wrong(scratch, labels, column, dtype)
        raise


def _refuse_wrong(scratch: Scratch, labels: Labels, name: str, dtype: str) -> None:
    """Raises: DrivetrainError for the first label whose value is not of this type."""
    right = typed(quoted(name), labels.types[name], dtype, attempt=True)
    found = scratch.connection.execute(
        f"SELECT {labels.n} + 1, CAST({quoted(name)} AS VARCHAR) FROM {labels.table}"
        f" WHERE {quoted(name)} IS NOT NULL AND ({right}) IS NULL ORDER BY {labels.n} LIMIT 1"
    ).fetchall()
    if found:
        row, value = found[0]
        raise DrivetrainError(
            f"The labels have a value that is no {dtype}: row {row}, column `{name}`: {value[:60]!r}.",
            do="Correct the row.",
        )


def arrow_column(values: list[Any], dtype: str) -> Any:
    """Python values of a dtype as an Arrow array."""
    from arro3.core import Array, DataType

    if dtype == "timestamp":
        numbers = [None if value is None else microseconds(value) for value in values]
        return Array(numbers, type=DataType.int64()).cast(DataType.timestamp("us", tz="UTC"))
    kinds = {
        "int64": DataType.int64(),
        "float64": DataType.float64(),
        "string": DataType.string(),
        "bool": DataType.bool(),
    }
    return Array(values, type=kinds[dtype])


def _named(connection: Any, rows: Path | str) -> str:
    if isinstance(rows, str):
        if rows.startswith(DATASET):
            return known_table(connection, f"dataset.{quoted(rows.removeprefix(DATASET))}", "The labels")
        if _QUERY.match(rows):
            return named_only(connection, rows, "The labels")
    path = Path(rows)
    if not path.is_file():
        raise DrivetrainError(
            f"No file of labels is called `{rows}`.",
            looked=[str(Path.cwd())],
            do="Give a file, a SELECT, `dataset:NAME@N`, Arrow data or a list of dicts.",
        )
    with explained("The labels"):
        check_parquet(connection, [path], "The labels")
    return reading([path], guess=True)


def _arrow(rows: Any) -> Any:
    from arro3.core import Table

    if hasattr(rows, "__arrow_c_stream__"):
        return Table.from_arrow(rows)
    if not isinstance(rows, Sequence) or not all(isinstance(row, Mapping) for row in rows):
        raise DrivetrainError(
            f"A {type(rows).__name__} holds no labels.",
            do="Give a file, a SELECT, `dataset:NAME@N`, Arrow data or a list of dicts.",
        )
    if not rows:
        raise DrivetrainError("There are no labels.", do="Give at least one row.")
    names = dict.fromkeys(name for row in rows for name in row)
    if not names or any("\0" in str(name) for name in names):
        raise DrivetrainError("The labels have no columns, or one whose name has a NUL byte.", do="Name each column.")
    return Table.from_pydict({str(name): _column(str(name), [row.get(name) for row in rows]) for name in names})


def _column(name: str, values: list[Any]) -> Any:
    kinds = {type(value) for value in values if value is not None}
    if date in kinds:
        values = [datetime(one.year, one.month, one.day) if type(one) is date else one for one in values]  # noqa: DTZ001  UTC, as every time without an offset
        kinds = kinds - {date} | {datetime}
    if kinds == {int, float}:
        kinds = {float}
    dtype = _ARROW_KINDS.get(next(iter(kinds))) if len(kinds) == 1 else "string" if not kinds else None
    if dtype is None:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DrivetrainError(f"The labels have values of several or of foreign types in `{name}`: {found}.")
    typed_values = []
    for number, value in enumerate(values):
        try:
            typed_values.append(None if value is None else COERCE[dtype](value))
        except ValueError as error:
            raise DrivetrainError(f"Row {number + 1} of the labels has a wrong `{name}`: {error}.") from None
    return arrow_column(typed_values, dtype)
