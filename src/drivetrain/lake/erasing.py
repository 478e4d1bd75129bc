"""Erasing in the lake: nothing of a subject stays in `calls`, `outcomes`, `spend` and pushed rows, nor in their past.

Owns which columns say something of a person, and that every sum and every count stays as it was: rows stay, values that
say something go. A part of a table is written anew where it has such rows, then everything that came before is deleted,
logs included. Each step may be cut off anywhere and done again. Called by erasure; it never runs beside a roll here,
since it holds the same lock, and begins a part anew where another machine's roller changed it.
"""

# ruff: noqa: S608 - names are our own or quoted, and every value from outside is a literal

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.sql import identifier, literal
from drivetrain.lake import plans
from drivetrain.lake.columns import ATTEMPT_FIELDS, CALL_COLUMNS, DECISION_FIELDS, FEATURE_FIELDS, table_of
from drivetrain.lake.engines import frugal
from drivetrain.lake.holding import deleting
from drivetrain.lake.lake import Lake
from drivetrain.lake.roller import Roller, rolls_reached
from drivetrain.lake.spend import summed_sql
from drivetrain.lake.subjects import ERASED, Subject
from drivetrain.lake.views import parquet
from drivetrain.ledger.frames import Segment, frames, has_records, segments
from drivetrain.ports.tables import TableChanged, TableStore

if TYPE_CHECKING:
    import duckdb

DECISION_SAID = ("reason", "failed")
"""Of a Decision: texts that a policy's function may have put a person's words into."""
DECISION_WORDS = ("action", "rule", "chosen")
"""Of a Decision: words of the project, which stay unless they are the person's id."""
PUSH = "push/"
"""Below it stand the tables of push sources."""
TOKEN = f"{ERASED}-"
"""What a business key is replaced by begins so; the same key by the same everywhere: Outcomes find their Call."""
TRIES_MAX = 30
"""Where others change a part of a table meanwhile; each try begins with what they left."""
PAUSE_S = 0.2
"""Between two looks at what is still running or rolled elsewhere."""
MEMORY = "1GB"
"""While a part is written anew; the rest waits on the disk."""
EVERY_NS = 2**63 - 1
"""Later than any plan was finished."""
EMPTY_CALLS = "empty_calls"
"""A view without rows that has every column of `calls`."""
AT_ONCE = 1_000
"""Rows of one INSERT."""

Pseudonym = Callable[[str, str], str]
"""(workflow, business key) -> what stands for it; the same each time it is asked within one erasure."""
Opened = Callable[[], AbstractContextManager["duckdb.DuckDBPyConnection"]]


