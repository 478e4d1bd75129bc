"""The control log as workers follow it: whether anything was added, and the records of chosen kinds.

Reads `control.db` and never changes it, nor the log's key. `sqlite.py` writes it. What was read once must stay, and
what comes must follow it on the chain, so whoever edits the log is noticed by those who follow it; `drivetrain audit
verify` proves it against the anchor as well.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from drivetrain.adapters.sqlite import COLUMNS, GENESIS, record_hash
from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.control import CONTROL_FILE, ControlRecord

READ_TIMEOUT_S = 1.0
"""How long a reading waits for whoever writes; it is tried again soon."""
RETRY_S = 0.01


class _Read:
    """What was read of chosen kinds: it may not change any more."""

    def __init__(self) -> None:
        self.seq, self.head = 0, GENESIS
        """The last record of any kind."""
        self.hashes: dict[int, str] = {}
        """Of each record of these kinds."""


class SqliteControlFeed:
    """A project's control log, followed. Methods belong to one thread at a time. Raises: DrivetrainError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._seen: tuple[int, int, int] | None = None
        self._read: dict[tuple[str, ...], _Read] = {}

    def changed(self) -> bool:
        """Whether anything was committed since this was asked before, or the file is another; True at first.

        Costs about 10 us: a stat, and a look at SQLite's shared memory.
        """
        try:
            found = self._path.stat()
        except FileNotFoundError:
            vanished = self._seen is not None
            self.close()
            return vanished
        except OSError as error:
            raise self._unusable(error) from error
        file = (found.st_dev, found.st_ino)
        if self._seen is not None and self._seen[:2] != file:
            self.close()
        try:
            if self._connection is None:
                self._connection = self._connected(0)
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error as error:
            self.close()
            if _is_busy(error):
                return True
            raise self._unusable(error) from error
        before, self._seen = self._seen, (*file, version)
        return before != self._seen

    def read(self, kinds: Sequence[str]) -> list[ControlRecord]:
        """Every record of these kinds, in order; none where there is no log yet.

        The first reading checks the whole chain, for about 10 us a record; later ones check the chain of what came, and
        each record of these kinds. Raises: DrivetrainError also where a record that was read is another, or is gone.
        """
        read = self._read.setdefault(tuple(kinds), _Read())
        until_s = time.monotonic() + READ_TIMEOUT_S
        while True:
            try:
                before, added = self._rows(kinds, read.seq)
            except (sqlite3.Error, UnicodeDecodeError) as error:
                # While a log is made, or its WAL put away, SQLite says so at once, whatever its timeout is.
                if not _is_busy(error) or time.monotonic() >= until_s:
                    raise self._unusable(error) from error
                time.sleep(RETRY_S)
            else:
                return self._checked(read, [_record(row) for row in before], [_record(row) for row in added], kinds)

    def close(self) -> None:
        """Let the file go."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._seen = None

    def _rows(self, kinds: Sequence[str], seq: int) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Those of these kinds up to `seq`, and all after it."""
        if not self._path.exists():
            return [], []
        marks = ", ".join("?" * len(kinds))
        with closing(self._connected(READ_TIMEOUT_S)) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'control'").fetchone():
                return [], []  # it is being made at this moment
            query = f"SELECT {COLUMNS} FROM control WHERE kind IN ({marks}) AND seq <= ? ORDER BY seq"  # noqa: S608 - our own names
            before = connection.execute(query, (*kinds, seq)).fetchall()
            query = f"SELECT {COLUMNS} FROM control WHERE seq > ? ORDER BY seq"  # noqa: S608 - our own names
            return before, connection.execute(query, (seq,)).fetchall()

    def _checked(
        self, read: _Read, before: list[ControlRecord], added: list[ControlRecord], kinds: Sequence[str]
    ) -> list[ControlRecord]:
        """Those of these kinds, once it is sure that nothing was edited."""
        found = {one.seq: one.hash for one in before}
        for seq in sorted({*found, *read.hashes}):
            if found.get(seq) != read.hashes.get(seq):
                raise self._changed(seq)
        for one in before:
            if record_hash(one) != one.hash:
                raise self._changed(one.seq)
        seq, head = read.seq, read.head
        for one in added:
            if one.seq != seq + 1 or one.prev_hash != head or record_hash(one) != one.hash:
                raise self._changed(seq + 1)
            seq, head = one.seq, one.hash
        chosen = [one for one in added if one.kind in kinds]
        read.hashes.update((one.seq, one.hash) for one in chosen)
        read.seq, read.head = seq, head
        return [*before, *chosen]

    def _changed(self, seq: int) -> DrivetrainError:
        return DrivetrainError(
            f"The control log was changed from outside: record {seq} is missing, or is not the one that was written.",
            looked=[str(self._path)],
            do="Run `drivetrain audit verify`. Where you restored an older log, start the gateway anew.",
        )

    def _connected(self, timeout_s: float) -> sqlite3.Connection:
        uri = f"file:{quote(str(self._path))}?mode=ro"
        return sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False)

    def _unusable(self, error: Exception) -> DrivetrainError:
        return DrivetrainError(
            f"The control log in {self._path} cannot be used: {error}.",
            do="Run `drivetrain audit verify`; where it was damaged, restore it from your backup.",
        )


def open_control_feed(data_folder: Path) -> SqliteControlFeed:
    """A project's control log, followed from its beginning; it need not be there yet."""
    return SqliteControlFeed(data_folder / CONTROL_FILE)


def _record(row: tuple[Any, ...]) -> ControlRecord:
    return ControlRecord(**dict(zip(ControlRecord.__struct_fields__, row, strict=True)))


def _is_busy(error: Exception) -> bool:
    """Whether another try may do better; SQLite has several codes for it, with this one in their lowest byte."""
    code = error.sqlite_errorcode if isinstance(error, sqlite3.Error) else None
    return code is not None and code & 0xFF == sqlite3.SQLITE_BUSY
