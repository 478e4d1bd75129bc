"""The counter store in one SQLite file, for the workers of one machine.

Owns `counters.db`, the queue before it (`queue.lock`), and per worker a lock that says that it lives and a bell that
others ring. Wired by the gateway; several processes use it at once, each through one thread.

A worker lives as long as its process holds the flock on its file: no clock and no heartbeat decides, so a worker that
is merely slow is never taken for dead. Writers queue on an flock of their own, because SQLite's sleeps and tries again.

`kill -9` loses nothing. Before units are granted the disk is waited for (`synchronous=FULL`); what is merely booked or
returned is not. So after a power cut the file may know less of what was spent, never less of what was leased, and the
ledger's last frames may be gone: a worker of an earlier boot is therefore charged all that it held, never less.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from drivetrain.adapters import sqlite_counter_batch
from drivetrain.adapters.sqlite_counter_batch import WORTH_IT, Batch
from drivetrain.adapters.sqlite_counter_tables import (
    NUMBERS,
    SCHEMA,
    Visit,
    account_listing,
    account_row,
    release,
    rename,
)
from drivetrain.core.codec import MSGPACK
from drivetrain.ports.counters import (
    MONEY,
    AccountListing,
    AccountState,
    DeadWorker,
    StoreUnavailable,
    SyncReply,
    SyncRequest,
    is_of,
)

BUSY_TIMEOUT_S = 1.0
"""Only somebody outside of the queue (a backup, a shell) can make a writer wait."""
BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")


class SqliteCounters:
    """One worker's CounterStore, on a folder that all workers of the machine share.

    boot: names this start of the machine; None: what the kernel says. Methods belong to one thread but for `wake`.
    Raises (constructor): StoreUnavailable.
    """

    def __init__(self, folder: Path, *, now_ns: Callable[[], int] = time.time_ns, boot: str | None = None) -> None:
        self._folder = folder
        self._now_ns = now_ns
        self._boot = _boot() if boot is None else boot
        self._worker = ""
        self._alive_fd = self._bell_fd = -1
        self._synchronous = ""
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)
        try:
            (folder / "workers").mkdir(parents=True, exist_ok=True)
            self._queue_fd = os.open(folder / "queue.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            # It names users; SQLite gives its other files the same mode.
            if not (folder / "counters.db").exists():
                # Only where it is new: closing any descriptor of it would drop this process's locks on it.
                os.close(os.open(folder / "counters.db", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(
                folder / "counters.db", timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            with _told(), self._queued():
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.executescript(SCHEMA)
                self._db.executescript(sqlite_counter_batch.SCHEMA)
        except OSError as error:
            raise StoreUnavailable(f"{folder}: {error.strerror}") from error

    # A worker's life.

    def join(self, worker: str, position: str = "") -> None:
        self._worker = worker
        workers = self._folder / "workers"
        os.mkfifo(workers / f"{worker}.bell", 0o600)
        # Read and write, so that it neither blocks nor ends when a ringer leaves.
        self._bell_fd = os.open(workers / f"{worker}.bell", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._alive_fd = os.open(workers / f"{worker}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._alive_fd, fcntl.LOCK_EX)
        with self._transaction(durable=True) as db:
            row = (worker, self._boot, 0, MSGPACK.encode(()), position)
            db.execute("INSERT INTO workers VALUES (?, ?, ?, ?, ?)", row)

    def leave(self) -> bool:
        with self._transaction(durable=False) as db:
            row = db.execute("SELECT open FROM workers WHERE id = ?", (self._worker,)).fetchone()
            clean = row is not None and not NUMBERS.decode(row[0])
            ring = release(db, self._worker, {}, self._now_ns(), in_full=False) if clean else set()
        self._ring(ring)
        self._let_live_go(remove=clean)
        return clean

    def dead(self) -> tuple[DeadWorker, ...]:
        with _told():
            rows = self._db.execute("SELECT id, mark, open, position FROM workers WHERE id <> ?", (self._worker,))
            found = rows.fetchall()
        return tuple(
            DeadWorker(name, mark, NUMBERS.decode(numbers), position)
            for name, mark, numbers, position in found
            if not self._lives(name)
        )

    def positions(self) -> Mapping[str, str]:
        with _told():
            return dict(self._db.execute("SELECT id, position FROM workers").fetchall())

    def told(self) -> tuple[DeadWorker, ...]:
        with _told():
            rows = self._db.execute("SELECT id, mark, open, position FROM workers").fetchall()
        return tuple(DeadWorker(name, mark, NUMBERS.decode(numbers), place) for name, mark, numbers, place in rows)

    def named(self, value: str) -> tuple[str, ...]:
        with _told():
            rows = self._db.execute("SELECT id FROM accounts WHERE instr(id, ?) > 0 ORDER BY id", (f"{value}@",))
            return tuple(name for (name,) in rows.fetchall() if is_of(name, value))

    def rename(self, names: Mapping[str, str]) -> int:
        """See the port. The file is written anew while others queue, which takes some milliseconds per MB."""
        with self._transaction(durable=True) as db:
            db.execute("PRAGMA secure_delete = ON")
            found = sum(rename(db, old, new) for old, new in names.items())
        with _told(), self._queued():
            self._db.execute("VACUUM")  # a name may stand in pages that were freed before
            until = time.monotonic() + BUSY_TIMEOUT_S
            # Readers of the log do not queue, and each takes a moment.
            while self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > until:
                    raise StoreUnavailable(f"{self._folder}: the counters' log is in use for more than a second")
                time.sleep(0.005)
        return found

    def bury(self, dead: DeadWorker, charges: Mapping[str, int]) -> bool:
        with self._transaction(durable=True) as db:
            row = db.execute("SELECT boot FROM workers WHERE id = ?", (dead.worker,)).fetchone()
            if row is None or self._lives(dead.worker):
                return False
            ring = release(db, dead.worker, charges, self._now_ns(), in_full=row[0] != self._boot)
        self._ring(ring)
        for suffix in ("bell", "lock"):
            (self._folder / "workers" / f"{dead.worker}.{suffix}").unlink(missing_ok=True)
        return True

    def close(self) -> None:
        self._let_live_go(remove=False)
        if self._queue_fd >= 0:
            for fd in (self._wake_read, self._wake_write, self._queue_fd):
                os.close(fd)
            self._wake_read = self._wake_write = self._queue_fd = -1
            self._db.close()

    # Being told.

    def wait(self, timeout_s: float) -> bool:
        # Not select(): beside thousands of connections its numbers would be too large.
        poll = select.poll()
        for fd in (self._wake_read, self._bell_fd):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(timeout_s * 1000)]
        for fd in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 4096)
        return self._bell_fd in ready

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # full of wake-ups already, or closed
            os.write(self._wake_write, b"w")

    # The conversation.

    def sync(self, request: SyncRequest) -> SyncReply:
        batch = self._prepared(request) if len(request.reports) >= WORTH_IT else None
        lines = (*request.ahead, *(line for want in request.wants for line in want.lines))
        # Places and buckets mean nothing after a power cut; money does.
        with self._transaction(durable=any(line.terms.kind == MONEY for line in lines)) as db:
            visit = Visit(db, self._worker, self._now_ns(), batch)
            reply = visit.sync(request)
        self._ring(visit.ring)
        if batch is not None:
            self._flush_log()
        return reply

    def account(self, account: str) -> AccountState | None:
        with self._transaction(durable=False) as db:
            found = account_row(db, account, self._now_ns())
            return None if found is None else found.state

    def accounts(self, prefix: str, suffix: str, at_most: int) -> AccountListing:
        with _told():  # a reader of the WAL: it neither queues nor makes anybody wait
            return account_listing(self._db, prefix, suffix, at_most, self._now_ns())

    def sweep(self, before_ns: int) -> int:
        with self._transaction(durable=True) as db:
            db.execute("UPDATE meta SET swept_ns = max(swept_ns, ?)", (before_ns,))
            old = "ends_ns > 0 AND ends_ns < ? AND NOT EXISTS (SELECT 1 FROM leases WHERE account = accounts.id)"
            gone = db.execute(f"DELETE FROM accounts WHERE {old}", (before_ns,)).rowcount  # noqa: S608 - our own words
            db.execute("DELETE FROM alerts WHERE account NOT IN (SELECT id FROM accounts)")
            return int(gone)

    def _prepared(self, request: SyncRequest) -> Batch:
        batch = Batch(self._db, self._worker)
        with _told():
            self._db.execute("BEGIN")  # reads, and writes what nobody else sees
            try:
                batch.prepare(request.reports)
            finally:
                self._db.execute("COMMIT")
        return batch

    def _flush_log(self) -> None:
        """Have megabytes on the disk before somebody's grant must wait for them in the queue."""
        with contextlib.suppress(OSError):  # whoever must wait for the disk will be told
            fd = os.open(self._folder / "counters.db-wal", os.O_RDWR | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    # Edges.

    @contextmanager
    def _transaction(self, *, durable: bool) -> Iterator[sqlite3.Connection]:
        with _told(), self._queued():
            wanted = "FULL" if durable else "NORMAL"
            if wanted != self._synchronous:
                self._db.execute(f"PRAGMA synchronous = {wanted}")
                self._synchronous = wanted
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _queued(self) -> Iterator[None]:
        fcntl.flock(self._queue_fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._queue_fd, fcntl.LOCK_UN)

    def _lives(self, worker: str) -> bool:
        try:
            fd = os.open(self._folder / "workers" / f"{worker}.lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def _ring(self, workers: set[str]) -> None:
        for worker in workers:
            # One that is gone, or whose bell is full of rings, need not be told.
            with contextlib.suppress(OSError):
                fd = os.open(self._folder / "workers" / f"{worker}.bell", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    os.write(fd, b"r")
                finally:
                    os.close(fd)

    def _let_live_go(self, *, remove: bool) -> None:
        if remove:
            for suffix in ("bell", "lock"):
                (self._folder / "workers" / f"{self._worker}.{suffix}").unlink(missing_ok=True)
        for fd in (self._alive_fd, self._bell_fd):
            if fd >= 0:
                os.close(fd)
        self._alive_fd = self._bell_fd = -1


@contextmanager
def _told() -> Iterator[None]:
    """Whatever SQLite or the disk says becomes StoreUnavailable."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreUnavailable(f"the counter store cannot be used: {error}") from error


def _boot() -> str:
    try:
        return BOOT_FILE.read_text().strip()
    except OSError:
        return ""
