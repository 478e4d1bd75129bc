"""Whether rows hold what a schema says: every violation by row, column, value and constraint.

Reads `staged`, writes `kept` (typed, with the row numbers of `staged`), `violations`, and `whose` those are. Called
when a Dataset is made and, with its own rows staged again, when it is verified.
"""

# ruff: noqa: S608 - cells are named by position, and every name or text from outside is quoted

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from drivetrain.core.datasets import ColumnV1, SchemaV1, Value
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.sql import identifier, literal
from drivetrain.core.times import span_us
from drivetrain.datasets.schema import REFERENCED, Declared
from drivetrain.datasets.staging import Bench, Staged
from drivetrain.datasets.typed import STORED, Reading, infer, reading

LISTED_MAX = 1_000
"""Violations that an error lists; it has the number of all."""
SHOWN_CHARS_MAX = 200
ALLOWED_SHOWN = 10
"""Values that a column may have, where one that it may not have is told."""
ALLOWED_CHARS_MAX = 40
"""Of each of them."""
QUARANTINED_MAX = 10_000_000
"""Violations that are kept at all; a source with more is not a source with some bad rows."""
CALL_ID = "call_id"
"""A column of this name says whose a row is, as a column marked `subject` does."""
AT_ONCE = 100
"""Conditions that are counted in one pass over the rows."""

ReferencedFiles = Callable[[str], Sequence[Path]]
"""`golden@2` -> its Parquet files. Raises: DrivetrainError where there is none."""


