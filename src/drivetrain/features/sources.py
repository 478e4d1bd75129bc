"""A source -> one SELECT of typed rows: keys, event time, created time and columns, ready for joins.

Owns how files, tables, queries and pushed rows are read, and how their columns become the declared types. Values are
never rounded on the way: 1.5 is no int64. Times without an offset are UTC.
"""

# ruff: noqa: S608  every name that is not ours passes `quoted` or `literal`

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean, nearest
from drivetrain.core.features import AnySource, FileSource, PushSource, TableSource
from drivetrain.datasets.parquet_pages import Chunk, check_pages
from drivetrain.features.definitions import KeyDefinition, ViewDefinition
from drivetrain.features.dtypes import SQL_TYPES
from drivetrain.features.scratch import explained, literal, quoted
from drivetrain.lake.sandbox import guarded

if TYPE_CHECKING:
    import duckdb

FILES_MAX = 10_000
"""Files of one pattern; more would take longer to open than to read."""
CSV_COLUMNS_MAX = 4_096
"""A CSV file with more takes minutes before its first row is read."""
HEADER_BYTES_MAX = 256 * 1024
"""The first line of a CSV file: 64 bytes for each column's name."""
PUSHED_CREATED = "created_timestamp"
"""When a pushed row arrived, where its source names no column for it."""

_READERS = {
    ".parquet": "read_parquet({files}, union_by_name = true)",
    ".csv": "read_csv({files}, header = true, quote = '\"', escape = '\"', {csv})",
    ".jsonl": "read_json({files}, union_by_name = true, format = 'newline_delimited', sample_size = -1)",
    ".ndjson": "read_json({files}, union_by_name = true, format = 'newline_delimited', sample_size = -1)",
}
_FRACTIONS = ("FLOAT", "DOUBLE", "DECIMAL")
_WHOLE_TEXT = r"[+-]?[0-9]+(\.0*)?"


class SourceAbsent(DrivetrainError):
    """What a source names is not there, or not yet."""

    def __init__(self, what: str, *, note: str, looked: Sequence[str] = (), do: str = "") -> None:
        super().__init__(what, looked=looked, do=do)
        self.note = note
        """The same in a few words, for a table of many sources."""


class Column(msgspec.Struct, frozen=True):
    """One column to read, with its type."""

    name: str
    dtype: str
    """Empty: whatever it is."""


class Rows(msgspec.Struct, frozen=True):
    """Typed rows of a source."""

    sql: str
    """A SELECT of `k0`, `k1` ... (keys), `event_us`, `created_us` (where `created`), `c0`, `c1` ... (columns)."""
    keys: int
    columns: int
    created: bool
    """Whether the rows say when they were known."""

    def without_created(self) -> Rows:
        """As if every row had been known as soon as it held."""
        return Rows(self.sql, self.keys, self.columns, created=False)

    @property
    def key_names(self) -> list[str]:
        return [f"k{number}" for number in range(self.keys)]

    @property
    def column_names(self) -> list[str]:
        return [f"c{number}" for number in range(self.columns)]


class _Part(msgspec.Struct, frozen=True):
    """Rows as they lie: what SQL calls them, their columns, and which of these are times."""

    sql: str
    types: dict[str, str]
    event: str
    created: str | None


def read_rows(
    connection: duckdb.DuckDBPyConnection, view: ViewDefinition, columns: Sequence[Column], root: Path
) -> Rows:
    """What a view's source holds of some columns. root: the project's folder.

    Reads no more than names and types. Raises: DrivetrainError where a file, a table or a column is missing.
    """
    where = f"The source `{view.source.name}` of FeatureView `{view.name}`"
    with explained(where):
        parts = _parts(connection, view.source, root, where)
    created = any(part.created is not None for part in parts)
    selects = [_select(part, view.keys, columns, where, created) for part in parts]
    # A view without join keys has one row at a time, which holds for every label: a key that all share.
    return Rows(" UNION ALL ".join(selects), max(len(view.keys), 1), len(columns), created)


def event_times(connection: duckdb.DuckDBPyConnection, source: AnySource, root: Path, where: str) -> str:
    """A SELECT of `event_us` of every row of a source. where: what errors call it.

    Reads no more than names and types. Raises: DrivetrainError where a file, a table or the column is missing.
    """
    with explained(where):
        parts = _parts(connection, source, root, where)
    return " UNION ALL ".join(f"SELECT {_time(part, part.event, where)} AS event_us FROM {part.sql}" for part in parts)


def wrong_value(
    connection: duckdb.DuckDBPyConnection, view: ViewDefinition, columns: Sequence[Column], root: Path
) -> DrivetrainError | None:
    """The first value that is not of its column's type, with its row, once reading has failed; None: there is none."""
    import duckdb

    try:
        return _wrong_value(connection, view, columns, root)
    except duckdb.Error:
        return None  # it is not a value that is wrong


def files_of(path: str, root: Path) -> list[Path]:
    """The files of a FileSource, sorted. Raises: DrivetrainError where there is none, or one is outside the project."""
    base = root.resolve()
    relative = Path(path)
    if relative.is_absolute():
        if not relative.is_relative_to(base):
            raise _outside(path)
        relative = relative.relative_to(base)
    try:
        found = sorted(base.glob(relative.as_posix())) if any(sign in path for sign in "*?[") else [base / relative]
    except (ValueError, NotImplementedError) as error:
        raise DrivetrainError(f"`{path}` is no pattern of files: {error}.", do="`**` stands between slashes.") from None
    found = [one for one in found if one.is_file()]
    if not found:
        raise SourceAbsent(
            f"No file is called `{path}`.", note=f"no file `{path}`", looked=[str(base)],
            do="Write a path in the project.",
        )  # fmt: skip
    if any(not one.resolve().is_relative_to(base) for one in found):
        raise _outside(path)
    if len(found) > FILES_MAX:
        raise DrivetrainError(
            f"`{path}` names {len(found)} files; {FILES_MAX} are the most.", do="Merge them into fewer, larger ones."
        )
    return found


def reading(files: Sequence[Path], *, guess: bool = False) -> str:
    """A table function over files of one kind. Raises: DrivetrainError.

    guess: a CSV file's columns have the types that all its values fit; else they are text, as they stand there.
    """
    kinds = {one.name.removesuffix(".gz")[len(Path(one.name.removesuffix(".gz")).stem) :].lower() for one in files}
    kind = next(iter(kinds))
    if len(kinds) > 1 or kind not in _READERS:
        raise DrivetrainError(
            f"Files of the kind `{', '.join(sorted(kinds))}` cannot be read.",
            do=f"One kind of {', '.join(f'`{one}`' for one in _READERS)} can.",
        )
    listed = "[" + ", ".join(literal(str(one)) for one in files) + "]"
    return _READERS[kind].format(files=listed, csv=_csv_options(files, guess) if kind == ".csv" else "")


def _csv_options(files: Sequence[Path], guess: bool) -> str:
    """What DuckDB is told of CSV files, so that a broken row is an error with its line, and no other guess."""
    headers = {_header(file) for file in files}
    first = next(iter(headers))
    delimiter = _delimiter(first)
    told = f"delim = '{delimiter}'"
    for header in headers:
        _check_header(header, delimiter)
    if guess:
        return f"{told}, sample_size = -1"
    names = next(csv.reader([first], delimiter=delimiter), [])
    if len(headers) > 1 or not names or not all(names):
        return f"{told}, all_varchar = true, union_by_name = true"
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
    return f"{told}, auto_detect = false, columns = {{{columns}}}"


