"""SQLite databases: copied by SQLite's own online backup, and looked at before anything is done with them.

A database is never copied as a file: beside a writer that would be half of a change, without what stands in its log.
Writers are not stopped. Called by the backup, the restore and the migration.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from drivetrain.core.errors import DrivetrainError

BUSY_TIMEOUT_S = 10.0
"""How long a copy waits for a writer that has a database alone, as SQLite has it while it switches to its log."""


def copy_database(source: Path, target: Path) -> None:
    """All of `source` as it is at one moment, as one file that needs no other.

    Raises: FileNotFoundError where there is none, DrivetrainError where it is damaged.
    """
    if not source.exists():
        raise FileNotFoundError(source)
    try:
        with (
            contextlib.closing(_opened(source)) as there,
            contextlib.closing(sqlite3.connect(target, timeout=BUSY_TIMEOUT_S, isolation_level=None)) as here,
        ):
            here.execute("PRAGMA synchronous = OFF")  # whoever keeps it syncs it
            there.backup(here)  # in one step, so that it holds one moment
            here.execute("PRAGMA journal_mode = DELETE")
            _check(here, source)
    except sqlite3.Error as error:
        raise _damaged(source, str(error)) from error


def user_version(path: Path) -> int:
    """The version of its schema, as its owner wrote it; 0 where owners write none. Raises: DrivetrainError."""
    try:
        with contextlib.closing(_opened(path)) as database:
            ((version,),) = database.execute("PRAGMA user_version").fetchall()
            return int(version)
    except sqlite3.Error as error:
        raise _damaged(path, str(error)) from error


def columns(path: Path) -> Mapping[str, frozenset[str]]:
    """Table -> its columns. Raises: DrivetrainError where it is damaged."""
    try:
        with contextlib.closing(_opened(path)) as database:
            _check(database, path)
            rows = database.execute(
                "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table'"
            ).fetchall()
    except sqlite3.Error as error:
        raise _damaged(path, str(error)) from error
    found: dict[str, set[str]] = {}
    for table, column in rows:
        found.setdefault(table, set()).add(column)
    return {table: frozenset(names) for table, names in found.items()}


def last_record(path: Path) -> tuple[int, str]:
    """How many records a control log has, and the last one's hash. Raises: DrivetrainError."""
    try:
        with contextlib.closing(_opened(path)) as database:
            row = database.execute("SELECT seq, hash FROM control ORDER BY seq DESC LIMIT 1").fetchone()
    except sqlite3.Error as error:
        raise _damaged(path, str(error)) from error
    return (0, "") if row is None else (int(row[0]), str(row[1]))


def count_after(path: Path, seq: int, kind: str) -> int:
    """How many records of a kind a control log has after one. Raises: DrivetrainError."""
    try:
        with contextlib.closing(_opened(path)) as database:
            query = "SELECT count(*) FROM control WHERE seq > ? AND kind = ?"
            return int(database.execute(query, (seq, kind)).fetchone()[0])
    except sqlite3.Error as error:
        raise _damaged(path, str(error)) from error


def _opened(path: Path) -> sqlite3.Connection:
    """Never made where it is not there."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)


def _check(database: sqlite3.Connection, path: Path) -> None:
    ((word,),) = database.execute("PRAGMA quick_check(1)").fetchall()
    if word != "ok":
        raise _damaged(path, word)


def _damaged(path: Path, why: str) -> DrivetrainError:
    return DrivetrainError(
        f"The database {path} cannot be read: {why}.",
        looked=[str(path)],
        do="A copy of it would be as damaged. Restore it from an earlier backup, or move it aside to go on without it.",
    )
