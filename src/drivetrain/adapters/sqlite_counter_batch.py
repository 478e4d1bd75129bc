"""A full report of thousands of budgets, booked by a few statements instead of several for each.

Owns the temporary table in which a report is prepared. Called by `sqlite_counters`: `prepare` before it queues, because
a worker's own leases are changed by nobody else while it lives; `book` inside of the transaction. Every statement does
hundreds of rows, also because Python lets other threads run at each step of one, and waits for them after it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from drivetrain.ports.counters import MONEY, LeaseState, Report

WORTH_IT = 128
"""Reports in a request from which on this is quicker than one after the other."""
CHUNK = 500
"""Reports in one statement; each has ten parameters, and SQLite takes at most 32,766."""
_NOBODY: tuple[int | str, ...] = (0, "", 0, 0, 0, 0, 0, 0, 0, 0)
"""Fills up the last chunk, so that the statement is the same: no slice has this number."""

SCHEMA = """
PRAGMA temp_store = MEMORY;
CREATE TEMP TABLE IF NOT EXISTS changes (
    slice INTEGER PRIMARY KEY, account TEXT NOT NULL, granted INTEGER NOT NULL, returned INTEGER NOT NULL,
    booked INTEGER NOT NULL, over INTEGER NOT NULL, answered INTEGER NOT NULL, dropped INTEGER NOT NULL,
    held INTEGER NOT NULL, more_settled INTEGER NOT NULL, more_held INTEGER NOT NULL, more_over INTEGER NOT NULL
) STRICT;
"""

_PREPARE = f"""
WITH said (slice, account, cap, ends_ns, counted, returned, booked, over, answered, dropped) AS
    (VALUES {", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"] * CHUNK)}),
known AS (
    SELECT said.*, lease.granted, lease.held AS held_before, said.booked - lease.booked AS more_settled,
        said.over - lease.over AS more_over,
        CASE WHEN said.counted OR said.dropped THEN 0
            ELSE lease.granted - said.returned - said.booked + said.over END AS held
    FROM said CROSS JOIN leases AS lease CROSS JOIN accounts AS account
    WHERE lease.worker = ? AND lease.slice = said.slice AND lease.account = said.account AND account.id = said.account
        AND account.cap = said.cap AND account.ends_ns = said.ends_ns AND account.counted = said.counted
)
INSERT INTO temp.changes SELECT
    slice, account, granted, returned, booked, over, answered, dropped, held,
    more_settled, held - held_before, more_over
FROM known
"""  # noqa: S608 - our own words


class Batch:
    """The reports of one request that can be booked together: money, leased before, under terms that stand.

    The others, such as the first of a slice, are left to be booked one after the other. Needs `SCHEMA`.
    """

    def __init__(self, db: sqlite3.Connection, worker: str) -> None:
        self._db = db
        self._worker = worker
        self._accounts: dict[int, str] = {}

    def __contains__(self, report: Report) -> bool:
        return report.slice in self._accounts

    def prepare(self, reports: Iterable[Report]) -> None:
        """Find out what each report changes; costs about 4 us each, and makes nobody wait. Raises: sqlite3.Error."""
        db = self._db
        # An account twice in one statement would be changed by one of its slices only.
        alone = {report.terms.account: report for report in reports if report.terms.kind == MONEY}
        rows: list[tuple[int | str, ...]] = [
            (
                one.slice, one.terms.account, one.terms.cap, one.terms.ends_ns, one.terms.counted, one.returned,
                one.booked, one.over, one.answered, one.dropped,
            )
            for one in alone.values()
        ]  # fmt: skip
        rows.sort()
        db.execute("DELETE FROM temp.changes")
        for begin in range(0, len(rows), CHUNK):
            chunk = rows[begin : begin + CHUNK]
            chunk += [_NOBODY] * (CHUNK - len(chunk))
            db.execute(_PREPARE, (*(value for row in chunk for value in row), self._worker))
        (found,) = db.execute("SELECT group_concat(slice) FROM temp.changes").fetchone()
        prepared = set(map(int, found.split(","))) if found else set()
        self._accounts = {one.slice: name for name, one in alone.items() if one.slice in prepared}

    def leave_out(self, slices: Iterable[int]) -> None:
        """Slices whose account got another name since they were prepared are booked one after the other."""
        for number in slices:
            if self._accounts.pop(number, None) is not None:
                self._db.execute("DELETE FROM temp.changes WHERE slice = ?", (number,))

    def book(self) -> None:
        """Book them, inside of a transaction; about 3 us each."""
        if not self._accounts:
            return
        self._db.execute(
            "UPDATE accounts SET settled = settled + more_settled, held = accounts.held + more_held, "
            "over = accounts.over + more_over FROM temp.changes WHERE id = changes.account"
        )
        self._db.execute(
            "UPDATE leases SET returned = changes.returned, booked = changes.booked, over = changes.over, "
            "answered = changes.answered, held = changes.held, dropped = changes.dropped "
            "FROM temp.changes WHERE worker = ? AND leases.slice = changes.slice",
            (self._worker,),
        )

    def wanted(self) -> tuple[set[str], set[str]]:
        """Other workers that wait for some of these accounts, and the accounts that they wait for."""
        rows = self._db.execute("SELECT worker, account FROM wants WHERE worker <> ?", (self._worker,)).fetchall()
        mine = set(self._accounts.values())
        here = [(worker, account) for worker, account in rows if account in mine]
        return {worker for worker, _ in here}, {account for _, account in here}

    def states(self, contended: set[str]) -> dict[int, LeaseState]:
        """What the store knows of each slice that is not dropped, once they are booked; about 1 us each."""
        if not self._accounts:
            return {}
        (told,) = self._db.execute(
            "SELECT group_concat(slice || ' ' || granted || ' ' || settled, ' ') "
            "FROM temp.changes CROSS JOIN accounts ON id = account WHERE NOT dropped"
        ).fetchone()
        numbers = map(int, told.split()) if told else iter(())
        accounts = self._accounts
        return {
            number: LeaseState(number, granted, settled, accounts[number] in contended)
            for number, granted, settled in zip(numbers, numbers, numbers, strict=True)
        }
