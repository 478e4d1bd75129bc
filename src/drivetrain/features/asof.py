"""Point-in-time joins: which row of a view held for a key at a moment, as far as it was known then.

The rule. A row counts at t where event <= t and created <= t; among those the latest event wins, then the latest
created, then the greatest values in the order of the columns (nulls least), so that a tie never depends on the order of
files. Where the view has a ttl, the winner counts only if event >= t - ttl (Feast's rule: its very edge still counts).
A row without an event time, without a created time where there is a column for it, or without one of its keys never
counts. `corrected=True` is Feast's rule: created only breaks ties, so that later corrections change the past.

How it is exact and fast. A row known by its event time (created <= event) can only be hidden by a row of a later event,
so an ASOF join by event time finds the best of them. The others, the late ones, become visible at their created time;
of them those are kept that were the best late row at that moment, and a second ASOF join by created time finds the
best. The greater of the two wins. Only keys and times are joined; the columns are fetched once, for winners alone.
"""

# ruff: noqa: S608  every name in these statements is of our own making

from __future__ import annotations

from collections.abc import Callable

import msgspec

from drivetrain.features.scratch import Scratch
from drivetrain.features.sources import Rows

_EVENT_FIRST = "CAST(event_us AS HUGEINT) * 9223372036854775808 + created_us"
"""Orders late rows by (event, created) as one number."""


class Ties(msgspec.Struct, frozen=True):
    """What decides between rows of one key and one moment: all columns of the view, whichever of them are asked for."""

    rows: Rows
    """With the columns that are asked for first."""
    order: tuple[str, ...]
    """Every column, as the view has them."""


def as_of(
    scratch: Scratch,
    points: str,
    rows: Rows,
    *,
    ttl_us: int | None = None,
    corrected: bool = False,
    ties: Callable[[], Ties] | None = None,
) -> str:
    """A table (n, event_us, c0, c1 ...) with the row that held at each point; points without any are left out.

    points: a table (n, k0, k1 ..., t_us), each n once. Costs one pass over the rows' keys and times, and one over the
    columns. ties: asked where rows are tied; None: the rows have all columns of their view, in its order.
    """
    strict = rows.created and not corrected
    keys = ", ".join(rows.key_names)
    entities = scratch.table(
        f"SELECT CAST(row_number() OVER () AS INTEGER) AS id, {keys} FROM (SELECT DISTINCT {keys} FROM {points})"
    )
    asked = scratch.table(f"SELECT n, id, t_us FROM {points} JOIN {entities} USING ({keys})")
    latest = scratch.value(f"SELECT max(t_us) FROM {asked}")
    known = f"event_us <= {latest}" if latest is not None else "false"
    if strict and latest is not None:
        known += f" AND created_us <= {latest}"
    times = scratch.table(
        f"SELECT id, event_us{', created_us' if strict else ''} FROM ({rows.sql}) JOIN {entities} USING ({keys})"
        f" WHERE {known}"
    )
    found = _best_late(scratch, asked, times) if strict else _best(scratch, asked, times)
    scratch.drop(times, asked)
    counts = "event_us IS NOT NULL" + (f" AND event_us >= t_us - {ttl_us}" if ttl_us is not None else "")
    winners = scratch.table(
        f"SELECT CAST(row_number() OVER () AS INTEGER) AS winner, * FROM (SELECT DISTINCT id, event_us, known_us"
        f" FROM {found} WHERE {counts}) JOIN {entities} USING (id)"
    )
    values = _values(scratch, winners, rows, strict, ties)
    joined = scratch.table(
        f"SELECT {', '.join(['n', 'v.event_us', *rows.column_names])} FROM {found} f JOIN {winners} w ON f.id = w.id"
        f" AND f.event_us = w.event_us AND f.known_us = w.known_us JOIN {values} v USING (winner)"
        + (f" WHERE f.event_us >= f.t_us - {ttl_us}" if ttl_us is not None else "")
    )
    scratch.drop(found, winners, values, entities)
    return joined


def _best(scratch: Scratch, asked: str, times: str) -> str:
    """(n, id, t_us, event_us, known_us) by event time alone; `known_us` bounds the created time of the row meant."""
    return scratch.table(
        f"SELECT n, asked.id, t_us, event_us, event_us AS known_us"
        f" FROM {asked} asked ASOF JOIN {times} times ON asked.id = times.id AND t_us >= event_us"
    )


def _best_late(scratch: Scratch, asked: str, times: str) -> str:
    """As `_best`, of rows that were known at t."""
    late = scratch.table(
        f"SELECT id, event_us, created_us FROM (SELECT *, {_EVENT_FIRST} AS place,"
        f" max({_EVENT_FIRST}) OVER (PARTITION BY id ORDER BY created_us) AS best"
        f" FROM {times} WHERE created_us > event_us) WHERE place = best"
    )
    found = scratch.table(
        f"""WITH prompt AS (
            SELECT n, asked.id, t_us, event_us FROM {asked} asked
            ASOF LEFT JOIN (SELECT id, event_us FROM {times} WHERE created_us <= event_us) times
            ON asked.id = times.id AND t_us >= event_us
        ), two AS (
            SELECT n, prompt.id, t_us, prompt.event_us, late.event_us AS late_us, late.created_us
            FROM prompt ASOF LEFT JOIN {late} late ON prompt.id = late.id AND t_us >= late.created_us
        )
        SELECT n, id, t_us, if(event_us IS NULL OR late_us >= event_us, late_us, event_us) AS event_us,
        if(event_us IS NULL OR late_us >= event_us, created_us, event_us) AS known_us FROM two"""
    )
    scratch.drop(late)
    return found


def _values(scratch: Scratch, winners: str, rows: Rows, strict: bool, ties: Callable[[], Ties] | None) -> str:
    """(winner, event_us, c0, c1 ...), each winner once: of the rows of its event known by then, the last."""
    columns = rows.column_names
    matches = " AND ".join([f"r.{key} = w.{key}" for key in rows.key_names])
    if strict:
        matches += " AND r.created_us <= w.known_us"
    listed = ", ".join(["winner", "r.event_us", *(["r.created_us"] if rows.created else []), *columns])
    found = scratch.table(
        f"SELECT {listed} FROM ({rows.sql}) r JOIN {winners} w ON r.event_us = w.event_us AND {matches}"
    )
    twice = f"SELECT winner FROM {found} GROUP BY winner HAVING count(*) > 1"
    if not scratch.value(f"SELECT count(*) FROM ({twice})"):
        return found
    created = ["created_us"] if rows.created else []
    tied, order = f"{found} SEMI JOIN ({twice}) USING (winner)", columns
    if ties is not None:
        every = ties()
        order = list(every.order)
        listed = ", ".join(["winner", "r.event_us", *(f"r.{name}" for name in created), *every.rows.column_names])
        tied = (
            f"(SELECT {listed} FROM ({every.rows.sql}) r JOIN (SELECT * FROM {winners} SEMI JOIN ({twice})"
            f" USING (winner)) w ON r.event_us = w.event_us AND {matches})"
        )
    ordered = ", ".join(f"{name} DESC NULLS LAST" for name in [*created, *order])
    ranked = f"row_number() OVER (PARTITION BY winner{f' ORDER BY {ordered}' if ordered else ''})"
    shown = ", ".join(["winner", "event_us", *created, *columns])
    once = scratch.table(
        f"SELECT {shown} FROM {found} ANTI JOIN ({twice}) USING (winner) UNION ALL"
        f" SELECT {shown} FROM {tied} QUALIFY {ranked} = 1"
    )
    scratch.drop(found)
    return once
