"""Answers: the rows of a query, as Arrow for machines and as Python's values for people.

Called by the lake; an answer is whole and needs no connection any more, a stream lives as long as its query runs.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from drivetrain.core.errors import DrivetrainError

if TYPE_CHECKING:
    import duckdb

ANSWER_BYTES_MAX = 1024 * 1024 * 1024
"""Of an answer that is held in memory; what is larger is streamed into a file."""
BATCH_ROWS = 10_000
"""Rows turned into Python's values at a time."""


class Stream:
    """The rows of a running query, read once."""

    def __init__(self, relation: duckdb.DuckDBPyRelation) -> None:
        self._relation = relation
        self.columns: tuple[str, ...] = tuple(relation.columns)
        self.types: tuple[str, ...] = tuple(str(one) for one in relation.types)
        """DuckDB's names of the columns' types."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> Any:
        """Arrow's C stream: what any library for tables reads."""
        relation: Any = self._relation
        return relation.__arrow_c_stream__(requested_schema)

    def batches(self) -> Iterator[list[tuple[Any, ...]]]:
        """The rows as Python's values, some thousand at a time; times with a time zone are UTC."""
        relation = _without_zones(self._relation, self.columns, self.types)
        rows = relation.iter_rows(BATCH_ROWS)
        while batch := _as_values(lambda: list(islice(rows, BATCH_ROWS))):
            yield batch


class Answer:
    """The rows of a query. `__arrow_c_stream__` gives them to pandas, Polars, pyarrow or DuckDB without a copy."""

    def __init__(self, columns: tuple[str, ...], types: tuple[str, ...], table: Any) -> None:
        self.columns = columns
        self.types = types
        """DuckDB's names of the columns' types."""
        self._table = table
        self._rows: list[tuple[Any, ...]] | None = None

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def arrow(self) -> Any:
        """An `arro3.core.Table`."""
        return self._table

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> Any:
        """Arrow's C stream: what any library for tables reads."""
        return self._table.__arrow_c_stream__(requested_schema)

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """Python's values, made when they are first asked for. Sums are ints, times with a time zone are UTC.

        Raises: DrivetrainError.
        """
        if self._rows is None:
            with _values().cursor() as connection:
                relation = connection.from_arrow(self._table)
                self._rows = _as_values(_without_zones(relation, self.columns, self.types).fetchall)
        return self._rows


def collected(stream: Stream) -> Answer:
    """The whole stream. Raises: DrivetrainError where it is beyond `ANSWER_BYTES_MAX`."""
    from arro3.core import RecordBatchReader, Table

    reader = RecordBatchReader.from_stream(stream)
    schema, batches, size = reader.schema, [], 0
    for batch in reader:
        size += batch.nbytes
        if size > ANSWER_BYTES_MAX:
            raise DrivetrainError(
                f"The answer has more than {ANSWER_BYTES_MAX // 2**20:,} MiB.",
                do="Ask for fewer columns or rows, or write it into a file: `drivetrain sql ... --parquet FILE`.",
            )
        batches.append(batch)
    return Answer(stream.columns, stream.types, Table.from_batches(batches, schema=schema))


@cache
def _values() -> duckdb.DuckDBPyConnection:
    """One instance that turns Arrow into Python's values, kept since opening one costs more than most answers."""
    import duckdb

    connection = duckdb.connect(":memory:", config={"threads": 1, "python_enable_replacements": False})
    connection.execute("SET GLOBAL TimeZone = 'UTC'")
    atexit.register(_let_go)  # the library complains of what outlives it
    return connection


def _as_values(fetch: Callable[[], list[tuple[Any, ...]]]) -> list[tuple[Any, ...]]:
    """What `fetch` gives. Raises: DrivetrainError where a value has no counterpart in Python."""
    try:
        return fetch()
    except (OverflowError, ValueError) as error:
        raise DrivetrainError(
            f"A value of the answer is beyond what Python can hold: {error}.",
            do="Cast its column to text in the query, or take the answer as Arrow or Parquet.",
        ) from None


def _let_go() -> None:
    _values().close()
    _values.cache_clear()


def _without_zones(
    relation: duckdb.DuckDBPyRelation, columns: tuple[str, ...], types: tuple[str, ...]
) -> duckdb.DuckDBPyRelation:
    """Times as UTC without a zone, which Python's datetime has no table for; sums as integers again."""
    casts = {"TIMESTAMP WITH TIME ZONE": "TIMESTAMP", "HUGEINT": "HUGEINT", "UHUGEINT": "UHUGEINT"}
    chosen = [
        f"CAST(#{place} AS {casts[kind]})" if kind in casts else f"#{place}" for place, kind in enumerate(types, 1)
    ]
    return relation.project(", ".join(chosen)) if any(kind in casts for kind in types) else relation
