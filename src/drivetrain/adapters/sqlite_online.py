"""Online features in one SQLite file: a vector per row, for who wants one file and no mapped memory.

Owns `online.db`. Materialization stages a new generation in small transactions, and one transaction makes it hold.
Pushed rows stand beside the vectors until the sources have rows as new; so nothing needs folding.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import msgspec

from drivetrain.adapters.online_vectors import VectorFormat, check_rows, foreign, no_name, patch_columns, same_parts
from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.online import NAME, Layout, PartRow, Pushed, TableState, Vectors, newer, patched

BUSY_TIMEOUT_S = 10.0
"""How long a write waits for others; each transaction takes milliseconds."""
STAGE_ROWS = 5_000
"""Vectors per transaction while a generation is staged: pushes go in between."""
KEYS_PER_QUERY = 500
"""Well below SQLite's limit of parameters."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS tables (
    name TEXT PRIMARY KEY, layout BLOB NOT NULL, as_of_us TEXT NOT NULL, generation INTEGER NOT NULL,
    vectors INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS vectors (
    generation INTEGER NOT NULL, key BLOB NOT NULL, vector BLOB NOT NULL, PRIMARY KEY (generation, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pushed (
    name TEXT NOT NULL, key BLOB NOT NULL, part TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (name, key, part)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS staged (generation INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL) STRICT;
"""


class _Head(msgspec.Struct, frozen=True):
    """One row of `tables`."""

    layout: Layout
    as_of_us: tuple[int, ...]
    generation: int
    vectors: int


class SqliteOnline:
    """OnlineStore in one SQLite file, made on first use. One instance serves one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def replace(
        self, layout: Layout, vectors: Iterable[tuple[bytes, Sequence[PartRow | None]]], as_of_us: Sequence[int]
    ) -> int:
        """See OnlineStore."""
        _named(layout.table)
        assert len(as_of_us) == len(layout.parts), "one moment per part"
        form = VectorFormat(layout)
        with self._transaction() as connection:
            generation = connection.execute("INSERT INTO staged (name) VALUES (?)", (layout.table,)).lastrowid
        assert generation is not None
        count = 0
        try:
            rows = ((generation, key, form.pack(parts)) for key, parts in vectors)
            while chunk := list(islice(rows, STAGE_ROWS)):
                with self._transaction() as connection:
                    connection.executemany("INSERT INTO vectors VALUES (?, ?, ?)", chunk)
                count += len(chunk)
            with self._transaction() as connection:
                self._settle_pushed(connection, layout, generation)
                self._hold(connection, layout, tuple(as_of_us), generation, count)
        except BaseException:
            with self._transaction() as connection:
                connection.execute("DELETE FROM vectors WHERE generation = ?", (generation,))
                connection.execute("DELETE FROM staged WHERE generation = ?", (generation,))
            raise
        return count

    def push(self, layout: Layout, rows: Sequence[Pushed]) -> int:
        """See OnlineStore."""
        if not rows:
            return 0
        _named(layout.table)
        check_rows(layout, rows)
        with self._transaction() as connection:
            head = _head(connection, layout.table)
            if head is None:
                self._hold(connection, layout, (0,) * len(layout.parts), 0, 0)
            elif head.layout.fingerprint != layout.fingerprint:
                raise foreign(layout, head.layout)
            for pushed in rows:
                place = (layout.table, pushed.key, pushed.part)
                held = connection.execute("SELECT body FROM pushed WHERE name = ? AND key = ? AND part = ?", place)
                before = held.fetchone()
                row = newer(_ROW.decode(before[0]) if before else None, pushed.row)
                connection.execute(
                    "INSERT OR REPLACE INTO pushed VALUES (?, ?, ?, ?)", (*place, msgspec.msgpack.encode(row))
                )
        return len(rows)

    def read(self, layout: Layout, keys: Sequence[bytes]) -> Vectors:
        """See OnlineStore."""
        form = VectorFormat(layout)
        found: dict[bytes, bytes] = {}
        touched: dict[bytes, dict[int, PartRow]] = {}
        as_of_us = (0,) * len(layout.parts)
        if self._path.exists():
            with self._transaction("BEGIN") as connection:
                head = _head(connection, layout.table)
                if head is not None:
                    if head.layout.fingerprint != layout.fingerprint:
                        raise foreign(layout, head.layout)
                    as_of_us = head.as_of_us
                    found = _vectors(connection, head.generation, keys)
                    touched = _touched(connection, layout, keys)
        vectors = [found.get(key, form.blank) for key in keys]
        read = form.decode(
            b"".join([one[: form.size] for one in vectors]),
            lambda row, place, length: vectors[row][place : place + length],
            as_of_us,
        )
        return patch_columns(layout, read, [(row, touched[key]) for row, key in enumerate(keys) if key in touched])

    def scan(self, table: str) -> Iterator[tuple[bytes, Sequence[PartRow | None]]]:
        """See OnlineStore."""
        if not self._path.exists():
            return
        with self._transaction("BEGIN") as connection:
            head = _head(connection, table)
            if head is None:
                return
            form = VectorFormat(head.layout)
            left = _touched(connection, head.layout, None)
            for key, vector in connection.execute(
                "SELECT key, vector FROM vectors WHERE generation = ?", (head.generation,)
            ):
                yield key, patched(form.rows(vector)[0], left.pop(key, None))
            for key, patches in left.items():
                yield key, patched([None] * len(head.layout.parts), patches)

    def remove(self, table: str, keys: Iterable[bytes]) -> int:
        """See OnlineStore. The file is written anew, so that nothing of them stays in its free pages."""
        removed = 0
        if not self._path.exists():
            return 0
        with self._transaction() as connection:
            head = _head(connection, table)
            if head is None:
                return 0
            for key in set(keys):
                gone = connection.execute(
                    "DELETE FROM vectors WHERE generation = ? AND key = ?", (head.generation, key)
                ).rowcount
                gone += connection.execute("DELETE FROM pushed WHERE name = ? AND key = ?", (table, key)).rowcount
                removed += gone > 0
            connection.execute(
                "UPDATE tables SET vectors = (SELECT count(*) FROM vectors WHERE generation = ?) WHERE name = ?",
                (head.generation, table),
            )
        if removed:
            self._rewrite()
        return removed

    def state(self, table: str) -> TableState | None:
        """See OnlineStore."""
        if not self._path.exists():
            return None
        with self._transaction("BEGIN") as connection:
            head = _head(connection, table)
            if head is None:
                return None
            (pushed,) = connection.execute("SELECT count(*) FROM pushed WHERE name = ?", (table,)).fetchone()
        return TableState(layout=head.layout, vectors=head.vectors, as_of_us=head.as_of_us, pushed=pushed)

    def tables(self) -> list[str]:
        """See OnlineStore."""
        if not self._path.exists():
            return []
        with self._transaction("BEGIN") as connection:
            return [name for (name,) in connection.execute("SELECT name FROM tables ORDER BY name")]

    def drop(self, table: str) -> None:
        """See OnlineStore."""
        if not self._path.exists():
            return
        with self._transaction() as connection:
            head = _head(connection, table)
            if head is not None:
                connection.execute("DELETE FROM vectors WHERE generation = ?", (head.generation,))
            connection.execute("DELETE FROM pushed WHERE name = ?", (table,))
            connection.execute("DELETE FROM tables WHERE name = ?", (table,))
        self._rewrite()

    def _hold(
        self, connection: sqlite3.Connection, layout: Layout, as_of_us: tuple[int, ...], generation: int, count: int
    ) -> None:
        """This generation is the table; older ones, and what a killed process had staged, go."""
        connection.execute(
            "INSERT OR REPLACE INTO tables VALUES (?, ?, ?, ?, ?)",
            (layout.table, msgspec.json.encode(layout), msgspec.json.encode(as_of_us).decode(), generation, count),
        )
        for (old,) in connection.execute(
            "SELECT generation FROM staged WHERE name = ? AND generation < ?", (layout.table, generation)
        ).fetchall():
            connection.execute("DELETE FROM vectors WHERE generation = ?", (old,))
            connection.execute("DELETE FROM staged WHERE generation = ?", (old,))

    def _settle_pushed(self, connection: sqlite3.Connection, layout: Layout, generation: int) -> None:
        """Pushed rows go where the new vectors are as new, and where their view is another one now."""
        head = _head(connection, layout.table)
        if head is None:
            return
        places = {layout.parts[at].name: at for at in same_parts(head.layout, layout).values()}
        form = VectorFormat(layout)
        rows = connection.execute("SELECT key, part, body FROM pushed WHERE name = ?", (layout.table,)).fetchall()
        for key, part, body in rows:
            if part in places:
                vector = _vectors(connection, generation, [key]).get(key)
                source = form.rows(vector)[0][places[part]] if vector else None
                row = _ROW.decode(body)
                if newer(row, source) is row:
                    continue
            connection.execute("DELETE FROM pushed WHERE name = ? AND key = ? AND part = ?", (layout.table, key, part))

    def _rewrite(self) -> None:
        try:
            connection = self._opened()
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    @contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
        try:
            connection = self._opened()
            connection.execute(begin)
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA secure_delete = ON")
            connection.executescript(SCHEMA)
            self._connection = connection
        return self._connection

    def _unusable(self, error: sqlite3.Error) -> DrivetrainError:
        return DrivetrainError(
            f"The online features in {self._path} cannot be used: {error}.",
            do="Make room, or delete the file and run `drivetrain features materialize`: it is made from the sources.",
        )


_ROW = msgspec.msgpack.Decoder(PartRow)


def _named(table: str) -> None:
    if not NAME.fullmatch(table):
        raise no_name(table)


def _head(connection: sqlite3.Connection, table: str) -> _Head | None:
    row = connection.execute(
        "SELECT layout, as_of_us, generation, vectors FROM tables WHERE name = ?", (table,)
    ).fetchone()
    if row is None:
        return None
    return _Head(
        msgspec.json.decode(row[0], type=Layout), msgspec.json.decode(row[1], type=tuple[int, ...]), row[2], row[3]
    )


def _vectors(connection: sqlite3.Connection, generation: int, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for start in range(0, len(keys), KEYS_PER_QUERY):
        some = keys[start : start + KEYS_PER_QUERY]
        marks = ",".join("?" * len(some))
        query = f"SELECT key, vector FROM vectors WHERE generation = ? AND key IN ({marks})"  # noqa: S608 - only marks
        found.update(connection.execute(query, (generation, *some)))
    return found


def _touched(
    connection: sqlite3.Connection, layout: Layout, keys: Sequence[bytes] | None
) -> dict[bytes, dict[int, PartRow]]:
    """Pushed rows by key and place of their part; keys: None for all."""
    places = {part.name: at for at, part in enumerate(layout.parts)}
    found: dict[bytes, dict[int, PartRow]] = {}
    rows: Iterable[tuple[bytes, str, bytes]]
    if keys is None:
        rows = connection.execute("SELECT key, part, body FROM pushed WHERE name = ?", (layout.table,)).fetchall()
    elif connection.execute("SELECT 1 FROM pushed WHERE name = ? LIMIT 1", (layout.table,)).fetchone() is None:
        rows = ()
    else:
        rows = []
        for start in range(0, len(keys), KEYS_PER_QUERY):
            some = keys[start : start + KEYS_PER_QUERY]
            marks = ",".join("?" * len(some))
            query = f"SELECT key, part, body FROM pushed WHERE name = ? AND key IN ({marks})"  # noqa: S608 - only marks
            rows += connection.execute(query, (layout.table, *some)).fetchall()
    for key, part, body in rows:
        found.setdefault(key, {})[places[part]] = _ROW.decode(body)
    return found
