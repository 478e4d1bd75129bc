"""The control log as workers follow it: whether anything was added, and the records of chosen kinds.

Reads `control.db` and never changes it, nor the log's key. `sqlite.py` writes it; `drivetrain audit verify` proves it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.control import ControlRecord

READ_TIMEOUT_S = 1.0
"""How long a reading waits for whoever writes; it is tried again soon."""
RETRY_S = 0.01


class SqliteControlFeed:
    """A project's control log, followed. Methods belong to one thread at a time. Raises: DrivetrainError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._seen: tuple[int, int, int] | None = None

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
        """Every record of these kinds, in order; none where there is no log yet. Costs a look at every record."""
        until_s = time.monotonic() + READ_TIMEOUT_S
        while True:
            try:
                rows = self._rows(kinds)
            except (sqlite3.Error, UnicodeDecodeError) as error:
                # While a log is made, or its WAL put away, SQLite says so at once, whatever its timeout is.
                if not _is_busy(error) or time.monotonic() >= until_s:
                    raise self._unusable(error) from error
                time.sleep(RETRY_S)
            else:
                return [ControlRecord(**dict(zip(ControlRecord.__struct_fields__, row, strict=True))) for row in rows]

    def close(self) -> None:
        """Let the file go."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._seen = None

    def _rows(self, kinds: Sequence[str]) -> list[tuple[Any, ...]]:
        if not self._path.exists():
            return []
        columns = ", ".join(ControlRecord.__struct_fields__)
        marks = ", ".join("?" * len(kinds))
        with closing(self._connected(READ_TIMEOUT_S)) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'control'").fetchone():
                return []  # it is being made at this moment
            query = f"SELECT {columns} FROM control WHERE kind IN ({marks}) ORDER BY seq"  # noqa: S608 - our own names
            return connection.execute(query, tuple(kinds)).fetchall()

    def _connected(self, timeout_s: float) -> sqlite3.Connection:
        uri = f"file:{quote(str(self._path))}?mode=ro"
        return sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False)

    def _unusable(self, error: Exception) -> DrivetrainError:
        return DrivetrainError(
            f"The control log in {self._path} cannot be used: {error}.",
            do="Run `drivetrain audit verify`; where it was damaged, restore it from your backup.",
        )


def _is_busy(error: Exception) -> bool:
    """Whether another try may do better; SQLite has several codes for it, with this one in their lowest byte."""
    code = error.sqlite_errorcode if isinstance(error, sqlite3.Error) else None
    return code is not None and code & 0xFF == sqlite3.SQLITE_BUSY