class LakeRows(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows say something of a subject."""

    calls: int = 0
    """Theirs, of which anything is left to erase."""
    others_calls: int = 0
    """Of others, or of nobody, whose tags or business key name them."""
    outcomes: int = 0
    spend: int = 0
    pushed: dict[str, int] = {}
    """Push source -> rows."""

    @property
    def any(self) -> bool:
        """Whether there is anything."""
        return bool(self.calls or self.others_calls or self.outcomes or self.spend or any(self.pushed.values()))


def settle(
    data_folder: Path,
    tables: TableStore,
    before_ns: int,
    *,
    needed: Callable[[Sequence[Segment]], Sequence[str]],
    timeout_s: float,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Everything that stood in the segments before a moment stands in the tables; those segments are gone; how many.

    before_ns: what `leave_all` gave. needed: of these segments, those from which an open reservation is still to be
    resolved. Waits for Calls that still run. Raises: DrivetrainError where they run longer than `timeout_s`.
    """
    deadline = monotonic() + timeout_s
    roller = Roller(data_folder, tables)
    gone = 0
    while True:
        roller.roll()
        with plans.locked(data_folder) as held, deleting(data_folder) as free:
            if held and free:
                gone += _delete_rolled(data_folder, tables, before_ns, needed)
            left = _left(data_folder, before_ns)
        if not left:
            return gone
        if monotonic() >= deadline:
            raise DrivetrainError(
                f"{len(left)} segments still hold Calls that run, or reservations that nobody has resolved, after "
                f"{timeout_s:g} s.",
                looked=[str(one.path) for one in left],
                do="Run `drivetrain erase --resume` when they have ended; the erasure goes on where it stopped.",
            )
        sleep(PAUSE_S)


class LakeErasing:
    """What is to be erased of one subject in the lake of one data folder.

    pseudonym: makes tokens of business keys. keys: join keys of entities that are subjects. Call all but `count` while
    holding the rolling lock.
    """

    def __init__(self, tables: TableStore, subject: Subject, pseudonym: Pseudonym, *, keys: Sequence[str] = ()) -> None:
        self._tables = tables
        self._subject = subject
        self._pseudonym = pseudonym
        self._keys = frozenset(keys)

    def count(self, lake: Lake) -> LakeRows:
        """What there is, what no roll has taken yet included; changes nothing."""
        with lake.reading(("calls", "outcomes", "spend")) as connection:
            self._prepare(connection, "stored_calls", "stored_outcomes")

            def number(view: str, condition: str) -> int:
                ((found,),) = connection.execute(f"SELECT count(*) FROM {view} r WHERE {condition}").fetchall()
                return int(found)

            has = self._subject.has_call
            return LakeRows(
                calls=number("stored_calls", f"{has} AND {self._call_is_touched}"),
                others_calls=number("stored_calls", f"NOT {has} AND {self._call_is_touched}"),
                outcomes=number("stored_outcomes", self._outcome_is_touched),
                spend=number("stored_spend", self._tags_are_touched),
                pushed=self._count_pushed(),
            )

    def call_ids(self, lake: Lake) -> list[str]:
        """Ids of their Calls, as long as those were not erased."""
        with lake.reading(("calls",)) as connection:
            rows = connection.execute(f"SELECT call_id FROM stored_calls WHERE {self._subject.has_call}").fetchall()
        return [found for (found,) in rows]

    def providers(self, lake: Lake) -> list[str]:
        """Whom their Calls were sent to."""
        with lake.reading(("calls",)) as connection:
            rows = connection.execute(
                "SELECT DISTINCT split_part(one.model, '/', 1) FROM "
                f"(SELECT unnest(attempts) AS one FROM stored_calls WHERE {self._subject.has_call}) "
                "WHERE one.model <> '' ORDER BY 1"
            ).fetchall()
        return [name for (name,) in rows]

    def erase_outcomes(self) -> int:
        """Texts go, numbers and booleans stay; business keys become tokens. Before their Calls. How many rows."""
        is_their_text = (
            "r.kind = 'text' AND (r.call_id IN (SELECT call_id FROM their_calls) OR k.token IS NOT NULL "
            f"OR {self._subject.named_in('r.text')})"
        )
        rows = (
            f"SELECT r.* REPLACE (CASE WHEN {is_their_text} THEN {literal(ERASED)} ELSE r.text END AS text, "
            "coalesce(k.token, r.business_key) AS business_key) FROM rows_of_part r LEFT JOIN their_keys k "
            "ON k.workflow = r.workflow AND k.business_key = r.business_key"
        )
        return self._rewrite("outcomes", self._outcome_is_touched, rows)

    def erase_calls(self) -> int:
        """Who, what they said and saw, and what names them; status, times, tokens and money stay. How many rows.

        Of a Decision the action, the rule and the numbers stay: its reason may quote, and what it was made from goes.
        """
        has, id_ = self._subject.has_call, literal(self._subject.id)
        unsealed = ", ".join(
            f"{name} := " + ("CAST(NULL AS BLOB)" if name == "sealed" else f"r.features.{name}")
            for name in FEATURE_FIELDS
        )
        said = f"CASE WHEN one.reason = '' THEN '' ELSE {literal(ERASED)} END"
        attempt = ", ".join(f"{name} := " + (said if name == "reason" else f"one.{name}") for name in ATTEMPT_FIELDS)
        decided = ", ".join(f"{name} := {self._decided(name)}" for name in DECISION_FIELDS)
        rows = (
            "SELECT r.* REPLACE ("
            f'CASE WHEN r."user" = {id_} THEN {literal(ERASED)} ELSE r."user" END AS "user", '
            f"{self._tags} AS tags, "
            "coalesce(k.token, r.business_key) AS business_key, "
            f"CASE WHEN {has} THEN CAST(NULL AS BLOB) ELSE r.request END AS request, "
            f"CASE WHEN {has} THEN CAST(NULL AS BLOB) ELSE r.answers END AS answers, "
            f"CASE WHEN {has} THEN 0 ELSE r.retained END AS retained, "
            f"CASE WHEN {has} AND r.features IS NOT NULL THEN struct_pack({unsealed}) ELSE r.features END AS features, "
            f"CASE WHEN {has} AND r.decision IS NOT NULL THEN struct_pack({decided}) ELSE r.decision END AS decision, "
            f"CASE WHEN {has} THEN list_transform(r.attempts, lambda one: struct_pack({attempt})) ELSE r.attempts END "
            "AS attempts) FROM rows_of_part r LEFT JOIN their_keys k "
            "ON k.workflow = r.workflow AND k.business_key = r.business_key"
        )
        return self._rewrite("calls", self._call_is_touched, rows)

    def erase_spend(self) -> int:
        """Tags that name them go; the sums stay. How many rows."""
        rows = summed_sql(f"(SELECT r.* REPLACE ({self._tags} AS tags) FROM rows_of_part r)")
        return self._rewrite("spend", self._tags_are_touched, rows)

    def erase_pushed(self) -> dict[str, int]:
        """Rows of them in every push source, whether it is still declared or not -> how many."""
        found = {}
        for table in self._tables.tables(PUSH):
            theirs = self._pushed_is_theirs(table) or "false"
            rows = f"SELECT * FROM rows_of_part r WHERE NOT {theirs}"
            if count := self._rewrite(table, theirs, rows, opened=_private):
                found[table.removeprefix(PUSH)] = count
        return found

    # What is theirs.

    @property
    def _tags(self) -> str:
        return f"list_filter(r.tags, lambda tag: NOT {self._subject.named_in('tag')})"

    @property
    def _tags_are_touched(self) -> str:
        return f"coalesce(len({self._tags}) < len(r.tags), false)"

    @property
    def _key_is_touched(self) -> str:
        return "coalesce((r.workflow, r.business_key) IN (SELECT (workflow, business_key) FROM their_keys), false)"

    @property
    def _call_is_touched(self) -> str:
        sealed = "r.request IS NOT NULL OR r.answers IS NOT NULL OR r.features.sealed IS NOT NULL OR r.retained <> 0"
        said = f"len(list_filter(r.attempts, lambda one: one.reason NOT IN ('', {literal(ERASED)}))) > 0"
        theirs = f'"user" = {literal(self._subject.id)} OR {sealed} OR {said} OR {self._decision_is_touched}'
        return (
            f"(({self._subject.has_call} AND coalesce({theirs}, false)) OR {self._tags_are_touched} "
            f"OR {self._key_is_touched})"
        )

    @property
    def _decision_is_touched(self) -> str:
        said = " OR ".join(f"r.decision.{name} NOT IN ('', {literal(ERASED)})" for name in DECISION_SAID)
        named = " OR ".join(self._subject.named_in(f"r.decision.{name}") for name in DECISION_WORDS)
        return f"r.decision.sealed IS NOT NULL OR {said} OR {named}"

    def _decided(self, name: str) -> str:
        """SQL of what stays of a field of their Decision."""
        if name == "sealed":
            return "CAST(NULL AS BLOB)"
        field = f"r.decision.{name}"
        if name in DECISION_SAID:
            return f"CASE WHEN {field} = '' THEN '' ELSE {literal(ERASED)} END"
        if name in DECISION_WORDS:
            return f"CASE WHEN {self._subject.named_in(field)} THEN {literal(ERASED)} ELSE {field} END"
        return field

    @property
    def _outcome_is_touched(self) -> str:
        named = self._subject.named_in("r.text")
        theirs = f"(r.call_id IN (SELECT call_id FROM their_calls) OR {self._key_is_touched} OR {named})"
        return (
            f"(coalesce(r.kind = 'text' AND r.text <> {literal(ERASED)} AND {theirs}, false) OR {self._key_is_touched})"
        )

    def _prepare(self, connection: duckdb.DuckDBPyConnection, calls: str, outcomes: str) -> None:
        """Their Calls, and the business keys that are theirs alone or name them."""
        has, fresh = self._subject.has_call, f"business_key <> '' AND NOT starts_with(business_key, '{TOKEN}')"
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE their_calls AS "
            f"SELECT call_id, workflow, business_key FROM {calls} WHERE {has}"
        )
        named = self._subject.named_in("business_key")
        keys = connection.execute(
            f"(SELECT workflow, business_key FROM their_calls WHERE {fresh} "
            f"EXCEPT SELECT workflow, business_key FROM {calls} WHERE NOT {has} AND (workflow, business_key) IN "
            f"(SELECT (workflow, business_key) FROM their_calls WHERE {fresh})) "
            f"UNION SELECT workflow, business_key FROM {calls} WHERE {fresh} AND {named} "
            f"UNION SELECT workflow, business_key FROM {outcomes} WHERE {fresh} AND {named}"
        ).fetchall()
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE their_keys (workflow VARCHAR, business_key VARCHAR, token VARCHAR)"
        )
        for start in range(0, len(keys), AT_ONCE):
            some = [(*key, TOKEN + self._pseudonym(*key)) for key in keys[start : start + AT_ONCE]]
            marks = ", ".join(["(?, ?, ?)"] * len(some))
            connection.execute(f"INSERT INTO their_keys VALUES {marks}", [one for row in some for one in row])

    def _pushed_is_theirs(self, table: str) -> str | None:
        """SQL of whether a row is; None where no column can tell."""
        files = self._tables.files(table)
        if files is None or not files.paths or not self._keys:
            return None
        with _private() as connection:
            columns = connection.sql(f"SELECT * FROM {parquet(files.paths)} LIMIT 0").columns
        cells = [self._subject.equals(f"r.{identifier(name)}") for name in columns if name in self._keys]
        return f"({' OR '.join(cells)})" if cells else None

    def _count_pushed(self) -> dict[str, int]:
        found = {}
        for table in self._tables.tables(PUSH):
            theirs, files = self._pushed_is_theirs(table), self._tables.files(table)
            if theirs is not None and files is not None:
                with _private() as connection:
                    ((count,),) = connection.execute(
                        f"SELECT count(*) FROM {parquet(files.paths)} r WHERE {theirs}"
                    ).fetchall()
                if count:
                    found[table.removeprefix(PUSH)] = int(count)
        return found

    # Writing anew.

    @contextmanager
    def _opened(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that knows what is theirs, by the tables as they are."""
        with _private() as connection:
            connection.register(EMPTY_CALLS, table_of(CALL_COLUMNS, []))
            for table, empty in (
                ("calls", "SELECT '' AS call_id, '' AS workflow, '' AS business_key, '' AS \"user\", '' AS \"key\", "
                          "'' AS team, [] AS attempts WHERE false"),
                ("outcomes", "SELECT '' AS call_id, '' AS workflow, '' AS business_key WHERE false"),
            ):  # fmt: skip
                files = self._tables.files(table)
                rows = empty if files is None or not files.paths else _rows(table, files.paths, by_day=True)
                connection.execute(f"CREATE TEMP VIEW lake_{table} AS {rows}")
            self._prepare(connection, "lake_calls", "lake_outcomes")
            yield connection

    def _rewrite(self, table: str, touched: str, rows: str, *, opened: Opened | None = None) -> int:
        """Write the parts of a table anew that have touched rows, then delete its history; how many were touched.

        touched: a condition on rows `r`. rows: a SELECT over `rows_of_part`. opened: a connection that knows less.
        """
        changed = 0
        if self._tables.files(table) is None:
            return 0
        with (opened or self._opened)() as connection:
            for part in self._parts(connection, table, touched):
                changed += self._rewrite_part(connection, table, part, touched, rows)
        self._tables.vacuum(table, keep_s=0)
        return changed

    def _parts(self, connection: duckdb.DuckDBPyConnection, table: str, touched: str) -> list[Mapping[str, str] | None]:
        """The days of a table that have touched rows; of a table without days all of it."""
        files = self._tables.files(table)
        if files is None or not files.paths:
            return []
        by_day = "day" in files.partition_by
        source = f"({_rows(table, files.paths, by_day=by_day)})"
        if not by_day:
            ((count,),) = connection.execute(f"SELECT count(*) FROM {source} r WHERE {touched}").fetchall()
            return [None] if count else []
        days = connection.execute(f"SELECT DISTINCT day FROM {source} r WHERE {touched} ORDER BY day").fetchall()
        return [{"day": day.isoformat()} for (day,) in days]

    def _rewrite_part(
        self, connection: duckdb.DuckDBPyConnection, table: str, part: Mapping[str, str] | None, touched: str, rows: str
    ) -> int:
        for _ in range(TRIES_MAX):
            where = None if part is None else {name: [value] for name, value in part.items()}
            files = self._tables.files(table, where=where)
            if files is None or not files.paths:
                return 0
            rows_of_part = _rows(table, files.paths, by_day=part is not None)
            connection.execute(f"CREATE OR REPLACE TEMP VIEW rows_of_part AS {rows_of_part}")
            ((count,),) = connection.execute(f"SELECT count(*) FROM rows_of_part r WHERE {touched}").fetchall()
            if not count:
                return 0
            try:
                self._tables.replace(table, connection.sql(rows), where=part, version=files.version)
            except TableChanged:
                continue
            return int(count)
        raise DrivetrainError(
            f"The table `{table}` was changed {TRIES_MAX} times by others while it was written anew.",
            do="Run `drivetrain erase --resume` when fewer write to it.",
        )


def _rows(table: str, paths: Sequence[str], *, by_day: bool) -> str:
    """SELECT of a table's rows; of Calls with every column, although all these files may be older than some."""
    rows = f"SELECT * FROM {parquet(paths, by_day=by_day)}"
    return f"{rows} UNION ALL BY NAME SELECT * FROM {EMPTY_CALLS}" if table == "calls" else rows


def _private() -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    return frugal(MEMORY)


def _delete_rolled(
    data_folder: Path, tables: TableStore, before_ns: int, needed: Callable[[Sequence[Segment]], Sequence[str]]
) -> int:
    """Delete what all tables have, at once: readers that stand at an earlier plan find it gone and begin anew."""
    ledger = plans.ledger_of(data_folder)
    if ledger is None:
        return 0
    base = plans.prune(data_folder, finished=min(rolls_reached(tables, ledger)), before_ns=EVERY_NS)
    if base is None:
        return 0
    rolled = [
        one
        for one in _left(data_folder, before_ns)
        if one.name not in base.carried and not any(True for _ in frames(one, [], base.ends.get(one.name, 0)))
    ]
    kept = frozenset(needed(rolled)) if rolled else frozenset()
    for one in rolled:
        if one.name not in kept:
            one.path.unlink(missing_ok=True)
    return sum(one.name not in kept for one in rolled)


def _left(data_folder: Path, before_ns: int) -> list[Segment]:
    """Segments with records of before that moment: their writers have left them, or never came to write again."""
    return [
        one
        for one in segments(data_folder)
        if not one.live and has_records(one) and (one.opened_ns is None or one.opened_ns < before_ns)
    ]
