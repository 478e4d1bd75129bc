"""Retention: what the lake no longer has to keep goes, and what it keeps stands in few files.

Owns how long things stay: segments until the tables have had all of them for a while, Calls and their Outcomes as long
as their workflow or the project says, replaced files as long as `history_s`. Sums in `spend` stay: they name no person.
Called by the process that keeps the lake and by the commands, never during a roll: it holds the same lock.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.sql import literal
from drivetrain.core.times import NS_PER_S
from drivetrain.lake import plans
from drivetrain.lake.engines import frugal
from drivetrain.lake.holding import deleting
from drivetrain.lake.roller import TABLES, rolls_reached
from drivetrain.lake.spend import summed_sql
from drivetrain.lake.views import parquet
from drivetrain.ledger.frames import segments
from drivetrain.ports.tables import TableChanged, TableFiles, TableStore

if TYPE_CHECKING:
    import duckdb

SEGMENT_GRACE_S = 600
"""A segment stays this long after all of it stands in the tables: no query that began before takes longer."""
SPEND_FILES_MAX = 16
"""Of one day's sums; beyond it they are added together, and for every day that is over."""
TRIES_MAX = 3
"""Where another machine's roller changes a table meanwhile; the next time is soon enough."""
MEMORY = "512MB"
"""While a day is written anew; the rest waits on the disk."""
FIRST_DAY = date(1970, 1, 1)
_DAY = re.compile(r"day=(\d{4}-\d{2}-\d{2})[/%]")


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """How many days Calls and Outcomes stay, counted from the end of the day on which they were opened."""

    workflows: Mapping[str, int] = {}
    """Of workflows that say so themselves."""
    days: int | None = None
    """Of all others; None: for ever."""

    def shortest(self) -> int | None:
        """None: nothing is ever deleted."""
        return min((*self.workflows.values(), *(() if self.days is None else (self.days,))), default=None)

    def longest(self) -> int | None:
        """Of those that end; None: nothing is ever deleted."""
        return max((*self.workflows.values(), *(() if self.days is None else (self.days,))), default=None)


class Maintained(msgspec.Struct, frozen=True, kw_only=True):
    """What one `maintain` did."""

    segments: int = 0
    """Deleted, as the tables have all that was in them."""
    calls: int = 0
    """Deleted, as their time was over."""
    outcomes: int = 0
    compacted: int = 0
    """Files that became fewer."""
    vacuumed: int = 0
    """Files that were deleted."""
    elsewhere: bool = False
    """A roller is at work; nothing was done."""


