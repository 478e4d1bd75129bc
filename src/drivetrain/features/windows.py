"""Time-windowed aggregations: what happened to a key in (t - over, t], as far as it was known at t.

Every value is a function of the set of events in its window, whatever the order of files or threads, so that offline
and online agree to the last bit:

- `sum` of float64 adds the values in ascending order; of int64 it is exact, and too large a sum is an error.
- `mean` is that sum divided by the number of values.
- `count` and `approx_distinct` are exact: the promise of the name is an estimate, of the answer the number itself.
- `last` is the value of the latest event, then the latest created, then the greatest value.
- `min` and `max` take NaN for the greatest number. Nulls are in no window; over nothing, every function is null.

All windows of a view share one pass: events are cut into buckets as long as the longest window, so that each point
meets the events of two buckets and no others. The pairs of a point and an event are worked off in bounded portions.
"""

# ruff: noqa: S608  every name in these statements is of our own making

from __future__ import annotations

from collections.abc import Mapping, Sequence

from drivetrain.features.definitions import WindowDefinition
from drivetrain.features.scratch import Scratch
from drivetrain.features.sources import Column, Rows

PAIRS_MAX = 8_000_000
"""Pairs of a point and an event in one portion: the values that are sorted at a time stay below about 500 MB."""
EVERY_EVENT = "*"


def event_columns(windows: Sequence[WindowDefinition]) -> list[Column]:
    """What some windows read, each column once per type."""
    read = (Column(one.column, one.column_dtype) for one in windows if one.column != EVERY_EVENT)
    return list(dict.fromkeys(read))


def windowed(
    scratch: Scratch, points: str, rows: Rows, windows: Sequence[WindowDefinition], columns: Sequence[Column]
) -> str:
    """A table (n, event_us, c0, c1 ...), one c per window; points without an event in the longest one are left out.

    points: a table (n, k0, k1 ..., t_us), each n once. event_us: of the newest event. `columns` are those of `rows`.
    Costs one pass over the events, and time in proportion to the pairs of a point and an event in its longest window.
    """
    longest = max(window.over_us for window in windows)
    keys = ", ".join(rows.key_names)
    entities = scratch.table(
        f"SELECT CAST(row_number() OVER () AS INTEGER) AS id, {keys} FROM (SELECT DISTINCT {keys} FROM {points})"
    )
    asked = scratch.table(
        f"SELECT n, id, t_us, t_us // {longest} - step AS bucket"
        f" FROM {points} JOIN {entities} USING ({keys}), (VALUES (0), (1)) steps (step) WHERE t_us IS NOT NULL"
    )
    created = "created_us" if rows.created else "event_us"
    events = scratch.table(
        f"SELECT id, event_us, {created} AS created_us, event_us // {longest} AS bucket"
        f"{''.join(f', {name}' for name in rows.column_names)} FROM ({rows.sql}) JOIN {entities} USING ({keys})"
        f" WHERE greatest(event_us, {created}) <= (SELECT max(t_us) FROM {asked})"
        f" AND event_us > (SELECT min(t_us) FROM {asked}) - {longest} AND {created} IS NOT NULL"
    )
    portions = scratch.table(
        f"SELECT n, CAST(floor(sum(pairs) OVER (ORDER BY n) / {PAIRS_MAX}) AS BIGINT) AS portion FROM ("
        f" SELECT n, sum(pairs) AS pairs FROM {asked} JOIN ("
        f" SELECT id, bucket, count(*) AS pairs FROM {events} GROUP BY ALL) USING (id, bucket) GROUP BY n)"
    )
    places = {column: f"e.c{number}" for number, column in enumerate(columns)}
    values = ", ".join(f"{_value(window, places, longest)} AS v{number}" for number, window in enumerate(windows))
    select = (
        f"SELECT n, max(e.event_us) AS event_us, {values} FROM {asked} a JOIN {events} e ON a.id = e.id"
        f" AND a.bucket = e.bucket AND e.event_us > a.t_us - {longest} AND e.event_us <= a.t_us"
        f" AND e.created_us <= a.t_us WHERE n IN (SELECT n FROM {portions} WHERE portion = {{portion}}) GROUP BY n"
    )
    listed = scratch.connection.execute(f"SELECT DISTINCT portion FROM {portions} ORDER BY portion").fetchall()
    first, *others = [row[0] for row in listed] or [0]
    named = ", ".join(f"v{number} AS c{number}" for number in range(len(windows)))
    made = scratch.table(f"SELECT n, event_us, {named} FROM ({select.format(portion=first)})")
    for portion in others:
        scratch.connection.execute(f"INSERT INTO {made} SELECT * FROM ({select.format(portion=portion)})")
    scratch.drop(entities, asked, events, portions)
    return made


def _value(window: WindowDefinition, places: Mapping[Column, str], longest: int) -> str:
    """SQL of one window's value over the events that a point met."""
    within = "" if window.over_us == longest else f"e.event_us > a.t_us - {window.over_us}"
    if window.column == EVERY_EVENT:
        return f"nullif(count(*){_filter(within)}, 0)"
    column = places[Column(window.column, window.column_dtype)]
    present = " AND ".join(part for part in (within, f"{column} IS NOT NULL") if part)
    whole = window.column_dtype == "int64"
    total = f"sum({column}){_filter(present)}" if whole else f"list_sum(list_sort(list({column}){_filter(present)}))"
    number = f"nullif(count({column}){_filter(within)}, 0)"
    match window.function:
        case "count":
            return number
        case "sum":
            return f"CAST({total} AS BIGINT)" if whole else total
        case "mean":
            return f"CAST({total} AS DOUBLE) / {number}"
        case "approx_distinct":
            return f"nullif(count(DISTINCT {column}){_filter(present)}, 0)"
        case "last":
            return f"max(struct_pack(a := e.event_us, b := e.created_us, c := {column})){_filter(present)}.c"
        case _:
            return f"{window.function}({column}){_filter(present)}"


def _filter(condition: str) -> str:
    return f" FILTER (WHERE {condition})" if condition else ""
