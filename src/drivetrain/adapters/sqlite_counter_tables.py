"""The counter store's tables, and what one request does to them inside of one transaction.

Owns the schema and the rules of booking, granting, recalling and releasing; no files, locks or processes. Called by
`sqlite_counters` alone. Decisions are read from rows that were written before them in the same transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from drivetrain.adapters.sqlite_counter_batch import Batch
from drivetrain.core.codec import MSGPACK
from drivetrain.ports.counters import (
    BUCKET,
    GRANTED,
    MONEY,
    PENDING,
    REFUSED,
    SLOTS,
    TURN_NS,
    AccountListing,
    AccountState,
    Fenced,
    LeaseState,
    Line,
    NamedAccount,
    Refused,
    Report,
    SyncReply,
    SyncRequest,
    Terms,
    Verdict,
    fair_share,
    grant_units,
    refill_wait_ns,
    refilled,
    under_new_names,
)

FOREVER = 2**62
NUMBERS = msgspec.msgpack.Decoder(tuple[int, ...])

SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, cap INTEGER NOT NULL, ends_ns INTEGER NOT NULL,
    refill INTEGER NOT NULL, refill_ns INTEGER NOT NULL, counted INTEGER NOT NULL,
    settled INTEGER NOT NULL, held INTEGER NOT NULL, over INTEGER NOT NULL,
    level INTEGER NOT NULL, filled_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (
    worker TEXT NOT NULL, slice INTEGER NOT NULL, account TEXT NOT NULL, counted INTEGER NOT NULL,
    granted INTEGER NOT NULL, returned INTEGER NOT NULL, booked INTEGER NOT NULL, over INTEGER NOT NULL,
    refunded INTEGER NOT NULL, answered INTEGER NOT NULL, held INTEGER NOT NULL,
    dropped INTEGER NOT NULL, told INTEGER NOT NULL DEFAULT 4611686018427387904, PRIMARY KEY (worker, slice)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS leases_by_account ON leases (account);
CREATE INDEX IF NOT EXISTS leases_dropped ON leases (worker) WHERE dropped = 1;
CREATE TABLE IF NOT EXISTS wants (
    worker TEXT NOT NULL, number INTEGER NOT NULL, account TEXT NOT NULL, placed INTEGER NOT NULL,
    placed_ns INTEGER NOT NULL,
    PRIMARY KEY (worker, number, account)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS wants_by_account ON wants (account);
CREATE TABLE IF NOT EXISTS workers (
    id TEXT PRIMARY KEY, boot TEXT NOT NULL, mark INTEGER NOT NULL, open BLOB NOT NULL, position TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS alerts (
    account TEXT NOT NULL, share INTEGER NOT NULL, PRIMARY KEY (account, share)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS renamed (
    worker TEXT NOT NULL, slice INTEGER NOT NULL, account TEXT NOT NULL, PRIMARY KEY (worker, slice)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (id INTEGER PRIMARY KEY, tick INTEGER NOT NULL, swept_ns INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO meta VALUES (1, 0, 0);
"""


class Account:
    """A row of accounts, with its bucket filled up to now."""

    __slots__ = ("cap", "counted", "filled_ns", "held", "kind", "level", "name", "over", "settled")

    def __init__(self, row: tuple[Any, ...], now_ns: int) -> None:
        self.name, self.kind, self.cap, ends_ns, refill, refill_ns, self.counted = row[:7]
        self.settled, self.held, self.over, self.level, self.filled_ns = row[7:]
        if self.kind == BUCKET:
            terms = Terms(self.name, BUCKET, self.cap, ends_ns, refill, refill_ns)
            room = max(0, self.cap - self.held)
            self.level, self.filled_ns = refilled(self.level, room, self.filled_ns, now_ns, terms)

    @property
    def available(self) -> int:
        return int(self.level if self.kind == BUCKET else self.cap - self.settled - self.held)

    @property
    def state(self) -> AccountState:
        """As others see it."""
        return AccountState(self.settled, self.held, self.over, self.level)

    def grant(self, units: int) -> None:
        self.held += units
        if self.kind == BUCKET:
            self.level -= units


