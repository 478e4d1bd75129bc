"""The bench: a private DuckDB in which a Dataset's rows are staged, checked and written, and that leaves nothing.

What was read stands in the table `staged` as it came: `r` (row number, 1 is the first) and `c0`, `c1` ... by position,
so that no name from outside is ever part of a statement. What passed stands in `kept`, typed.
"""

# ruff: noqa: S608 - cells are named by position, and every name or text from outside is quoted

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.sql import literal
from drivetrain.datasets.workplaces import working_folder

if TYPE_CHECKING:
    import duckdb

ROWS_MAX = 50_000_000
"""More is a table, not a frozen Dataset; hashing every row takes minutes."""
COLUMNS_MAX = 2_000
"""A file with more has lost its line ends or is no table."""
NAME_CHARS_MAX = 128
CELL_BYTES_MAX = 4 * 1024 * 1024
"""A longer cell is a missing quote, or no value."""
STAGED_BYTES_MAX = 16 * 1024**3
"""All cells together, unpacked: no small file may fill the disk."""
MEMORY_MAX = "1GB"
"""What the bench takes before it spills to its folder."""
THREADS = 2
"""The other cores are the gateway's."""
BATCH_ROWS = 10_000
BATCH_BYTES = 32 * 1024 * 1024
"""A batch of long rows ends earlier."""

ROW_GROUP_ROWS = 100_000
"""Of a Dataset's files: what a reader unpacks at once."""
NO_VALUES = ("BLOB", "BIT", "INTERVAL", "TIME", "TIME WITH TIME ZONE", "BIGNUM", "GEOMETRY")
"""Types of DuckDB that are none of ours."""

TEXT = "text"
"""Cells as text, as CSV has them."""
JSON_CELL = "json"
"""Cells as a letter for what JSON had (`i f s b j`) and the value as text."""


class Staged(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in `staged`."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    """Per column: `TEXT`, `JSON_CELL`, or DuckDB's type where the source was typed."""
    rows: int
    naive_is_utc: bool = False
    """Whether times without a zone are known to be UTC, as the lake's are."""


class Bench(msgspec.Struct, frozen=True):
    """The connection and the folder beside it."""

    connection: duckdb.DuckDBPyConnection
    folder: Path

    def one(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """The first value of the first row."""
        # To the end: a connection with an unfinished result refuses other work.
        rows = self.connection.execute(sql, list(parameters)).fetchall()
        return rows[0][0] if rows else None

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """All rows, by a cursor of their own, in batches."""
        cursor = self.connection.cursor().execute(sql, list(parameters))
        while batch := cursor.fetchmany(BATCH_ROWS):
            yield from batch

    def write_parquet(self, select: str, path: Path) -> None:
        """The rows of a SELECT, in its order, as one file of a Dataset."""
        written = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS}"
        self.connection.execute(f"COPY ({select}) TO {literal(str(path))} ({written})")


@contextmanager
def open_bench(scratch: Path | None = None) -> Iterator[Bench]:
    """A bench; its folder, which only this user may read, is gone afterwards. Raises: DrivetrainError.

    scratch: where that folder is; None: the system's place for that.
    """
    import duckdb

    with working_folder(scratch) as folder:
        config: dict[str, Any] = {
            "threads": THREADS,
            "memory_limit": MEMORY_MAX,
            "temp_directory": str(folder / "spill"),
        }
        connection = duckdb.connect(":memory:", config=config)
        try:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET python_enable_replacements = false")
            connection.execute("SET autoinstall_known_extensions = false")
            connection.execute("SET autoload_known_extensions = false")
            yield Bench(connection, folder)
        except duckdb.OutOfMemoryException as error:
            raise DrivetrainError(
                f"These rows need more than the {MEMORY_MAX} of memory that a Dataset may take, or the disk is full.",
                looked=[str(folder)],
                do=f"Make it from fewer or shorter rows. DuckDB says: {str(error).splitlines()[0]}",
            ) from None
        except duckdb.IOException as error:
            raise DrivetrainError(
                f"The rows cannot be kept while they are checked: {str(error).splitlines()[0]}",
                looked=[str(folder)],
                do="Make room on that disk.",
            ) from None
        finally:
            connection.close()


def stage_cells(bench: Bench, names: Sequence[str], kind: str, rows: Iterable[Sequence[str | None]]) -> Staged:
    """Rows of text cells into `staged`, in order. Raises: DrivetrainError where they are too many."""
    import arro3.core as arrow

    check_names(names)
    columns = ", ".join(f"c{place} VARCHAR" for place in range(len(names)))
    bench.connection.execute(f"CREATE OR REPLACE TABLE staged (r BIGINT, {columns})")
    done = 0
    for batch in _batches(rows):
        numbers = arrow.Array(range(done + 1, done + len(batch) + 1), type=arrow.DataType.int64())
        cells = [arrow.Array(cell, type=arrow.DataType.utf8()) for cell in zip(*batch, strict=True)]
        table = arrow.Table.from_arrays([numbers, *cells], names=["r", *(f"c{place}" for place in range(len(names)))])
        bench.connection.register("batch", table)
        bench.connection.execute("INSERT INTO staged SELECT * FROM batch")
        bench.connection.unregister("batch")
        done += len(batch)
        if done > ROWS_MAX:
            raise too_many_rows()
    return Staged(names=tuple(names), kinds=(kind,) * len(names), rows=done)


def stage_stream(bench: Bench, names: Sequence[str], kinds: Sequence[str], rows: Any, *, naive_is_utc: bool) -> Staged:
    """Typed rows, as Arrow gives them, into `staged`, in order. Raises: DrivetrainError where they are too many.

    kinds: DuckDB's types of the columns. rows: has `__arrow_c_stream__`.
    """
    import arro3.core as arrow

    check_names(names)
    for name, kind in zip(names, kinds, strict=True):
        check_kind(name, kind)
    cells = [f"c{place}" for place in range(len(names))]
    columns = ", ".join(f"{cell} {_stored(kind)}" for cell, kind in zip(cells, kinds, strict=True))
    bench.connection.execute(f"CREATE OR REPLACE TABLE staged (r BIGINT, {columns})")
    listed = ", ".join(_passed(cell, kind) for cell, kind in zip(cells, kinds, strict=True))
    done = staged_bytes = 0
    for batch in _arrow_batches(rows):
        staged_bytes += batch.nbytes
        bench.connection.register("batch", arrow.Table.from_arrays(batch.columns, names=cells))
        bench.connection.execute(f"INSERT INTO staged SELECT row_number() OVER () + {done}, {listed} FROM batch")
        bench.connection.unregister("batch")
        done += batch.num_rows
        if done > ROWS_MAX:
            raise too_many_rows()
        if staged_bytes > STAGED_BYTES_MAX:
            raise DrivetrainError(
                f"The rows take more than {STAGED_BYTES_MAX:,} bytes once they are unpacked.",
                do="Make the Dataset from fewer rows or columns.",
            )
    return Staged(names=tuple(names), kinds=tuple(kinds), rows=done, naive_is_utc=naive_is_utc)


def check_names(names: Sequence[str]) -> None:
    """Whether columns can be named so. Raises: DrivetrainError."""
    if not names:
        raise DrivetrainError("There is no column.", do="Write a header, or a query that gives one.")
    if len(names) > COLUMNS_MAX:
        raise DrivetrainError(
            f"There are {len(names):,} columns; a Dataset has at most {COLUMNS_MAX:,}.",
            do="If it is a file, look whether its first line is a header with the right separator and line end.",
        )
    seen: dict[str, int] = {}
    for place, name in enumerate(names, 1):
        if not name or len(name) > NAME_CHARS_MAX or not name.isprintable() or name != name.strip():
            raise DrivetrainError(
                f"Column {place} cannot be named {name[:NAME_CHARS_MAX]!r}.",
                do=f"A name has 1 to {NAME_CHARS_MAX} printable characters, without white space around them.",
            )
        before = seen.setdefault(name.casefold(), place)
        if before != place:
            raise DrivetrainError(
                f"Columns {before} and {place} have the same name: `{name}`.",
                do="Names that differ only in capitals count as the same. Rename one of them.",
            )


def check_kind(name: str, kind: str) -> None:
    """Whether a typed source's column can be one of ours. Raises: DrivetrainError."""
    if kind.partition("(")[0] in NO_VALUES:
        raise DrivetrainError(
            f"Column `{name}` is {kind}, which no Dataset holds.",
            do="Cast it to a number, a text, a timestamp or JSON in the query, or leave it out.",
        )


def too_many_rows() -> DrivetrainError:
    """Beyond `ROWS_MAX`."""
    return DrivetrainError(f"There are more than {ROWS_MAX:,} rows.", do="Make the Dataset from a part, or a sample.")


def is_nested(kind: str) -> bool:
    """Whether DuckDB's type holds others; such values become JSON."""
    return kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION"))


def _passed(cell: str, kind: str) -> str:
    return f"CAST(to_json({cell}) AS VARCHAR)" if is_nested(kind) else f"CAST({cell} AS {_stored(kind)})"


def _stored(kind: str) -> str:
    """The type in which a typed source's column passes through Arrow without loss."""
    if is_nested(kind) or kind.startswith(("ENUM", "UUID", "JSON", "VARCHAR")):
        return "VARCHAR"
    return "DECIMAL(38, 0)" if kind in ("HUGEINT", "UHUGEINT") else kind


def _arrow_batches(rows: Any) -> Iterator[Any]:
    import arro3.core as arrow

    try:
        yield from arrow.RecordBatchReader.from_stream(rows)
    except Exception as error:
        # What fails in the query behind an Arrow stream comes as a plain Exception with the query's error as text.
        if type(error) is not Exception:
            raise
        reason = str(error).removeprefix("C Data interface error: ").strip().splitlines()[0][:500]
        raise DrivetrainError(f"The rows cannot be read: {reason}") from None


def _batches(rows: Iterable[Sequence[str | None]]) -> Iterator[list[Sequence[str | None]]]:
    batch: list[Sequence[str | None]] = []
    chars = total = 0
    for row in rows:
        batch.append(row)
        chars += sum(map(len, filter(None, row)))
        if len(batch) >= BATCH_ROWS or chars * 4 >= BATCH_BYTES:
            yield batch
            total += chars
            if total > STAGED_BYTES_MAX:
                raise DrivetrainError(
                    f"The cells take more than {STAGED_BYTES_MAX:,} bytes.", do="Make the Dataset from a part."
                )
            batch, chars = [], 0
    if batch:
        yield batch
