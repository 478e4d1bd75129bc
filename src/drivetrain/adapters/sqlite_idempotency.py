"""Idempotency-Keys in one SQLite file, for the workers of one machine.

Owns `keys.db` (WAL), `open.lock` and, per worker, `workers/ID.lock` in its folder. Wired by the gateway; several
processes use the folder at once, each through one thread.

A worker lives as long as its process holds the flock on its file: no clock and no heartbeat decides, so a worker that
is merely slow is never taken for dead. What `kill -9` leaves is what was committed. A power cut may take the last
moments (`synchronous=NORMAL`), as it takes the ledger's: to wait for the disk would cost each key milliseconds.

Nothing is opened before the first visit, and after a failure everything is opened anew, so a file that is put right is
used again without a restart. The flock outlives such failures: the worker did not die of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from drivetrain.core.times import NS_PER_S
from drivetrain.ports.idempotency import (
    ANSWERED,
    OTHER_BODY,
    RUNNING,
    SETTLED,
    YOURS,
    Ask,
    Claim,
    Found,
    IdempotencyUnavailable,
    Keep,
)
from drivetrain.ports.locks import locked

SCHEMA_VERSION = 1
KEEP_NS = 86_400 * NS_PER_S
"""How long an answered key is known."""
ROWS_MAX = 1_000_000
"""Keys known at once, about 200 bytes each without their answers; beyond it the oldest are forgotten."""
BYTES_MAX = 1024 * 1024 * 1024
"""Answers kept at once; beyond it the oldest are dropped, while their keys stay known."""
BUSY_TIMEOUT_S = 0.15
"""How long a visit waits for others; each holds the file well under a millisecond. Below what a request waits."""
LOOK_EVERY_S = 0.002
"""Between two looks at whether another still opens."""
SWEEP_MAX = 64
"""Rows that one visit takes away, so that none takes long; more than it can add."""
DROP_MAX = 64
"""Answers that one transaction of `drop_answers` takes away, so that visits go in between."""
REWRITE_WAIT_S = 30.0
"""How long it tries for a moment without visits in which the file can be written anew."""
WAL_BYTES_MAX = 16 * 1024 * 1024
"""What the log beside the file is cut to when it was longer."""

SCHEMA = """
CREATE TABLE known (
    id BLOB NOT NULL UNIQUE,
    body BLOB NOT NULL,
    holder TEXT NOT NULL,
    ended_ns INTEGER,
    answer BLOB
) STRICT;
CREATE INDEX ended ON known (ended_ns) WHERE ended_ns IS NOT NULL;
CREATE INDEX with_answer ON known (ended_ns) WHERE answer IS NOT NULL;
CREATE TABLE totals (keys INTEGER NOT NULL, bytes INTEGER NOT NULL) STRICT;
INSERT INTO totals VALUES (0, 0);
CREATE TRIGGER added AFTER INSERT ON known BEGIN
    UPDATE totals SET keys = keys + 1;
END;
CREATE TRIGGER gone AFTER DELETE ON known BEGIN
    UPDATE totals SET keys = keys - 1, bytes = bytes - ifnull(length(OLD.answer), 0);
END;
CREATE TRIGGER answered AFTER UPDATE OF answer ON known BEGIN
    UPDATE totals SET bytes = bytes + ifnull(length(NEW.answer), 0) - ifnull(length(OLD.answer), 0);