def account_row(db: sqlite3.Connection, name: str, now_ns: int) -> Account | None:
    """An account as it stands now; None where nobody has used it."""
    row = db.execute("SELECT * FROM accounts WHERE id = ?", (name,)).fetchone()
    return None if row is None else Account(row, now_ns)


def account_listing(db: sqlite3.Connection, prefix: str, suffix: str, at_most: int, now_ns: int) -> AccountListing:
    """As `CounterStore.accounts`; one statement, so that the sums fit the rows."""
    # A range of the primary key, since LIKE would take `_` and `%` in people's names for wildcards.
    after = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    rows = db.execute(
        "SELECT *, count(*) OVER (), sum(settled) OVER (), sum(held) OVER () FROM accounts "
        "WHERE id >= ? AND id < ? AND length(id) >= ? AND substr(id, -?) = ? "
        "ORDER BY settled DESC, held DESC, id LIMIT ?",
        (prefix, after, len(prefix) + len(suffix), len(suffix), suffix, at_most),
    ).fetchall()
    if not rows:
        return AccountListing(())
    first = tuple(NamedAccount(row[0], Account(row[:-3], now_ns).state) for row in rows)
    return AccountListing(first, *rows[0][-3:])


def write_accounts(db: sqlite3.Connection, accounts: Iterable[Account]) -> None:
    """Keep what was changed."""
    db.executemany(
        "UPDATE accounts SET settled = ?, held = ?, over = ?, level = ?, filled_ns = ? WHERE id = ?",
        [(one.settled, one.held, one.over, one.level, one.filled_ns, one.name) for one in accounts],
    )


class Visit:
    """One worker's request, inside of one transaction."""

    def __init__(self, db: sqlite3.Connection, worker: str, now_ns: int, batch: Batch | None = None) -> None:
        self._db = db
        self._batch = batch
        """Reports that were prepared to be booked together."""
        self._worker = worker
        self._now_ns = now_ns
        self._accounts: dict[str, Account] = {}
        self._turns: dict[str, int] = {}
        """Account -> since which tick this worker waits for it without having got a slot."""
        self._moved: set[str] = set()
        """Accounts of which something came back, or for which this worker stopped waiting."""
        self.ring: set[str] = set()

    def sync(self, request: SyncRequest) -> SyncReply:
        db, worker = self._db, self._worker
        renamed = dict(db.execute("SELECT slice, account FROM renamed WHERE worker = ?", (worker,)).fetchall())
        request = under_new_names(request, renamed)
        if self._batch is not None:
            self._batch.leave_out(renamed)
        numbers = MSGPACK.encode(request.open)
        row = (request.mark, numbers, request.position, worker)
        if not db.execute("UPDATE workers SET mark = ?, open = ?, position = ? WHERE id = ?", row).rowcount:
            raise Fenced(worker)
        tick, self._swept_ns = db.execute("UPDATE meta SET tick = tick + 1 RETURNING tick, swept_ns").fetchone()
        self._tick: int = tick
        self._workers: int = db.execute("SELECT count(*) FROM workers").fetchone()[0]
        listed = {want.number for want in request.wants}
        for number, account, placed in db.execute(
            "SELECT number, account, placed FROM wants WHERE worker = ?", (worker,)
        ).fetchall():
            self._turns[account] = min(placed, self._turns.get(account, placed))
            if number not in listed:
                self._forget(number, account)
        # Nobody waits most of the time, and then nobody need be looked for.
        self._somebody_waits = db.execute("SELECT 1 FROM wants WHERE worker <> ?", (worker,)).fetchone() is not None
        self._forget_dropped({report.slice for report in request.reports})
        states: dict[int, str] = {}
        batch, together = self._batch, {}
        if batch is not None:
            # Before anything else reads their accounts.
            together = self._book_together(batch)
        for report in request.reports:
            if batch is not None and report in batch:
                continue
            self._book(report)
            if not report.dropped:
                states[report.slice] = report.terms.account
        verdicts = []
        for want in request.wants:
            verdicts.append(self._judge(want.number, want.lines, want.last))
            states.update((line.slice, line.terms.account) for line in want.lines)
        for line in request.ahead:
            self._top_up(line)
            states[line.slice] = line.terms.account
        recalls = self._recalls()
        states.update(recalls)
        states.update(self._contended_slots())
        leases = tuple(self._state(number, account) for number, account in states.items())
        leases += tuple(state for number, state in together.items() if number not in states)
        fresh = tuple(alert for alert in request.alerts if self._announced(alert))
        write_accounts(db, self._accounts.values())
        self._ring_next()
        return SyncReply(tick, leases, tuple(verdicts), tuple(recalls), fresh)

    def _account(self, terms: Terms) -> Account:
        found = self._accounts.get(terms.account)
        if found is not None:
            return found
        # The terms of whoever comes last hold: a Snapshot may have changed them.
        values = (terms.account, terms.kind, terms.cap, terms.ends_ns, terms.refill, terms.refill_ns, terms.counted)
        level = terms.cap if terms.kind == BUCKET else 0
        self._db.execute(
            "INSERT INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0, 0, ?, ?) ON CONFLICT (id) DO UPDATE SET "
            "cap = excluded.cap, ends_ns = excluded.ends_ns, refill = excluded.refill, refill_ns = excluded.refill_ns, "
            "counted = excluded.counted",
            (*values, level, self._now_ns),
        )
        made = account_row(self._db, terms.account, self._now_ns)
        assert made is not None
        self._accounts[terms.account] = made
        return made

    def _book(self, report: Report) -> None:
        db, key = self._db, (self._worker, report.slice)
        account = self._account(report.terms)
        row = db.execute(
            "SELECT granted, returned, booked, over, refunded, held FROM leases WHERE worker = ? AND slice = ?", key
        ).fetchone()
        granted, returned, booked, over, refunded, held = row or (0, 0, 0, 0, 0, 0)
        uncounted = not (report.terms.counted or report.dropped)
        holds = granted - report.returned - report.booked + report.over if uncounted else 0
        account.held += holds - held
        if account.kind == MONEY:
            account.settled += report.booked - booked
            account.over += report.over - over
        elif account.kind == BUCKET:
            back = report.returned - returned + report.refunded - refunded
            account.level = max(0, min(account.level + back, account.cap - account.held))
        totals = (report.returned, report.booked, report.over, report.refunded, report.answered, holds, report.dropped)
        db.execute(
            "INSERT INTO leases (worker, slice, account, counted, granted, returned, booked, over, refunded, answered, "
            "held, dropped) VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (worker, slice) DO UPDATE SET "
            "returned = excluded.returned, booked = excluded.booked, over = excluded.over, "
            "refunded = excluded.refunded, answered = excluded.answered, held = excluded.held, "
            "dropped = excluded.dropped",
            (*key, report.terms.account, report.terms.counted, *totals),
        )
        if account.kind == SLOTS:
            self._moved.add(account.name)
        elif self._somebody_waits:
            self.ring.update(self._wanting(report.terms.account))

    def _book_together(self, batch: Batch) -> dict[int, LeaseState]:
        batch.book()
        contended: set[str] = set()
        if self._somebody_waits:
            waiting, contended = batch.wanted()
            self.ring.update(waiting)
        return batch.states(contended)

    def _forget_dropped(self, said: set[int]) -> None:
        """A slice that was dropped is remembered for as long as its last words may be repeated."""
        # Named, since SQLite would rather look through all leases of this worker.
        dropped = "SELECT slice FROM leases INDEXED BY leases_dropped WHERE worker = ? AND dropped = 1"
        rows = self._db.execute(dropped, (self._worker,)).fetchall()
        gone = [(self._worker, number) for (number,) in rows if number not in said]
        self._db.executemany("DELETE FROM leases WHERE worker = ? AND slice = ?", gone)
        self._db.executemany("DELETE FROM renamed WHERE worker = ? AND slice = ?", gone)

    def _judge(self, number: int, lines: tuple[Line, ...], last: bool) -> Verdict:
        swept = tuple(Refused(line.slice, 0) for line in lines if self._is_swept(line.terms))
        if swept:
            return Verdict(number, REFUSED, swept)
        rows = self._db.execute(
            "SELECT account, placed FROM wants WHERE worker = ? AND number = ?", (self._worker, number)
        )
        stands = dict(rows.fetchall())
        slots = {line.terms.account for line in lines if line.terms.kind == SLOTS}
        placed = min((tick for account, tick in stands.items() if account not in slots), default=self._tick)
        short = [(line, left) for line in lines if (left := self._left(line, last)) < line.need]
        if not short:
            for line in lines:
                account = self._account(line.terms)
                contended = bool(self._wanting(line.terms.account))
                units = grant_units(line.need, line.good, account.available, self._workers, contended)
                self._grant(line, account, units)
                if line.terms.kind == SLOTS:
                    self._go_last(account.name)
            self._forget(number)
            return Verdict(number, GRANTED)
        hopeless = [(line, left) for line, left in short if not self._may_help(line, placed)]
        if last or hopeless:
            self._forget(number)
            return Verdict(number, REFUSED, tuple(self._refused(line, left) for line, left in hopeless or short))
        for line, _ in short:
            account_name, is_slot = line.terms.account, line.terms.kind == SLOTS
            since = self._turns.setdefault(account_name, self._tick) if is_slot else placed
            self._db.execute(
                "INSERT INTO wants VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET placed_ns = excluded.placed_ns",
                (self._worker, number, account_name, since, self._now_ns),
            )
            self.ring.update(self._unaware(account_name) if is_slot else self._holders(account_name, placed))
        for name in stands.keys() - {line.terms.account for line, _ in short}:
            # It has enough of this one; whoever waits behind it must not wait for what it lacks elsewhere.
            self._forget(number, name)
        return Verdict(number, PENDING)

    def _is_swept(self, terms: Terms) -> bool:
        """Whether its period is so long over that it was forgotten: it is not opened a second time."""
        return 0 < terms.ends_ns < self._swept_ns and account_row(self._db, terms.account, self._now_ns) is None

    def _left(self, line: Line, last: bool) -> int:
        """What this want may have: of slots only what is left for it after those who come first."""
        account = self._account(line.terms)
        if line.terms.kind != SLOTS or last or not self._somebody_waits or account.available < line.need:
            return account.available
        keep = self._keep(account)
        is_above = self._held(self._worker, account.name) + line.need > keep[self._worker]
        me = (is_above, self._turns.get(account.name, self._tick))
        others = self._db.execute(
            "SELECT worker, count(*), min(placed) FROM wants WHERE account = ? AND worker <> ? "
            "AND abs(? - placed_ns) < ? GROUP BY worker",
            (account.name, self._worker, self._now_ns, TURN_NS),
        ).fetchall()
        first = (wants for name, wants, since in others if (self._held(name, account.name) >= keep[name], since) < me)
        return account.available - int(sum(first))

    def _keep(self, account: Account) -> dict[str, int]:
        """The fair share of everybody who holds slots of this account or waits for them, and of this worker."""
        rows = self._db.execute(
            "SELECT worker FROM leases WHERE account = ? AND held > 0 UNION SELECT worker FROM wants WHERE account = ?",
            (account.name, account.name),
        )
        sharing = {self._worker, *(name for (name,) in rows)}
        return {name: fair_share(account.cap, sharing, name, self._now_ns) for name in sharing}

    def _held(self, worker: str, account: str) -> int:
        key = (account, worker)
        found = self._db.execute("SELECT sum(held) FROM leases WHERE account = ? AND worker = ?", key).fetchone()
        return int(found[0] or 0)

    def _go_last(self, account: str) -> None:
        """A slot was given to this worker: for the next one it waits behind those who wait already."""
        self._turns[account] = self._tick
        row = (self._tick, self._worker, account)
        self._db.execute("UPDATE wants SET placed = ? WHERE worker = ? AND account = ?", row)
        self._moved.add(account)

    def _may_help(self, line: Line, placed: int) -> bool:
        """Whether waiting can help this want."""
        account = self._account(line.terms)
        if line.amount > line.terms.cap - account.settled:
            return False
        if line.terms.kind != SLOTS:
            return bool(self._holders(account.name, placed))
        # A slot comes back whenever a Call ends, so it is waited for even when all have answered.
        return account.available >= line.need or account.held > 0

    def _holders(self, account: str, placed: int) -> set[str]:
        """Other workers that hold something of the account and have not answered since."""
        rows = self._db.execute(
            "SELECT DISTINCT worker FROM leases WHERE account = ? AND worker <> ? AND held > 0 AND answered < ?",
            (account, self._worker, placed),
        )
        return {name for (name,) in rows}

    def _refused(self, line: Line, left: int) -> Refused:
        resets_ns = line.terms.ends_ns
        if line.terms.kind == BUCKET and line.amount <= line.terms.cap:
            resets_ns = self._now_ns + refill_wait_ns(line.need - left, line.terms)
        return Refused(line.slice, left, resets_ns)

    def _top_up(self, line: Line) -> None:
        account = self._account(line.terms)
        available = account.available
        if available > 0 and not self._wanting(line.terms.account):
            self._grant(line, account, grant_units(0, line.good, available, self._workers, False))

    def _grant(self, line: Line, account: Account, units: int) -> None:
        account.grant(units)
        row = (self._worker, line.slice, line.terms.account, line.terms.counted, units, units)
        self._db.execute(
            "INSERT INTO leases (worker, slice, account, counted, granted, returned, booked, over, refunded, answered, "
            "held, dropped) VALUES (?, ?, ?, ?, ?, 0, 0, 0, 0, 0, ?, 0) ON CONFLICT (worker, slice) DO UPDATE SET "
            "granted = granted + excluded.granted, held = held + excluded.held",
            row,
        )

    def _forget(self, number: int, account: str = "") -> None:
        """A want, or what it wants of one account."""
        rows = self._db.execute(
            "DELETE FROM wants WHERE worker = ? AND number = ? AND (account = ? OR ? = '') RETURNING account",
            (self._worker, number, account, account),
        )
        self._moved.update(name for (name,) in rows.fetchall())

    def _wanting(self, account: str) -> set[str]:
        """Other workers that wait for the account."""
        if not self._somebody_waits:
            return set()
        rows = self._db.execute(
            "SELECT DISTINCT worker FROM wants WHERE account = ? AND worker <> ?", (account, self._worker)
        )
        return {name for (name,) in rows}

    def _recalls(self) -> dict[int, str]:
        if not self._somebody_waits:
            return {}
        rows = self._db.execute(
            "SELECT DISTINCT slice, l.account FROM wants w CROSS JOIN leases l ON l.account = w.account "
            "JOIN accounts a ON a.id = l.account "
            "WHERE l.worker = ? AND w.worker <> l.worker AND l.answered < w.placed AND a.kind <> 'slots'",
            (self._worker,),
        )
        return dict(rows.fetchall())

    def _contended_slots(self) -> dict[int, str]:
        """This worker's slots that others wait for. There is nothing to answer: it returns them as they come free."""
        if not self._somebody_waits:
            return {}
        rows = self._db.execute(
            "SELECT DISTINCT slice, l.account FROM wants w CROSS JOIN leases l ON l.account = w.account "
            "JOIN accounts a ON a.id = l.account "
            "WHERE l.worker = ? AND w.worker <> l.worker AND l.held > 0 AND a.kind = 'slots'",
            (self._worker,),
        )
        return dict(rows.fetchall())

    def _unaware(self, account: str) -> set[str]:
        """Others that hold slots and have not been told that somebody waits, or were told of a larger share."""
        keep = self._keep(self._accounts[account])
        rows = self._db.execute(
            "SELECT worker, told FROM leases WHERE account = ? AND worker <> ? AND held > 0", (account, self._worker)
        )
        return {name for name, told in rows if told > keep[name]}

    def _ring_next(self) -> None:
        """Ring those who wait for slots of which some are there now."""
        for name in self._moved if self._somebody_waits else ():
            found = self._accounts.get(name) or account_row(self._db, name, self._now_ns)
            if found is not None and found.kind == SLOTS and found.available > 0:
                self.ring.update(self._wanting(name))

    def _state(self, number: int, name: str) -> LeaseState:
        key = (self._worker, number)
        row = self._db.execute("SELECT granted, told FROM leases WHERE worker = ? AND slice = ?", key).fetchone()
        granted, told = row or (0, FOREVER)
        found = self._accounts.get(name) or account_row(self._db, name, self._now_ns)
        contended = bool(self._wanting(name))
        if found is None or found.kind != SLOTS:
            return LeaseState(number, granted, 0 if found is None else found.settled, contended)
        keep = self._keep(found)[self._worker]
        tell = keep if contended else FOREVER
        if tell != told:
            self._db.execute("UPDATE leases SET told = ? WHERE worker = ? AND slice = ?", (tell, *key))
        return LeaseState(number, granted, 0, contended, keep)

    def _announced(self, alert: tuple[str, int]) -> bool:
        return self._db.execute("INSERT OR IGNORE INTO alerts VALUES (?, ?)", alert).rowcount == 1


def rename(db: sqlite3.Connection, old: str, new: str) -> bool:
    """An account is called `new` from now on, by its workers too; False: there is none called `old`."""
    if not db.execute("UPDATE accounts SET id = ? WHERE id = ?", (new, old)).rowcount:
        return False
    db.execute(
        "INSERT OR REPLACE INTO renamed SELECT worker, slice, ? FROM leases WHERE account = ?",
        (new, old),
    )
    for table in ("leases", "wants", "alerts"):
        db.execute(f"UPDATE {table} SET account = ? WHERE account = ?", (new, old))  # noqa: S608 - our own words
    db.execute("UPDATE renamed SET account = ? WHERE account = ?", (new, old))
    return True


def release(db: sqlite3.Connection, worker: str, charges: Mapping[str, int], now_ns: int, *, in_full: bool) -> set[str]:
    """End a worker: book its charges, let its leases go. Returns who waits for what it held.

    in_full: charge at least all the money that it held.
    """
    held: dict[str, int] = {}
    enforced: dict[str, int] = {}
    for name, units, counted in db.execute("SELECT account, held, counted FROM leases WHERE worker = ?", (worker,)):
        held[name] = held.get(name, 0) + units
        if not counted:
            enforced[name] = enforced.get(name, 0) + units
    ring: set[str] = set()
    for name in held.keys() | charges.keys():
        units, booked = held.get(name, 0), charges.get(name, 0)
        account = account_row(db, name, now_ns)
        if account is None:
            # A `soft` budget that was spent from before its worker first told of it.
            row = (name, MONEY, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0)
            db.execute("INSERT INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            account = Account(row, now_ns)
        if in_full and account.kind == MONEY:
            booked = max(booked, enforced.get(name, 0))
        account.settled += booked
        account.held -= units
        account.over += max(0, booked - units) if name in enforced else 0
        write_accounts(db, (account,))
        rows = db.execute("SELECT DISTINCT worker FROM wants WHERE account = ? AND worker <> ?", (name, worker))
        ring.update(waiting for (waiting,) in rows)
    for table, column in (("leases", "worker"), ("wants", "worker"), ("renamed", "worker"), ("workers", "id")):
        db.execute(f"DELETE FROM {table} WHERE {column} = ?", (worker,))  # noqa: S608 - our own words
    return ring
