"""`schema.toml`: what a Dataset's columns must hold, as a person declares it before any row is read."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.datasets import TYPES, ColumnV1, SchemaV1, Value
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.times import span_us

OTHERS = ("refuse", "infer", "drop")
REFERENCED = re.compile(r"([a-z][a-z0-9_-]{0,63}@[1-9][0-9]{0,8})\.(.+)")
SCHEMA_BYTES_MAX = 1024 * 1024
"""A schema that people wrote is smaller."""
_COLUMN_FIELDS = tuple(name for name in ColumnV1.__struct_fields__ if name != "name")
_ORDERED = ("int64", "float64", "timestamp", "date")


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What a person said of the columns, before any row is read."""

    schema: SchemaV1 = SchemaV1(columns=())
    others: str = "infer"
    """What happens to columns that it does not name: `refuse`, `infer` or `drop`."""


NOTHING_DECLARED = Declared()
"""Every column is inferred."""


def read_schema(path: Path) -> Declared:
    """A schema file. Raises: DrivetrainError with every mistake."""
    try:
        with path.open("rb") as file:
            raw = file.read(SCHEMA_BYTES_MAX + 1)
        if len(raw) > SCHEMA_BYTES_MAX:
            raise DrivetrainError(f"{path} has more than {SCHEMA_BYTES_MAX:,} bytes: that is no schema.")
        document = tomllib.loads(raw.decode("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DrivetrainError(f"The schema {path} cannot be read: {error}.") from None
    return parse_schema(document, str(path))


def parse_schema(document: Mapping[str, Any], where: str = "the schema") -> Declared:
    """A schema's document: `timezone`, `others`, `unique`, `[columns.NAME]`. Raises: DrivetrainError."""
    problems: list[str] = []
    for name in document:
        if name not in ("timezone", "others", "unique", "columns"):
            problems.append(f"`{name}` is not known. {did_you_mean(name, ('timezone', 'others', 'unique', 'columns'))}")
    tables = document.get("columns", {})
    if not isinstance(tables, dict):
        raise DrivetrainError(f"`columns` in {where} is no table.", do='Write [columns.NAME] with `type = "..."`.')
    columns = tuple(_column(name, table, problems) for name, table in tables.items())
    timezone = document.get("timezone", "")
    if timezone not in ("", "UTC"):
        problems.append('`timezone` can only be "UTC": convert other times where you know their zone.')
    others = document.get("others", "refuse")
    if others not in OTHERS:
        problems.append(f"`others` is one of {', '.join(OTHERS)}.")
    unique = _together(document.get("unique", []), {one.name for one in columns}, problems)
    if problems:
        raise DrivetrainError(
            f"{len(problems)} mistake{'s' if len(problems) > 1 else ''} in {where}:\n" + "\n".join(problems),
            do="docs/reference/datasets.md has what a schema may say.",
        )
    return Declared(schema=SchemaV1(columns=columns, unique=unique, timezone=timezone), others=others)


def _column(name: str, table: Any, problems: list[str]) -> ColumnV1:
    if not isinstance(table, dict):
        problems.append(f"`columns.{name}` is no table.")
        return ColumnV1(name=name, type="string")
    given = {key: _plain(value) for key, value in table.items()}
    before = len(problems)
    for key in given:
        if key not in _COLUMN_FIELDS:
            problems.append(f"`columns.{name}.{key}` is not known. {did_you_mean(key, _COLUMN_FIELDS)}")
    if given.get("type") not in TYPES:
        problems.append(f"`columns.{name}.type` is one of {', '.join(TYPES)}.")
    if len(problems) > before:
        return ColumnV1(name=name, type="string")
    try:
        column = msgspec.convert({"name": name, **given}, ColumnV1)
    except msgspec.ValidationError as error:
        problems.append(f"`columns.{name}`: {error}.")
        return ColumnV1(name=name, type="string")
    problems.extend(f"`columns.{name}.{what}" for what in _contradictions(column))
    return column


def _contradictions(column: ColumnV1) -> list[str]:
    found = []
    for field in ("minimum", "maximum"):
        bound = getattr(column, field)
        if bound is not None and column.type not in _ORDERED:
            found.append(f"{field}` holds for {', '.join(_ORDERED)} only.")
        elif bound is not None and not fits(bound, column.type):
            found.append(f"{field}` is no {column.type}: {bound!r}.")
    found.extend(
        f"values` has what is no {column.type}: {one!r}." for one in column.values if not fits(one, column.type)
    )
    if column.pattern and column.type != "string":
        found.append("pattern` holds for string only.")
    elif column.pattern and not _is_pattern(column.pattern):
        found.append(f"pattern` is no regular expression that RE2 knows: {column.pattern!r}.")
    if column.references and REFERENCED.fullmatch(column.references) is None:
        found.append(f"references` is `DATASET@NUMBER.COLUMN`, not {column.references!r}.")
    if column.fresh_within and column.type not in ("timestamp", "date"):
        found.append("fresh_within` holds for timestamp and date only.")
    elif column.fresh_within:
        try:
            span_us(column.fresh_within)
        except ValueError as error:
            found.append(f"fresh_within` is no duration such as `6h`: {column.fresh_within!r}. {error}")
    return found


def fits(value: Value, kind: str) -> bool:
    """Whether a constraint's value is of a column's type."""
    if kind == "bool":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if kind == "int64":
        return isinstance(value, int) and -(2**63) <= value < 2**63
    if kind == "float64":
        return isinstance(value, int | float) and abs(float(value)) < float("inf")
    if not isinstance(value, str):
        return False
    try:
        if kind == "timestamp":
            return datetime.fromisoformat(value).tzinfo is not None
        if kind == "date":
            return bool(date.fromisoformat(value))
    except ValueError:
        return False
    return True


def _is_pattern(pattern: str) -> bool:
    import duckdb

    with duckdb.connect() as connection:
        try:
            connection.execute("SELECT regexp_full_match('', ?)", [pattern]).fetchall()
        except duckdb.Error:
            return False
    return True


def _plain(value: Any) -> Any:
    """TOML's own dates as ISO text."""
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo else value).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _together(given: Any, known: set[str], problems: list[str]) -> tuple[tuple[str, ...], ...]:
    if not isinstance(given, list) or not all(isinstance(one, list) and one for one in given):
        problems.append('`unique` is a list of lists of columns: [["customer", "day"]].')
        return ()
    for group in given:
        problems.extend(
            f"`unique` names `{one}`, which is no column. {did_you_mean(str(one), known)}"
            for one in group
            if one not in known
        )
    return tuple(tuple(map(str, group)) for group in given)