class Violation(msgspec.Struct, frozen=True):
    """One value that a constraint does not allow."""

    row: int
    """1 is the first; 0: the column as a whole."""
    column: str
    constraint: str
    """`type`, `time zone`, `finite`, `text`, or the constraint's name in the schema with what it allows."""
    value: str

    def __str__(self) -> str:
        where = f"row {self.row}, column {self.column}" if self.row else f"column {self.column}"
        name, _, allowed = self.constraint.partition(" ")
        if name == "values" and allowed:
            return f"{where}: {self.value!r} is none of {allowed}"
        return f"{where}: {self.value!r} violates {self.constraint}"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a check found; the rows without any are in `kept`."""

    violations: tuple[Violation, ...]
    """The first `LISTED_MAX`, by row."""
    total: int
    bad_rows: int
    whole: tuple[Violation, ...]
    """Those of a column as a whole, which no row can be blamed for."""


class DatasetRefused(DrivetrainError):
    """Rows that violate their schema; nothing was made of them."""

    def __init__(self, name: str, found: Found) -> None:
        self.violations = found.violations
        self.total = found.total
        listed = "\n".join(f"  {one}" for one in found.violations)
        rest = found.total - len(found.violations)
        more = f"\n  and {rest:,} more" if rest else ""
        what = f"{counted(found.total, 'violation')} in {counted(found.bad_rows, 'row')}"
        zones = any(one.constraint == "time zone" for one in found.violations)
        do = "Mend the source or the schema"
        do += ", or let the good rows in with --allow-quarantine." if not found.whole else "."
        if zones:
            do += '\nGive times their zone (`Z`, `+02:00`), or say `timezone = "UTC"` in the schema if they are UTC.'
        super().__init__(f"Dataset `{name}` is not made: {what}.\n{listed}{more}", do=do)


def counted(count: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def settle(bench: Bench, staged: Staged, declared: Declared) -> SchemaV1:
    """The schema of what is staged: as declared, and inferred for the rest. Raises: DrivetrainError."""
    known = {one.name: one for one in declared.schema.columns}
    missing = [name for name in known if name not in staged.names]
    if missing:
        raise DrivetrainError(
            f"The schema has column{'s' if len(missing) > 1 else ''} {_named(missing)}, and the rows do not.",
            do=f"The rows have {_named(staged.names)}.",
        )
    extra = [name for name in staged.names if name not in known]
    if extra and declared.others == "refuse":
        raise DrivetrainError(
            f"The rows have column{'s' if len(extra) > 1 else ''} {_named(extra)}, and the schema does not.",
            do='Declare them, or say `others = "infer"` or `others = "drop"` at the top of the schema.',
        )
    columns = [
        known.get(name) or ColumnV1(name=name, type=infer(bench, staged, place))
        for place, name in enumerate(staged.names)
        if name in known or declared.others == "infer"
    ]
    return msgspec.structs.replace(declared.schema, columns=tuple(columns))


def check(bench: Bench, staged: Staged, schema: SchemaV1, *, referenced: ReferencedFiles, now_ns: int) -> Found:
    """Fills `kept` and `violations`; raises nothing for what rows hold. Raises: DrivetrainError."""
    utc = schema.timezone == "UTC" or staged.naive_is_utc
    places = {name: place for place, name in enumerate(staged.names)}
    readings = [reading(places[one.name], staged.kinds[places[one.name]], one, utc=utc) for one in schema.columns]
    connection = bench.connection
    typed = ", ".join(
        f"CAST({one.value} AS {STORED[column.type]}) AS v{place}"
        for place, (column, one) in enumerate(zip(schema.columns, readings, strict=True))
    )
    connection.execute(f"CREATE TABLE typed AS SELECT r, {typed} FROM staged ORDER BY r")
    connection.execute('CREATE TABLE violations (r BIGINT, "column" VARCHAR, "constraint" VARCHAR, "value" VARCHAR)')
    _note(bench, "staged", list(_faults(schema.columns, readings)))
    _note(bench, "typed", list(_constraints(bench, schema, referenced)))
    for group in (*((one.name,) for one in schema.columns if one.unique), *schema.unique):
        _note_equal(bench, schema, group)
    whole = tuple(_old(bench, schema, now_ns))
    total = int(bench.one("SELECT count(*) FROM violations")) + len(whole)
    bad_rows = int(bench.one("SELECT count(DISTINCT r) FROM violations"))
    listed = connection.execute(
        'SELECT r, "column", "constraint", coalesce("value", \'null\') FROM violations '
        f'ORDER BY r, "column", "constraint" LIMIT {LISTED_MAX}'
    ).fetchall()
    whose = [
        f"CAST({one.shown} AS VARCHAR)"
        for column, one in zip(schema.columns, readings, strict=True)
        if column.subject or column.name == CALL_ID
    ]
    connection.execute(
        f"CREATE TABLE whose AS SELECT r, CAST([{', '.join(whose)}] AS VARCHAR[]) AS whose "
        "FROM staged WHERE r IN (SELECT r FROM violations)"
    )
    connection.execute("CREATE TABLE kept AS SELECT * FROM typed WHERE r NOT IN (SELECT r FROM violations) ORDER BY r")
    connection.execute("DROP TABLE typed")
    first = (*whole, *(Violation(*row) for row in listed))[:LISTED_MAX]
    return Found(violations=first, total=total, bad_rows=bad_rows, whole=whole)


class _Condition(msgspec.Struct, frozen=True):
    """Where `holds`, the row violates `constraint`."""

    column: str
    constraint: str
    shown: str
    holds: str


def _faults(columns: Sequence[ColumnV1], readings: Sequence[Reading]) -> Iterator[_Condition]:
    for column, one in zip(columns, readings, strict=True):
        for constraint, condition in one.faults:
            told = f"type {column.type}" if constraint == "type" else constraint
            yield _Condition(column.name, told, one.shown, condition)
        if not column.nullable:
            yield _Condition(column.name, "nullable", "NULL", f"{one.cell} IS NULL")


def _constraints(bench: Bench, schema: SchemaV1, referenced: ReferencedFiles) -> Iterator[_Condition]:
    for place, column in enumerate(schema.columns):
        cell = f"v{place}"
        shown = f"CAST({cell} AS VARCHAR)"
        for name, sign in (("minimum", "<"), ("maximum", ">")):
            bound = getattr(column, name)
            if bound is not None:
                yield _Condition(column.name, f"{name} {bound}", shown, f"{cell} {sign} {_literal(bound, column)}")
        if column.values:
            allowed = ", ".join(_literal(one, column) for one in column.values)
            yield _Condition(column.name, f"values {_allowed(column.values)}", shown, f"{cell} NOT IN ({allowed})")
        if column.pattern:
            condition = f"NOT regexp_full_match({cell}, {literal(column.pattern)})"
            yield _Condition(column.name, f"pattern {column.pattern}", shown, condition)
        if column.references:
            known = _referenced(bench, place, column, referenced)
            condition = f"{cell} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {known} WHERE {known}.v = typed.{cell})"
            yield _Condition(column.name, f"references {column.references}", shown, condition)


def _allowed(values: Sequence[Value]) -> str:
    shown = ", ".join(repr(one)[:ALLOWED_CHARS_MAX] for one in values[:ALLOWED_SHOWN])
    return f"{shown} and {len(values) - ALLOWED_SHOWN:,} more" if len(values) > ALLOWED_SHOWN else shown


def _referenced(bench: Bench, place: int, column: ColumnV1, referenced: ReferencedFiles) -> str:
    """A table with the values that a column may have."""
    import duckdb

    found = REFERENCED.fullmatch(column.references)
    assert found is not None, column.references
    files = ", ".join(literal(str(path)) for path in referenced(found[1]))
    table = f"known{place}"
    try:
        bench.connection.execute(
            f"CREATE TABLE {table} AS SELECT DISTINCT CAST({identifier(found[2])} AS {STORED[column.type]}) AS v "
            f"FROM read_parquet([{files}])"
        )
    except duckdb.Error as error:
        raise DrivetrainError(
            f"Column `{column.name}` cannot refer to {column.references}: {str(error).splitlines()[0]}"
        ) from None
    return table


def _note(bench: Bench, table: str, conditions: Sequence[_Condition]) -> None:
    """Into `violations` what any of the conditions holds for; rows are read again only for those that hold."""
    for start in range(0, len(conditions), AT_ONCE):
        some = conditions[start : start + AT_ONCE]
        asked = ", ".join(f"count(*) FILTER (WHERE {one.holds})" for one in some)
        counts = bench.connection.execute(f"SELECT {asked} FROM {table}").fetchall()[0]
        for one, count in zip(some, counts, strict=True):
            if count:
                _insert(bench, one.column, one.constraint, one.shown, f"FROM {table} WHERE {one.holds}")


def _note_equal(bench: Bench, schema: SchemaV1, group: Sequence[str]) -> None:
    """Every row of a key that several rows have: none of them is known to be the right one."""
    names = [one.name for one in schema.columns]
    cells = [f"v{names.index(name)}" for name in group]
    present = " AND ".join(f"{cell} IS NOT NULL" for cell in cells)
    keyed = ", ".join(cells)
    shown = cells[0] if len(cells) == 1 else f"concat_ws(', ', {keyed})"
    rows = (
        f"FROM (SELECT r, {keyed}, count(*) OVER (PARTITION BY {keyed}) AS copies FROM typed WHERE {present}) "
        "WHERE copies > 1"
    )
    _insert(bench, ", ".join(group), "unique", f"CAST({shown} AS VARCHAR)", rows)


def _insert(bench: Bench, column: str, constraint: str, shown: str, rows: str) -> None:
    bench.connection.execute(
        f"INSERT INTO violations SELECT r, {literal(column)}, {literal(constraint)}, "
        f"left({shown}, {SHOWN_CHARS_MAX}) {rows}"
    )
    if bench.one("SELECT count(*) FROM violations") > QUARANTINED_MAX:
        raise DrivetrainError(
            f"There are more than {QUARANTINED_MAX:,} violations, the last of them of {constraint} in column {column}.",
            do="Look whether the schema belongs to these rows.",
        )


def _old(bench: Bench, schema: SchemaV1, now_ns: int) -> Iterator[Violation]:
    for place, column in enumerate(schema.columns):
        if not column.fresh_within:
            continue
        newest_us = bench.one(f"SELECT epoch_us(CAST(max(v{place}) AS TIMESTAMPTZ)) FROM typed")
        oldest_ns = now_ns - span_us(column.fresh_within) * 1_000
        if newest_us is None or newest_us * 1_000 < oldest_ns:
            value = "null" if newest_us is None else datetime.fromtimestamp(newest_us / 1e6, tz=UTC).isoformat()
            yield Violation(0, column.name, f"fresh_within {column.fresh_within}", value)


def _literal(value: Value, column: ColumnV1) -> str:
    """A constraint's value in SQL, of the column's type."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"CAST({literal(text)} AS {STORED[column.type]})"


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{one}`" for one in names[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown
