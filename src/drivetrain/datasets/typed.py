"""From staged cells to typed values: strict, and the same for every row; types that nobody declared are inferred.

Inference looks at every row, never at a sample. It takes the narrowest type that loses nothing: `007`, `+49 30 1` and
a number of 25 digits stay text.
"""

# ruff: noqa: S608 - cells are named by position, and every name or text from outside is quoted

from __future__ import annotations

from collections.abc import Callable

import msgspec

from drivetrain.core.datasets import ColumnV1
from drivetrain.core.sql import literal
from drivetrain.datasets.staging import JSON_CELL, TEXT, Bench, Staged, is_nested

_WHOLE = "[+-]?[0-9]{1,19}"
_NUMBER = r"[+-]?([0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})([eE][+-]?[0-9]{1,4})?"
_PLAIN_WHOLE = "0|-?[1-9][0-9]{0,18}"
_PLAIN_NUMBER = r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,4})?"
"""With up to 15 digits before the point: more would not survive as a float."""
_NOT_FINITE = "[+-]?(nan|inf|infinity)"
_DATE = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_NAIVE = _DATE + r"([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6}0*)?)?)?"
_TIME = _DATE + r"[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6}0*)?)?"
_ZONED = _TIME + " ?(Z|[+-](0[0-9]|1[0-5])(:?[0-5][0-9])?)"
_WHOLES = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "HUGEINT",
           "UHUGEINT")  # fmt: skip

STORED = {
    "int64": "BIGINT", "float64": "DOUBLE", "string": "VARCHAR", "bool": "BOOLEAN",
    "timestamp": "TIMESTAMP WITH TIME ZONE", "date": "DATE", "json": "VARCHAR",
}  # fmt: skip
"""Our types as DuckDB's."""


class Reading(msgspec.Struct, frozen=True):
    """How one staged column becomes typed, in SQL."""

    cell: str
    """As it came."""
    value: str
    """The typed value; null where there is none or it is wrong."""
    shown: str
    """What to show of a wrong one."""
    faults: tuple[tuple[str, str], ...]
    """(constraint, condition): each row is held against all; the last is `type`, for what the others do not name."""


def reading(place: int, kind: str, column: ColumnV1, *, utc: bool) -> Reading:
    """How the staged column `place`, which came as `kind`, is read as `column`. utc: naive times are UTC."""
    cell = f"c{place}"
    if kind == TEXT:
        return _of_text(column.type, cell, f"{cell} IS NOT NULL", utc=utc)
    if kind == JSON_CELL:
        return _of_json(cell, column.type, utc=utc)
    if column.type not in ("string", "json") and _is_text(kind):
        return _of_text(column.type, cell, f"{cell} IS NOT NULL", utc=utc)
    return _of_typed(cell, kind, column.type, utc=utc)


def infer(bench: Bench, staged: Staged, place: int) -> str:
    """The type of a staged column, from all of its rows."""
    kind, cell = staged.kinds[place], f"c{place}"
    if kind == TEXT:
        return _infer_text(bench, cell, "staged")
    if kind == JSON_CELL:
        return _infer_json(bench, cell)
    if _is_whole(kind):
        return "int64"
    if kind in ("FLOAT", "DOUBLE") or kind.startswith("DECIMAL"):
        return "float64"
    if kind.startswith("TIMESTAMP"):
        return "timestamp"
    if kind == "JSON" or is_nested(kind):
        return "json"
    return {"BOOLEAN": "bool", "DATE": "date"}.get(kind, "string")


def _of_text(kind: str, text: str, present: str, *, utc: bool) -> Reading:
    """A text cell. `present`: whether the row has one."""
    nul = ("text", f"{present} AND contains({text}, chr(0))")
    value, named = _TEXT_READINGS[kind](text, utc)
    wrong = " OR ".join(f"({condition})" for _, condition in (*named, nul))
    last = ("type", f"{present} AND {value} IS NULL AND NOT coalesce({wrong}, false)")
    faults = (*((name, f"{present} AND {condition}") for name, condition in named), nul, last)
    return Reading(text, value, text, faults)


def _text_whole(text: str, _utc: bool) -> tuple[str, tuple[tuple[str, str], ...]]:
    return f"CASE WHEN {_like(text, _WHOLE)} THEN TRY_CAST({text} AS BIGINT) END", ()


def _text_number(text: str, _utc: bool) -> tuple[str, tuple[tuple[str, str], ...]]:
    value = f"CASE WHEN {_like(text, _NUMBER)} THEN TRY_CAST({text} AS DOUBLE) END"
    endless = f"({_like(f'lower({text})', _NOT_FINITE)} OR NOT isfinite({value}))"
    return f"CASE WHEN isfinite({value}) THEN {value} END", (("finite", endless),)


def _text_bool(text: str, _utc: bool) -> tuple[str, tuple[tuple[str, str], ...]]:
    return f"CASE lower({text}) WHEN 'true' THEN true WHEN 'false' THEN false END", ()


def _text_timestamp(text: str, utc: bool) -> tuple[str, tuple[tuple[str, str], ...]]:
    zoned = f"CASE WHEN {_like(text, _ZONED)} THEN TRY_CAST({text} AS TIMESTAMPTZ) END"
    if not utc:
        return zoned, (("time zone", _like(text, _NAIVE)),)
    naive = f"CASE WHEN {_like(text, _NAIVE)} THEN timezone('UTC', TRY_CAST({text} AS TIMESTAMP)) END"
    return f"coalesce({zoned}, {naive})", ()


def _text_date(text: str, _utc: bool) -> tuple[str, tuple[tuple[str, str], ...]]:
    return f"CASE WHEN {_like(text, _DATE)} THEN TRY_CAST({text} AS DATE) END", ()


def _text_json(text: str, _utc: bool) -> tuple[str, tuple[tuple[str, str], ...]]:
    return f"CASE WHEN json_valid({text}) THEN {text} END", ()


def _text_string(text: str, _utc: bool) -> tuple[str, tuple[tuple[str, str], ...]]:
    return text, ()


_TEXT_READINGS: dict[str, Callable[[str, bool], tuple[str, tuple[tuple[str, str], ...]]]] = {
    "int64": _text_whole, "float64": _text_number, "bool": _text_bool, "timestamp": _text_timestamp,
    "date": _text_date, "json": _text_json, "string": _text_string,
}  # fmt: skip


def _of_json(cell: str, kind: str, *, utc: bool) -> Reading:
    """A cell with JSON's kind as its first letter. A number is no text, and a text no number."""
    text = f"substr({cell}, 2)"
    if kind == "json":
        written = f"CASE WHEN left({cell}, 1) = 's' THEN CAST(to_json({text}) AS VARCHAR) ELSE {text} END"
        nul = ("text", f"{cell} IS NOT NULL AND contains({cell}, chr(0))")
        return Reading(cell, written, text, (nul,))
    letters = {"int64": "i", "float64": "if", "bool": "b"}.get(kind, "s")
    fits = f"contains({literal(letters)}, left({cell}, 1))"
    inner = _of_text(kind, f"(CASE WHEN {fits} THEN {text} END)", f"{cell} IS NOT NULL", utc=utc)
    return Reading(cell, inner.value, text, inner.faults)


def _of_typed(cell: str, kind: str, wanted: str, *, utc: bool) -> Reading:
    """A cell of a typed source."""
    value = "NULL"
    named: list[tuple[str, str]] = []
    if _is_whole(kind) and wanted in ("int64", "float64"):
        value = f"TRY_CAST({cell} AS {STORED[wanted]})"
    elif kind in ("FLOAT", "DOUBLE") or kind.startswith("DECIMAL"):
        number = f"CAST({cell} AS DOUBLE)"
        if wanted == "float64":
            value = f"CASE WHEN isfinite({number}) THEN {number} END"
        elif wanted == "int64":
            value = f"CASE WHEN {number} = trunc({number}) AND abs({number}) < 9007199254740992 THEN {cell}::BIGINT END"
        named.append(("finite", f"NOT isfinite({number})"))
    elif kind.startswith("TIMESTAMP") and wanted == "timestamp":
        zoned = kind == "TIMESTAMP WITH TIME ZONE"
        moment = cell if zoned else f"timezone('UTC', CAST({cell} AS TIMESTAMP))"
        value = f"CASE WHEN isfinite({moment}) THEN {moment} END"
        if not zoned and not utc:
            named.append(("time zone", "true"))
        named.append(("finite", f"NOT isfinite({moment})"))
    elif kind == "BOOLEAN" and wanted == "bool":
        value = cell
    elif kind == "DATE" and wanted == "date":
        value = f"CASE WHEN isfinite({cell}) THEN {cell} END"
    elif _is_text(kind) and wanted == "string":
        value = cell
        named.append(("text", f"contains({cell}, chr(0))"))
    elif wanted == "json":
        value = f"CASE WHEN json_valid({cell}) THEN {cell} END" if kind == "JSON" or _is_text(kind) else cell
        if not (_is_text(kind) or kind == "JSON" or is_nested(kind)):
            value = "NULL"
    wrong = " OR ".join(f"({condition})" for _, condition in named) or "false"
    typed = f"{cell} IS NOT NULL AND ({value}) IS NULL AND NOT coalesce({wrong}, false)"
    faults = (*((name, f"{cell} IS NOT NULL AND {condition}") for name, condition in named), ("type", typed))
    return Reading(cell, value, f"CAST({cell} AS VARCHAR)", faults)


def _infer_text(bench: Bench, cell: str, table: str) -> str:
    finite = f"TRY_CAST({cell} AS DOUBLE) IS NOT NULL"
    number = f"({_like(cell, _PLAIN_NUMBER)} AND {finite})"
    conditions = (
        ("int64", f"{_like(cell, _PLAIN_WHOLE)} AND TRY_CAST({cell} AS BIGINT) IS NOT NULL"),
        ("float64", f"{number} OR {_like(f'lower({cell})', _NOT_FINITE)}"),
        ("bool", f"lower({cell}) IN ('true', 'false')"),
        ("date", f"{_like(cell, _DATE)} AND TRY_CAST({cell} AS DATE) IS NOT NULL"),
        ("timestamp", f"{_like(cell, _ZONED)} OR {_like(cell, _TIME)}"),
    )
    asked = [f"count(*) FILTER (WHERE {condition})" for _, condition in conditions]
    row = bench.connection.execute(
        f"SELECT count({cell}), count(*) FILTER (WHERE {number}), {', '.join(asked)} FROM {table}"
    ).fetchall()[0]
    present, numbers, counts = row[0], row[1], row[2:]
    if not present:
        return "string"
    for (kind, _), count in zip(conditions, counts, strict=True):
        if count == present and (kind != "float64" or numbers):
            return kind
    return "string"


def _infer_json(bench: Bench, cell: str) -> str:
    found = {
        str(letter) for (letter,) in bench.rows(f"SELECT DISTINCT left({cell}, 1) FROM staged WHERE {cell} IS NOT NULL")
    }
    if found == {"s"}:
        kind = _infer_text(bench, "t", f"(SELECT substr({cell}, 2) AS t FROM staged)")
        return kind if kind in ("timestamp", "date") else "string"
    if not found:
        return "string"
    for kind, letters in (("int64", {"i"}), ("float64", {"i", "f"}), ("bool", {"b"}), ("json", {"j"})):
        if found <= letters:
            return kind
    # What JSON itself mixes is no column of one type: the commonest kind holds, and every other value is listed.
    commonest = bench.one(
        f"SELECT left({cell}, 1) FROM staged WHERE {cell} IS NOT NULL GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1"
    )
    if commonest in ("i", "f"):
        return "float64" if "f" in found else "int64"
    return {"s": "string", "b": "bool", "j": "json"}[str(commonest)]


def _is_whole(kind: str) -> bool:
    return kind in _WHOLES or (kind.startswith("DECIMAL") and kind.endswith(",0)"))


def _is_text(kind: str) -> bool:
    return kind.startswith(("VARCHAR", "ENUM", "UUID"))


def _like(cell: str, pattern: str) -> str:
    return f"regexp_full_match({cell}, {literal(pattern)})"
