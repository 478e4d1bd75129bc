"""A Dataset's rows as a file for others: CSV, JSON lines or Parquet, whole or not there at all.

In CSV a text that a spreadsheet would take for a formula gets a quote before it; what is missing is empty.
"""

# ruff: noqa: S608 - cells are named by position, and every name or text from outside is quoted

from __future__ import annotations

import csv
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.codec import JSON
from drivetrain.core.datasets import SPLIT_GROUP, ColumnV1, DatasetV1
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.sql import identifier, literal
from drivetrain.datasets.numbers import file_hash
from drivetrain.datasets.staging import Bench

FORMATS = ("csv", "jsonl", "parquet")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What spreadsheets begin a formula with, in full width too."""


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was written."""

    path: str
    rows: int
    sha256: str
    columns: tuple[str, ...]
    left_out: tuple[str, ...]
    """Personal columns, and the group that comes of their values, that are not part of it."""
    personal: tuple[str, ...] = ()
    """Personal columns that are part of it."""


def write_export(
    bench: Bench,
    dataset: DatasetV1,
    source: str,
    to: Path,
    *,
    format: str,
    personal: bool,
    noted: Callable[[Mapping[str, Any]], object],
) -> Export:
    """source: the FROM item of the rows. noted: called when the file is whole and before it is there.

    Raises: DrivetrainError where it is there already, or cannot be written.
    """
    import duckdb

    if format not in FORMATS:
        raise DrivetrainError(f"`{format}` is no format of an export.", do=did_you_mean(format, FORMATS))
    left_out = () if personal else _left_out(dataset)
    columns = [one for one in dataset.all_columns if one.name not in left_out]
    if not columns:
        raise DrivetrainError(
            "Every column is personal: nothing is left to export.", do="Export with personal columns."
        )
    if to.exists() or to.is_symlink():
        raise DrivetrainError(f"{to} is there already.", do="Name another file, or remove it first.")
    half = to.with_name(f".{secrets.token_hex(8)}.new")
    try:
        if format == "parquet":
            listed = ", ".join(identifier(one.name) for one in columns)
            bench.connection.execute(
                f"COPY (SELECT {listed} FROM {source}) TO {literal(str(half))} (FORMAT parquet, COMPRESSION zstd)"
            )
        else:
            _write_rows(bench, columns, source, half, format)
        rows = int(bench.one(f"SELECT count(*) FROM {source}"))
        export = Export(
            path=str(to), rows=rows, sha256=file_hash(half), columns=tuple(one.name for one in columns),
            left_out=left_out, personal=tuple(one.name for one in columns if one.personal),
        )  # fmt: skip
        has_personal = bool(export.personal)
        noted({"format": format, "rows": rows, "sha256": export.sha256, "personal": has_personal})
        os.link(half, to)  # unlike a rename it never replaces what came there meanwhile
    except FileExistsError:
        raise DrivetrainError(f"{to} is there already.", do="Name another file, or remove it first.") from None
    except (OSError, duckdb.IOException) as error:
        raise DrivetrainError(
            f"{to} cannot be written: {str(error).splitlines()[0]}", do="Make room, or name another folder."
        ) from None
    finally:
        half.unlink(missing_ok=True)
    return export


def _left_out(dataset: DatasetV1) -> tuple[str, ...]:
    """What tells of persons: personal columns and, as it is a hash of what rows hold, the group of a split."""
    return tuple(one.name for one in dataset.all_columns if one.personal or one.name == SPLIT_GROUP)


def _write_rows(bench: Bench, columns: list[ColumnV1], source: str, path: Path, format: str) -> None:
    names = [one.name for one in columns]
    cells = ", ".join(_cell(one) for one in columns)
    rows = bench.rows(f"SELECT {cells} FROM {source}")
    json_places = [place for place, one in enumerate(columns) if one.type == "json"]
    if format == "csv":
        with path.open("w", encoding="utf-8", newline="") as text:
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow([_safe(name) for name in names])
            writer.writerows([_safe(cell) for cell in row] for row in rows)
            text.flush()
            os.fsync(text.fileno())
        return
    with path.open("wb") as file:
        for row in rows:
            values: list[Any] = list(row)
            for place in json_places:
                if values[place] is not None:
                    values[place] = msgspec.Raw(values[place].encode())
            file.write(JSON.encode(dict(zip(names, values, strict=True))) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _cell(column: ColumnV1) -> str:
    name = identifier(column.name)
    if column.type == "timestamp":
        return f"strftime(timezone('UTC', {name}), '%Y-%m-%dT%H:%M:%S.%fZ')"
    return f"CAST({name} AS VARCHAR)" if column.type == "date" else name


def _safe(cell: Any) -> Any:
    """A cell that a spreadsheet does not take for a formula."""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell
