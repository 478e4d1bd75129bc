"""Files from outside, which nobody trusts: found inside the project, copied once, read with a limit on everything.

What is read is a private copy, so that a file that is still being written cannot change between its hash and its rows.
Errors name the row (1 is the first after the header) and the column.
"""

# ruff: noqa: S608 - cells are named by position, and every name or text from outside is quoted

from __future__ import annotations

import codecs
import csv
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.codec import JSON, MalformedJson, parse_json
from drivetrain.core.errors import DrivetrainError, nearest
from drivetrain.core.sql import literal
from drivetrain.datasets.parquet_pages import Chunk, check_pages
from drivetrain.datasets.staging import (
    CELL_BYTES_MAX,
    COLUMNS_MAX,
    JSON_CELL,
    ROWS_MAX,
    STAGED_BYTES_MAX,
    TEXT,
    Bench,
    Staged,
    check_kind,
    check_names,
    is_nested,
    stage_cells,
    stage_stream,
    too_many_rows,
)

FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
FILE_BYTES_MAX = 16 * 1024**3
"""What is copied at most."""
LINE_BYTES_MAX = 64 * 1024 * 1024
"""A row whose line is longer is a file without line ends."""
OTHER_SEPARATORS = {";": "`;`", "\t": "a tab", "|": "`|`"}
"""What programs write between cells where it is not a comma."""
SHOWN_CHARS_MAX = 100
"""Of what a file says, in an error."""
NEAR_FILES_MAX = 1_000
"""Files of a folder among which the nearest name is looked for."""
CHUNK_BYTES = 1024 * 1024
CHUNKS_MAX = 1_000_000
"""Column chunks of a Parquet file: 500 row groups of as many columns as there may be."""


class Copied(msgspec.Struct, frozen=True, kw_only=True):
    """The private copy of a file."""

    path: Path
    format: str
    sha256: str


def find_file(given: str, root: Path, *, anywhere: bool) -> Path:
    """A regular file below `root`, or wherever it is with `anywhere`; links are followed before that is judged.

    Raises: DrivetrainError.
    """
    try:
        found = (root / given).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DrivetrainError(
            f"The file `{given}` cannot be read: {reason}.", looked=[str(root)], do=_near_file(given, root)
        ) from None
    if not anywhere and not found.is_relative_to(root.resolve()):
        raise DrivetrainError(
            f"The file `{given}` is outside the project: it is {found}.",
            looked=[str(root)],
            do="Copy it into the project, or say --anywhere if it is meant.",
        )
    if not found.is_file():
        raise DrivetrainError(f"`{given}` is no regular file.", looked=[str(found)])
    if found.suffix.lower() not in FORMATS:
        raise DrivetrainError(
            f"`{given}` has no ending that says what it is.", do=f"Name it {', '.join(f'x{one}' for one in FORMATS)}."
        )
    return found


def _near_file(given: str, root: Path) -> str:
    """The name in the same folder of the project that is nearest."""
    try:
        folder = (root / given).parent.resolve(strict=True)
        if not folder.is_relative_to(root.resolve()):
            return ""
        names = sorted(one.name for one in islice(folder.iterdir(), NEAR_FILES_MAX) if one.suffix.lower() in FORMATS)
    except (OSError, RuntimeError, ValueError):
        return ""
    near = nearest(Path(given).name, names)
    return f"Did you mean `{Path(given).with_name(near)}`?" if near is not None else ""


def copy_file(bench: Bench, path: Path) -> Copied:
    """A private copy and its hash. Raises: DrivetrainError."""
    copy = bench.folder / "given"
    digest = hashlib.sha256()
    total = 0
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        with os.fdopen(fd, "rb") as source, copy.open("wb") as target:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise DrivetrainError(f"{path} is no regular file.", do="Write it to a file first.")
            while chunk := source.read(CHUNK_BYTES):
                total += len(chunk)
                if total > FILE_BYTES_MAX:
                    raise DrivetrainError(f"{path} has more than {FILE_BYTES_MAX:,} bytes.", do="Split it.")
                digest.update(chunk)
                target.write(chunk)
    except OSError as error:
        raise DrivetrainError(f"{path} cannot be copied: {error.strerror or error}.") from None
    if not total:
        raise DrivetrainError(f"{path} is empty.", do="Look whether it was written to its end.")
    return Copied(path=copy, format=FORMATS[path.suffix.lower()], sha256=digest.hexdigest())


def stage_file(bench: Bench, copied: Copied) -> Staged:
    """The rows of a copied file into `staged`. Raises: DrivetrainError."""
    if copied.format == "csv":
        return _stage_csv(bench, copied.path)
    if copied.format == "jsonl":
        return _stage_jsonl(bench, copied.path)
    return _stage_parquet(bench, copied.path)


# CSV.


def _stage_csv(bench: Bench, path: Path) -> Staged:
    records = _csv_records(path)
    header = next(records, None)
    if header is None:
        raise DrivetrainError("The CSV file has no header.", do="Write the names of its columns into its first line.")
    separator = other_separator(header)
    if separator:
        raise DrivetrainError(
            f"The CSV file has one column `{header[0][:SHOWN_CHARS_MAX]}`: is {separator} its separator?",
            do="Write it with commas.",
        )
    check_names(header)
    staged = stage_cells(bench, header, TEXT, _csv_cells(records, header))
    if not staged.rows:
        raise DrivetrainError("The CSV file has a header and no row.", do="Look whether it was written to its end.")
    return staged


def other_separator(header: Sequence[str]) -> str:
    """What seems to stand between the columns of a CSV instead of commas, in words; empty where nothing does."""
    if len(header) != 1:
        return ""
    return next((told for mark, told in OTHER_SEPARATORS.items() if mark in header[0]), "")


def _csv_records(path: Path) -> Iterator[list[str]]:
    """The header and the rows, as RFC 4180 has them: commas, quotes doubled. Blank lines are no rows."""
    lines = _Lines(path)
    before = csv.field_size_limit(CELL_BYTES_MAX)
    reader = csv.reader(lines, strict=True)
    row = 0
    try:
        while True:
            lines.record_bytes = 0
            csv.field_size_limit(CELL_BYTES_MAX)
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                where = f"row {row}" if row else "the header"
                raise DrivetrainError(
                    f"The CSV file cannot be read in {where}, line {reader.line_num}: {error}.",
                    do=f"Look for a quote that is never closed. A cell has at most {CELL_BYTES_MAX:,} characters.",
                ) from None
            if record:
                yield record
                row += 1
    finally:
        csv.field_size_limit(before)


def _csv_cells(records: Iterator[list[str]], header: Sequence[str]) -> Iterator[list[str | None]]:
    width = len(header)
    for row, record in enumerate(records, 1):
        if len(record) != width:
            last = header[min(len(record), width) - 1]
            raise DrivetrainError(
                f"Row {row} of the CSV file has {len(record):,} cells, and the header has {width:,} columns.",
                looked=[f"the last column that it has is `{last}`"],
                do="A file that was cut off, a comma outside quotes, or another separator looks like this.",
            )
        yield [cell or None for cell in record]


class _Lines:
    """The lines of a UTF-8 file, each and each record with a limit; bytes that are no text are refused."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._line = 0
        self.record_bytes = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        raw = self._file.readline(LINE_BYTES_MAX + 1)
        self._line += 1
        self.record_bytes += len(raw)
        if self._line == 1:
            raw = _without_mark(raw)
        if not raw:
            self._file.close()
            raise StopIteration
        if self.record_bytes > LINE_BYTES_MAX:
            raise DrivetrainError(f"The row at line {self._line} has more than {LINE_BYTES_MAX:,} bytes.")
        if b"\0" in raw:
            raise DrivetrainError(f"Line {self._line} has a NUL byte at {raw.index(0) + 1}: that is no text file.")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(self._line, error) from None


def _without_mark(raw: bytes) -> bytes:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DrivetrainError("The file is UTF-16, and only UTF-8 is read.", do="Save it as UTF-8.")
    return raw.removeprefix(codecs.BOM_UTF8)


def _not_utf8(line: int, error: UnicodeDecodeError) -> DrivetrainError:
    seen = error.object[error.start : error.start + 4].hex(" ")
    return DrivetrainError(
        f"Line {line} is not UTF-8: byte {error.start + 1} begins {seen}.",
        do="Save the file as UTF-8; nobody here guesses an encoding.",
    )


# JSON lines.


def _stage_jsonl(bench: Bench, path: Path) -> Staged:
    names = _keys(path)
    places = {name: place for place, name in enumerate(names)}
    staged = stage_cells(bench, names, JSON_CELL, (_cells(row, one, places) for row, one in _objects(path)))
    if not staged.rows:
        raise DrivetrainError("The file has no row.")
    return staged


def _keys(path: Path) -> list[str]:
    """Every key of every row, in the order in which they come; a row without one has null there."""
    names: dict[str, None] = {}
    for row, one in _objects(path):
        if one.keys() - names.keys():
            names.update(dict.fromkeys(one))
            if len(names) > COLUMNS_MAX:
                raise DrivetrainError(f"Up to row {row} there are more than {COLUMNS_MAX:,} keys.")
    return list(names)


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    row = 0
    lines = _Lines(path)
    while True:
        lines.record_bytes = 0
        line = next(lines, None)
        if line is None:
            return
        if not line.strip():
            continue
        row += 1
        try:
            found = parse_json(line.encode())
        except MalformedJson as error:
            raise DrivetrainError(
                f"Row {row} is no JSON: {error}.", do="A file that was cut off in the middle of a row looks like this."
            ) from None
        if not isinstance(found, dict):
            raise DrivetrainError(f"Row {row} is no JSON object.", do='Write one {"column": value, ...} per line.')
        yield row, found


def _cells(row: int, one: dict[str, Any], places: dict[str, int]) -> list[str | None]:
    cells: list[str | None] = [None] * len(places)
    for name, value in one.items():
        if value is None:
            continue
        cell = _cell(value)
        if len(cell) > CELL_BYTES_MAX:
            raise DrivetrainError(f"Row {row}, column {name}: a cell has at most {CELL_BYTES_MAX:,} characters.")
        cells[places[name]] = cell
    return cells


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "btrue" if value else "bfalse"
    if isinstance(value, int):
        return f"i{value}"
    if isinstance(value, float):
        return f"f{value!r}"
    return "s" + value if isinstance(value, str) else "j" + JSON.encode(value).decode()


# Parquet.


def _stage_parquet(bench: Bench, path: Path) -> Staged:
    import duckdb

    source = f"SELECT * FROM read_parquet({literal(str(path))})"
    reader = bench.connection.cursor()
    try:
        _measure_parquet(reader, path, source)
        relation = reader.sql(source)
        staged = stage_stream(
            bench, relation.columns, [str(one) for one in relation.types], relation, naive_is_utc=False
        )
    except duckdb.OutOfMemoryException:
        raise
    except (duckdb.Error, UnicodeDecodeError, ValueError) as error:
        raise DrivetrainError(
            f"The Parquet file cannot be read: {str(error).splitlines()[0][:500]}",
            do="It is damaged, cut off, or not what its footer says. Write it anew.",
        ) from None
    finally:
        reader.close()
    if not staged.rows:
        raise DrivetrainError("The file has no row.")
    return staged


def _measure_parquet(reader: Any, path: Path, source: str) -> None:
    """Whether its rows fit, before any is copied: what a footer says is compared with what the pages hold."""
    columns = reader.execute(f"DESCRIBE {source}").fetchall()
    check_names([str(row[0]) for row in columns])
    for row in columns:
        check_kind(str(row[0]), str(row[1]))
    _check_footer(reader, path, frozenset(str(row[0]) for row in columns))
    names = ", ".join(f"c{place}" for place in range(len(columns)))
    given = f"FROM ({source}) AS given({names})"
    for place, (name, kind, *_) in enumerate(columns):
        if str(kind).startswith(("VARCHAR", "JSON")):
            text = f"c{place}"
        elif is_nested(str(kind)):
            text = f"CAST(to_json(c{place}) AS VARCHAR)"
        else:
            continue
        longest, total = reader.execute(f"SELECT max(strlen({text})), sum(strlen({text})) {given}").fetchall()[0]
        if (longest or 0) > CELL_BYTES_MAX:
            row = reader.execute(
                f"SELECT n FROM (SELECT row_number() OVER () AS n, strlen({text}) AS size {given}) "
                f"WHERE size > {CELL_BYTES_MAX} ORDER BY n LIMIT 1"
            ).fetchall()[0][0]
            raise DrivetrainError(
                f"Row {row}, column {name}: the cell has {longest:,} bytes; a cell has at most {CELL_BYTES_MAX:,}."
            )
        if (total or 0) > STAGED_BYTES_MAX:
            raise DrivetrainError(f"Column {name} takes {total:,} bytes unpacked; at most {STAGED_BYTES_MAX:,} fit.")


def _check_footer(reader: Any, path: Path, columns: frozenset[str]) -> None:
    """Whether file, row groups, column chunks and pages agree on how many rows there are."""
    given = literal(str(path))
    promised = reader.execute(f"SELECT sum(num_rows) FROM parquet_file_metadata({given})").fetchall()[0][0] or 0
    if promised > ROWS_MAX:
        raise too_many_rows()
    chunks = reader.execute(
        "SELECT row_group_id, row_group_num_rows, path_in_schema, dictionary_page_offset, data_page_offset, "
        f"total_compressed_size, num_values FROM parquet_metadata({given})"
    ).fetchall()
    if len(chunks) > CHUNKS_MAX:
        raise DrivetrainError(f"The Parquet file has {len(chunks):,} column chunks, over {CHUNKS_MAX:,}: write larger.")
    held = sum({group: rows for group, rows, *_ in chunks}.values())
    if held != promised:
        raise DrivetrainError(
            f"The Parquet file cannot be read: its row groups have {held:,} rows, and its footer says {promised:,}."
        )
    for group, rows, column, *_, values in chunks:
        if column in columns and values != rows:
            raise DrivetrainError(
                f"The Parquet file cannot be read: row group {group} has {rows:,} rows, and {values:,} of {column}."
            )
    check_pages(
        path,
        [
            Chunk(str(column), min(one for one in (dictionary, data) if one), packed, values)
            for _, _, column, dictionary, data, packed, values in chunks
            if dictionary or data
        ],
    )