def maintain(
    data_folder: Path,
    tables: TableStore,
    *,
    keep: Keep,
    history_s: int,
    needed: Callable[[], Mapping[str, str]] = dict,
    now_ns: Callable[[], int] = time.time_ns,
) -> Maintained:
    """Delete what is over, and make few files of many.

    needed: writer -> the first of its segments that somebody still reads, as the counters of budgets do for workers
    that have not left. Raises: DrivetrainError; everything that is still to be kept is where it was.
    """
    try:
        with plans.locked(data_folder) as held:
            if not held:
                return Maintained(elsewhere=True)
            with deleting(data_folder) as free:
                gone = _delete_segments(data_folder, tables, needed, now_ns()) if free else 0
            today = datetime.fromtimestamp(now_ns() // NS_PER_S, UTC).date()
            # Outcomes first: which workflow theirs is stands in their Call.
            outcomes = _delete_outcomes(tables, keep, today)
            calls = _delete_calls(tables, keep, today)
            compacted = _add_sums(tables, today)
            for table in TABLES[:2]:
                compacted += tables.compact(table)
            with deleting(data_folder) as free:
                vacuumed = sum(tables.vacuum(table, keep_s=history_s) for table in TABLES) if free else 0
    except OSError as error:
        raise DrivetrainError(
            f"The lake cannot be tidied up: {error.strerror or error}.",
            looked=[str(data_folder)],
            do="See whether the disk is full or read-only, and try again.",
        ) from error
    return Maintained(segments=gone, calls=calls, outcomes=outcomes, compacted=compacted, vacuumed=vacuumed)


def _delete_segments(
    data_folder: Path, tables: TableStore, needed: Callable[[], Mapping[str, str]], now_ns: int
) -> int:
    """Segments that their writers left and that no reader and no recovery of a budget still needs."""
    ledger = plans.ledger_of(data_folder)
    if ledger is None:
        return 0
    # Plans first: a reader that stood at one of those finds it gone, and takes the tables anew.
    base = plans.prune(
        data_folder, finished=min(rolls_reached(tables, ledger)), before_ns=now_ns - SEGMENT_GRACE_S * NS_PER_S
    )
    if base is None:
        return 0
    found = segments(data_folder)
    first = needed()
    deleted = 0
    for segment in found:
        read_from = first.get(segment.writer)
        if (
            not segment.live
            and base.ends.get(segment.name, 0) >= segment.size
            and segment.name not in base.carried
            and (read_from is None or segment.name < read_from)
        ):
            segment.path.unlink(missing_ok=True)
            deleted += 1
    return deleted


def _delete_outcomes(tables: TableStore, keep: Keep, today: date) -> int:
    """Outcomes whose Call's time is over, or their own day's, where they name a workflow.

    One whose Call is not in the lake goes when the longest time is over: the Call went before it, or never was.
    """
    limit = _limit_sql("coalesce(nullif(o.workflow, ''), c.workflow)", keep, today, keep.longest())
    marked = (
        f"SELECT o.*, coalesce(o.day < {limit}, false) AS is_over FROM rows_of_day o LEFT JOIN "  # noqa: S608 - names of ours
        "(SELECT call_id, any_value(workflow) AS workflow FROM calls_around GROUP BY 1) c USING (call_id)"
    )
    return sum(_delete_of_day(tables, "outcomes", day, marked) for day in _days_over(tables, "outcomes", keep, today))


def _delete_calls(tables: TableStore, keep: Keep, today: date) -> int:
    limit = _limit_sql("workflow", keep, today, keep.days)
    marked = f"SELECT *, coalesce(day < {limit}, false) AS is_over FROM rows_of_day"  # noqa: S608 - names of ours
    return sum(_delete_of_day(tables, "calls", day, marked) for day in _days_over(tables, "calls", keep, today))


def _limit_sql(workflow: str, keep: Keep, today: date, other_days: int | None) -> str:
    """SQL of the first day that is kept for the workflow in that expression; null: all are. No value comes from users
    but names, which are quoted."""
    cases = "".join(
        f" WHEN {workflow} = {literal(name)} THEN DATE '{today - timedelta(days=days)}'"
        for name, days in sorted(keep.workflows.items())
    )
    unknown = "NULL" if other_days is None else f"DATE '{today - timedelta(days=other_days)}'"
    known = "NULL" if keep.days is None else f"DATE '{today - timedelta(days=keep.days)}'"
    return f"CASE{cases} WHEN {workflow} IS NULL THEN {unknown} ELSE {known} END"


def _delete_of_day(tables: TableStore, table: str, day: date, marked: str) -> int:
    """Write a day anew without the rows that `marked` marks; how many those were."""
    around = [(day + timedelta(days=step)).isoformat() for step in (-1, 0, 1)]
    for _ in range(TRIES_MAX):
        files = tables.files(table, where={"day": [day.isoformat()]})
        calls = tables.files("calls", where={"day": around})
        if files is None or not files.paths:
            return 0
        with _reading(rows_of_day=files, calls_around=calls) as connection:
            connection.execute(f"CREATE TEMP VIEW marked AS {marked}")
            ((count,),) = connection.execute("SELECT count(*) FROM marked WHERE is_over").fetchall()
            if not count:
                return 0
            rest = connection.sql("SELECT * EXCLUDE (is_over) FROM marked WHERE NOT is_over")
            try:
                tables.replace(table, rest, where={"day": day.isoformat()}, version=files.version)
            except TableChanged:
                continue
            return int(count)
    return 0


def _add_sums(tables: TableStore, today: date) -> int:
    """Sums of a day that were made by many rolls are added together; how many files became fewer."""
    fewer = 0
    for day, count in sorted(_files_by_day(tables.files("spend")).items()):
        if count <= (SPEND_FILES_MAX if day >= today else 1):
            continue
        files = tables.files("spend", where={"day": [day.isoformat()]})
        if files is None:
            continue
        with _reading(rows_of_day=files) as connection:
            summed = connection.sql(summed_sql("rows_of_day"))
            try:
                tables.replace("spend", summed, where={"day": day.isoformat()}, version=files.version)
            except TableChanged:
                continue
        fewer += count - 1
    return fewer


def _days_over(tables: TableStore, table: str, keep: Keep, today: date) -> list[date]:
    """Days of a table of which anything may be over. Of a remote table only their files are fetched."""
    shortest = keep.shortest()
    if shortest is None:
        return []
    past = range((today - timedelta(days=shortest) - FIRST_DAY).days)
    days = [(FIRST_DAY + timedelta(days=step)).isoformat() for step in past]
    return sorted(_files_by_day(tables.files(table, where={"day": days})))


def _files_by_day(files: TableFiles | None) -> dict[date, int]:
    found: dict[date, int] = {}
    for path in () if files is None else files.paths:
        match = _DAY.search(path)
        if match is not None:
            day = date.fromisoformat(match[1])
            found[day] = found.get(day, 0) + 1
    return found


@contextmanager
def _reading(**views: TableFiles | None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with these files as views; a table without files has no rows."""
    with frugal(MEMORY) as connection:
        for name, files in views.items():
            if files is not None and files.paths:
                source = f"SELECT * FROM {parquet(files.paths, by_day=True)}"  # noqa: S608 - quoted
            else:
                source = "SELECT '' AS call_id, '' AS workflow WHERE false"
            connection.execute(f"CREATE TEMP VIEW {name} AS {source}")
        yield connection