def _check_header(header: str, delimiter: str) -> None:
    """Whether each name stands once. Raises: DrivetrainError; else nobody could tell which of two columns is meant."""
    try:
        names = next(csv.reader([header], delimiter=delimiter), [])
    except csv.Error:
        raise DrivetrainError(
            "The first line of the CSV file is no header: it has a carriage return without a line feed.",
            do="Save it with the line ends of Unix or Windows.",
        ) from None
    seen: set[str] = set()
    for name in filter(None, names):
        if name.lower() in seen:
            raise DrivetrainError(
                f"The header of the CSV file has the column `{name[:100]}` twice.",
                do="Names that differ only in capitals count as the same. Rename one of them.",
            )
        seen.add(name.lower())


def _header(file: Path) -> str:
    """A CSV file's first line. Raises: DrivetrainError where it is too long, before anything slow sees it."""
    try:
        with gzip.open(file) if file.name.endswith(".gz") else file.open("rb") as content:
            header = content.readline(HEADER_BYTES_MAX + 1).decode("utf-8-sig", "replace").rstrip("\r\n")
    except (OSError, EOFError) as error:
        raise DrivetrainError(f"`{file.name}` cannot be read: {error}.") from error
    if "\0" in header:
        raise DrivetrainError(f"`{file.name}` is no UTF-8 text: its first line has a NUL byte.", do="Save it as UTF-8.")
    if len(header) >= HEADER_BYTES_MAX or header.count(_delimiter(header)) >= CSV_COLUMNS_MAX:
        raise DrivetrainError(
            f"`{file.name}` has more than {CSV_COLUMNS_MAX} columns, or its first line is too long.",
            do="Keep the columns that are used, or write Parquet.",
        )
    return header


def _delimiter(header: str) -> str:
    return max(",;\t|", key=header.count)


def check_parquet(connection: duckdb.DuckDBPyConnection, files: Sequence[Path], where: str) -> None:
    """Whether Parquet files hold as many values as their footers say: a reader believes the footer, and rows vanish.

    Costs a read of each page's header. Raises: DrivetrainError.
    """
    for file in files:
        if file.suffix.lower() != ".parquet":
            continue
        chunks = connection.execute(
            "SELECT path_in_schema, dictionary_page_offset, data_page_offset, total_compressed_size, num_values"
            " FROM parquet_metadata(?)",
            [str(file)],
        ).fetchall()
        try:
            check_pages(
                file,
                [
                    Chunk(str(column), min(one for one in (dictionary, data) if one), packed, values)
                    for column, dictionary, data, packed, values in chunks
                    if dictionary or data
                ],
            )
        except DrivetrainError as error:
            raise DrivetrainError(f"{where} cannot be read: `{file.name}`: {error.what}", do=error.do) from None


def typed(column: str, physical: str, dtype: str, *, attempt: bool = False) -> str:
    """SQL of a column's value as a dtype. attempt: null instead of an error where it is none."""
    if not dtype or (physical == SQL_TYPES[dtype] and dtype != "timestamp"):
        return column
    cast = "TRY_CAST" if attempt else "CAST"
    refused = "NULL" if attempt else f"error('a value of ' || {literal(column)} || ' is no {dtype}')"
    sql = f"{cast}({column} AS {SQL_TYPES[dtype]})"
    if dtype == "timestamp":
        if physical.startswith("TIMESTAMP") or physical == "DATE":
            # A cast would ask for the time zone, row by row. What is infinite is no time: it would turn into null.
            finite = column if physical == SQL_TYPES[dtype] else f"make_timestamptz(epoch_us({column}))"
            return f"CASE WHEN {column} IS NULL OR isfinite({column}) THEN {finite} ELSE {refused} END"
        if physical == "VARCHAR":
            return f"CASE WHEN {column} IS NULL OR isfinite({sql}) THEN {sql} ELSE {refused} END"
        return f"CASE WHEN {column} IS NULL THEN NULL ELSE {refused} END"
    if dtype == "int64" and physical.startswith(_FRACTIONS):
        return f"CASE WHEN {column} IS NULL OR {column} = trunc({column}) THEN {sql} ELSE {refused} END"
    if dtype == "bool" and physical not in ("BOOLEAN", "VARCHAR"):
        return f"CASE WHEN {column} IS NULL OR {column} IN (0, 1) THEN {sql} ELSE {refused} END"
    if dtype == "int64" and physical == "VARCHAR":
        right = f"regexp_full_match({column}, {literal(_WHOLE_TEXT)})"
        return f"CASE WHEN {column} IS NULL OR {right} THEN {sql} ELSE {refused} END"
    return sql


def time_us(column: str, physical: str) -> str:
    """SQL of a column of times as UTC microseconds."""
    return f"epoch_us({typed(column, physical, 'timestamp')})"


def is_time(physical: str) -> bool:
    """Whether a column of this type may hold times: text may, numbers never, for nobody can tell their unit."""
    return physical.startswith(("TIMESTAMP", "DATE", "VARCHAR"))


def column_types(connection: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    """Column -> its DuckDB type, of anything that stands after FROM."""
    rows = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    return {row[0]: row[1] for row in rows}


def subquery(query: str) -> str:
    """A query as it stands after FROM; its last line may be a comment."""
    return f"({query.strip().rstrip(';')}\n)"


def named_only(connection: duckdb.DuckDBPyConnection, query: str, where: str) -> str:
    """As `subquery`, of one SELECT over the connection's tables: it reads no file. Raises: DrivetrainError."""

    def names(schema: str) -> set[str]:
        rows = connection.execute(
            "SELECT lower(table_name) FROM information_schema.tables WHERE lower(table_schema) = ?", [schema or "main"]
        ).fetchall()
        return {row[0] for row in rows}

    try:
        return subquery(guarded(connection, query, names).sql)
    except DrivetrainError as error:
        gone = re.search(r"no table `dataset\.([^`@]+)", error.what)
        make = f" Or make it with `drivetrain dataset create {gone[1]} ...`." if gone is not None else ""
        raise DrivetrainError(f"{where} cannot be read: {error.what}", do=error.do + make) from None


def table_name(name: str) -> str:
    """A named table of the lake as SQL writes it: `dataset.orders` is a schema and a table."""
    schema, dot, table = name.partition(".")
    return f"{quoted(schema)}.{quoted(table.strip(chr(34)))}" if dot else quoted(name)


def known_table(connection: duckdb.DuckDBPyConnection, name: str, where: str) -> str:
    """As `table_name`, of a table that is there. Raises: DrivetrainError with what is near, or how to make it."""
    schema, dot, table = name.partition(".")
    schema, table = (schema, table.strip('"')) if dot else ("main", name)
    rows = connection.execute(
        "SELECT table_name FROM information_schema.tables WHERE lower(table_schema) = lower(?)", [schema]
    ).fetchall()
    known = [row[0] for row in rows]
    if table.lower() in {one.lower() for one in known}:
        return table_name(name)
    numbered = table.partition("@")[0]
    if schema.lower() == "dataset":
        near = nearest(table, known)
        do = f"Did you mean `{near}`? " if near else ""
        made = f"Make it with `drivetrain dataset create {numbered} ...`."
        note = f"no Dataset `{table}`"
        raise SourceAbsent(f"{where} cannot be read: there is {note}.", note=note, do=do + made)
    note = f"no table `{f'{schema}.{table}' if dot else table}`"
    raise SourceAbsent(f"{where} cannot be read: there is {note}.", note=note, do=did_you_mean(table, known))


def _wrong_value(
    connection: duckdb.DuckDBPyConnection, view: ViewDefinition, columns: Sequence[Column], root: Path
) -> DrivetrainError | None:
    where = f"The source `{view.source.name}` of FeatureView `{view.name}`"
    for part in _parts(connection, view.source, root, where):
        times = [Column(name, "timestamp") for name in (part.event, part.created) if name]
        for column in [*(Column(key.name, key.dtype) for key in view.keys), *times, *columns]:
            name = _known(part, column.name, where)
            right = typed(quoted(name), part.types[name], column.dtype, attempt=True)
            found = connection.execute(
                f"SELECT row, value FROM (SELECT row_number() OVER () AS row, CAST({quoted(name)} AS VARCHAR) AS value,"
                f" {quoted(name)} IS NOT NULL AND ({right}) IS NULL AS wrong FROM {part.sql}) WHERE wrong LIMIT 1"
            ).fetchall()
            if found:
                row, value = found[0]
                return DrivetrainError(
                    f"{where} has a value that is no {column.dtype}: row {row}, column `{name}`: {value[:60]!r}.",
                    do="Correct the row, or declare another type.",
                )
    return None


def _parts(connection: duckdb.DuckDBPyConnection, source: AnySource, root: Path, where: str) -> list[_Part]:
    if isinstance(source, PushSource):
        parts = [] if source.batch_source is None else _parts(connection, source.batch_source, root, where)
        pushed = _pushed(connection, source)
        if pushed is not None:
            parts.append(pushed)
        if not parts:
            raise SourceAbsent(
                f"{where} has no rows yet.", note="nothing was pushed yet",
                do="Push some, or declare its `batch_source`.",
            )  # fmt: skip
        return parts
    if isinstance(source, FileSource):
        files = files_of(source.path, root)
        check_parquet(connection, files, where)
        relation = reading(files)
    elif isinstance(source, TableSource):
        relation = known_table(connection, source.table, where)
    else:
        relation = named_only(connection, source.query, where)
    types = column_types(connection, relation)
    part = _Part(relation, types, source.timestamp_field, source.created_timestamp_column)
    for name in (part.event, part.created):
        if name is not None:
            physical = types[_known(part, name, where)]
            if not is_time(physical):
                raise DrivetrainError(f"{where} has no times in `{name}`: its type is {physical}.")
    return [part]


def _pushed(connection: duckdb.DuckDBPyConnection, source: PushSource) -> _Part | None:
    """None where nothing was pushed yet."""
    found = connection.execute(
        "SELECT 1 FROM information_schema.tables WHERE table_schema = 'push' AND table_name = ?", [source.name]
    ).fetchall()
    if not found:
        return None
    relation = f"push.{quoted(source.name)}"
    types = column_types(connection, relation)
    created = source.created_timestamp_column or (PUSHED_CREATED if PUSHED_CREATED in types else None)
    return _Part(relation, types, source.timestamp_field, created)


def _time(part: _Part, name: str, where: str) -> str:
    known = _known(part, name, where)
    return time_us(quoted(known), part.types[known])


def _select(part: _Part, keys: Sequence[KeyDefinition], columns: Sequence[Column], where: str, created: bool) -> str:
    def value(name: str, dtype: str) -> str:
        known = _known(part, name, where)
        return typed(quoted(known), part.types[known], dtype)

    outputs = [f"{value(key.name, key.dtype)} AS k{number}" for number, key in enumerate(keys)] or ["0 AS k0"]
    outputs.append(f"{_time(part, part.event, where)} AS event_us")
    if created:
        outputs.append(f"{_time(part, part.created or part.event, where)} AS created_us")
    outputs += [f"{value(column.name, column.dtype)} AS c{number}" for number, column in enumerate(columns)]
    return f"SELECT {', '.join(outputs)} FROM {part.sql}"


def _known(part: _Part, name: str, where: str) -> str:
    """The column's name as the source writes it. Raises: DrivetrainError."""
    if name in part.types:
        return name
    raise DrivetrainError(f"{where} has no column `{name}`.", do=did_you_mean(name, part.types))


def _outside(path: str) -> DrivetrainError:
    return DrivetrainError(f"`{path}` is outside the project.", do="Copy the file into the project's folder.")