END;
"""


class SqliteIdempotency:
    """One worker's IdempotencyStore, on a folder that all workers of the machine share.

    worker: a name that no other worker ever has.
    """

    def __init__(
        self,
        folder: Path,
        *,
        worker: str = "",
        keep_ns: int = KEEP_NS,
        rows_max: int = ROWS_MAX,
        bytes_max: int = BYTES_MAX,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._folder = folder
        self._path = folder / "keys.db"
        self._worker = worker or f"{os.getpid():x}-{secrets.token_hex(8)}"
        self._alive_path = folder / "workers" / f"{self._worker}.lock"
        self._alive_fd = -1
        self._keep_ns = keep_ns
        self._rows_max = rows_max
        self._bytes_max = bytes_max
        self._now_ns = now_ns
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    def visit(self, asks: Sequence[Ask]) -> tuple[Found, ...]:
        try:
            db = self._opened()
            db.execute("BEGIN IMMEDIATE")
            try:
                now_ns = self._now_ns()
                found = tuple([self._answer(db, ask, now_ns) for ask in asks])
                self._sweep(db, now_ns)
                db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                    db.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError) as error:
            self._let_file_go()
            raise IdempotencyUnavailable(f"{self._path} cannot be used: {error}") from error
        return found

    def drop_answers(self) -> int:
        """See the port. The file is written anew, which takes a second per 200 MB of keys; visits are refused then."""
        if not self._path.exists():
            return 0
        dropped = 0
        with self._waiting("dropped") as db:
            while True:
                some = "SELECT rowid FROM known WHERE answer IS NOT NULL LIMIT ?"
                count = db.execute(f"UPDATE known SET answer = NULL WHERE rowid IN ({some})", (DROP_MAX,)).rowcount  # noqa: S608
                dropped += count
                if not count:
                    break
            # What earlier answers left in free pages goes too, and then the log that has been there meanwhile.
            db.execute("VACUUM")
            until = time.monotonic() + REWRITE_WAIT_S
            while db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > until:
                    raise IdempotencyUnavailable(f"{self._path}: its log is in use for more than {REWRITE_WAIT_S:g} s")
                time.sleep(0.01)
        return dropped

    @contextmanager
    def _waiting(self, what: str) -> Iterator[sqlite3.Connection]:
        """The file on a connection that waits for others, and zeroes what it frees. Raises: IdempotencyUnavailable."""
        try:
            with contextlib.closing(sqlite3.connect(self._path, timeout=REWRITE_WAIT_S, isolation_level=None)) as db:
                db.execute("PRAGMA secure_delete = ON")
                yield db
        except (sqlite3.Error, OSError) as error:
            raise IdempotencyUnavailable(f"answers in {self._path} cannot be {what}: {error}") from error

    def close(self) -> None:
        self._let_file_go()
        if self._alive_fd >= 0:
            self._alive_path.unlink(missing_ok=True)
            os.close(self._alive_fd)
            self._alive_fd = -1

    # One ask.

    def _answer(self, db: sqlite3.Connection, ask: Ask, now_ns: int) -> Found:
        if type(ask) is Claim:
            return self._claim(db, ask, now_ns)
        held = (ask.id, self._worker)
        if type(ask) is Keep:
            query = "UPDATE known SET holder = '', ended_ns = ?, answer = ? WHERE id = ? AND holder = ?"
            db.execute(query, (now_ns, ask.sealed, *held))
        else:
            db.execute("DELETE FROM known WHERE id = ? AND holder = ?", held)
        return Found(SETTLED)

    def _claim(self, db: sqlite3.Connection, claim: Claim, now_ns: int) -> Found:
        query = "SELECT body, holder, ended_ns, answer FROM known WHERE id = ?"
        row = db.execute(query, (claim.id,)).fetchone()
        if row is not None:
            body, holder, ended_ns, answer = row
            over = now_ns - ended_ns >= self._keep_ns if ended_ns is not None else not self._lives(holder)
            if not over:
                if body != claim.body:
                    return Found(OTHER_BODY)
                return Found(RUNNING) if ended_ns is None else Found(ANSWERED, answer)
            # A dead worker's key may come back with another body: its call has given no answer that could differ.
            db.execute("DELETE FROM known WHERE id = ?", (claim.id,))
        db.execute("INSERT INTO known VALUES (?, ?, ?, NULL, NULL)", (claim.id, claim.body, self._worker))
        return Found(YOURS)

    def _sweep(self, db: sqlite3.Connection, now_ns: int) -> None:
        """Take away what is over, and the oldest of what is too much; never a key whose call runs."""
        oldest = "(SELECT rowid FROM known WHERE ended_ns IS NOT NULL AND ended_ns <= ? ORDER BY ended_ns LIMIT ?)"
        db.execute(f"DELETE FROM known WHERE rowid IN {oldest}", (now_ns - self._keep_ns, SWEEP_MAX))  # noqa: S608
        (keys, size) = db.execute("SELECT keys, bytes FROM totals").fetchone()
        if keys > self._rows_max:
            many = min(keys - self._rows_max, SWEEP_MAX)
            db.execute(f"DELETE FROM known WHERE rowid IN {oldest}", (now_ns, many))  # noqa: S608
        while size > self._bytes_max:
            query = "SELECT rowid FROM known WHERE answer IS NOT NULL ORDER BY ended_ns LIMIT 1"
            db.execute(f"UPDATE known SET answer = NULL WHERE rowid = ({query})")  # noqa: S608
            (size,) = db.execute("SELECT bytes FROM totals").fetchone()

    # Edges.

    def _opened(self) -> sqlite3.Connection:
        """The file as it stands there now: one that was replaced or removed is not written to any more."""
        if self._db is not None and _file_id(self._path) == self._file and self._lives(self._worker):
            return self._db
        self._let_file_go()
        (self._folder / "workers").mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._alone():
            self._come_alive()
            # SQLite gives its other files the same mode.
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            db = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            self._db, self._file = db, _file_id(self._path)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA secure_delete = ON")  # an answer that was dropped is not left in a free page
            db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            elif version != SCHEMA_VERSION:
                raise sqlite3.DatabaseError(f"its schema is version {version}, this Drivetrain knows {SCHEMA_VERSION}")
        return db

    def _come_alive(self) -> None:
        """Hold this worker's lock, and clear away those of the dead; alone, so that a new one is not taken for dead."""
        if self._alive_fd < 0 or not self._lives(self._worker):
            if self._alive_fd >= 0:
                os.close(self._alive_fd)
            self._alive_fd = os.open(self._alive_path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._alive_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in self._alive_path.parent.glob("*.lock"):
            if not self._lives(path.stem):
                path.unlink(missing_ok=True)

    def _lives(self, worker: str) -> bool:
        try:
            fd = os.open(self._alive_path.with_name(f"{worker}.lock"), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else opens meanwhile. Raises: OSError where another does not end opening."""
        with locked(self._folder / "open.lock", wait_s=BUSY_TIMEOUT_S, look_every_s=LOOK_EVERY_S) as held:
            if not held:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(self._folder / "open.lock"))
            yield

    def _let_file_go(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
        self._db = self._file = None


def _file_id(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
