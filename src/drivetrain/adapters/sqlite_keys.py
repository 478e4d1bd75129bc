"""Issued keys in SQLite: one row per secret, none of which holds the secret.

Owns `keys.db` (WAL) in the data folder, `issued.key` and `issued.lock` in the keys folder. The commands change it,
every gateway worker reads it. It does not know what a key may do; that is for the gateway.

A row holds a digest of its key under a key derived from `issued.key`, and a MAC over all its fields under another: who
has the database alone can neither test guesses nor widen, revive or add a key. (An older copy of the whole database is
not recognised: after restoring one, compare `drivetrain keys list` with `drivetrain audit log`.)

The two stores. A change must stand in the control log too, and the process may die between the two:
    what lets a key in (issue, rotate)  1 note it in `pending`  2 append to the log  3 put the rows and drop the note
    what ends one (revoke)              1 put the rows and note it in `pending`  2 append to the log  3 drop the note
So a key that is accepted is always logged. Whoever changes the store next finds the note. Of the first sort nothing
took effect, and since the log may say otherwise it is told that the change was abandoned (nobody ever saw its key). Of
the second sort the log is told now. A record may so stand twice in the log, with the same `change`. One `flock` covers
all three steps, so a note that is found is a dead process's.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.adapters.files import key_file, keyed_mac
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.keys import IssuedKey, is_well_formed, key_digest
from drivetrain.core.times import iso
from drivetrain.ports.control import ControlLog
from drivetrain.ports.keys import IssuedKeys, KeyTerms

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 10.0
"""How long a command waits for others; each holds the store for a few milliseconds."""
READ_TIMEOUT_S = 1.0
"""How long a worker waits; it looks again soon."""
KEYS_MAX = 20_000
"""Secrets ever issued in one project, so that a worker's memory and its reading stay bounded: about 10 MB, 0.4 s."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS issued_keys (
    name TEXT NOT NULL,
    generation INTEGER NOT NULL,
    digest BLOB NOT NULL UNIQUE,
    last4 TEXT NOT NULL,
    tenant TEXT NOT NULL,
    team TEXT NOT NULL,
    use_case TEXT NOT NULL,
    workflows TEXT,
    may_override TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_ns INTEGER,
    revoked_ns INTEGER,
    replaced_by INTEGER,
    mac BLOB NOT NULL,
    PRIMARY KEY (name, generation)
) STRICT;
CREATE TABLE IF NOT EXISTS pending (
    change TEXT PRIMARY KEY,
    effective INTEGER NOT NULL,
    actor TEXT NOT NULL,
    subject TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
"""
FIELDS = IssuedKey.__struct_fields__
COLUMNS = (
    "name", "generation", "digest", "last4", "tenant", "team", "use_case", "workflows", "may_override",
    "created_ns", "created_by", "expires_ns", "revoked_ns", "replaced_by",
)  # fmt: skip
SELECT = f"SELECT {', '.join(COLUMNS)}, mac FROM issued_keys"  # noqa: S608 - our own names
assert FIELDS == COLUMNS


class SqliteKeyStore:
    """KeyStore in one SQLite file; made with its first key.

    path: the database. keys_folder: holds `issued.key`. log: where every change is written, opened when it is.
    Raises (everywhere): DrivetrainError where the file is damaged, or does not belong to `issued.key`.
    """

    def __init__(
        self,
        path: Path,
        keys_folder: Path,
        log: Callable[[], ControlLog],
        *,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._path = path
        self._keys_folder = keys_folder
        self._log = log
        self._now_ns = now_ns

    def issue(self, terms: KeyTerms, key: str, actor: str) -> IssuedKey:
        """The key as kept, its first generation. Raises: DrivetrainError where the name was ever used."""
        with self._changing() as opened:
            if opened.knows(terms.name):
                raise DrivetrainError(
                    f"A key `{terms.name}` was issued before; names are not used again, so that records stay clear.",
                    looked=[str(self._path)],
                    do=f"Run `drivetrain keys rotate {terms.name}` for a new secret, or choose another name.",
                )
            if opened.count() >= KEYS_MAX:
                raise DrivetrainError(
                    f"{KEYS_MAX} keys were issued here; a project may have no more.", looked=[str(self._path)]
                )
            made = opened.made(terms, key, generation=1, now_ns=self._now_ns(), actor=actor)
            body = {
                "action": "issue",
                "generation": 1,
                "last4": made.last4,
                "tenant": made.tenant,
                "team": made.team,
                "use_case": made.use_case,
                "workflows": made.workflows,
                "may_override": made.may_override,
                "expires": _iso(made.expires_ns),
            }
            self._let_in(opened, _change(actor, made.name, body), [made])
        return made

    def rotate(self, name: str, key: str, actor: str, *, overlap_ns: int, expires_ns: int | None) -> IssuedKey:
        """The next generation, with the terms of the last; those before it end after `overlap_ns`, if not sooner."""
        self._need(name)
        with self._changing() as opened:
            before = self._generations(opened, name)
            newest, now_ns = before[-1], self._now_ns()
            if newest.revoked_ns is not None:
                raise DrivetrainError(
                    f"The key `{name}` was revoked on {iso(newest.revoked_ns)}; it cannot come back.",
                    looked=[str(self._path)],
                    do="Issue one with another name.",
                )
            if opened.count() >= KEYS_MAX:
                raise DrivetrainError(
                    f"{KEYS_MAX} keys were issued here; a project may have no more.", looked=[str(self._path)]
                )
            terms = KeyTerms(
                name=name, tenant=newest.tenant, team=newest.team, use_case=newest.use_case,
                workflows=newest.workflows, may_override=newest.may_override, expires_ns=expires_ns,
            )  # fmt: skip
            made = opened.made(terms, key, generation=newest.generation + 1, now_ns=now_ns, actor=actor)
            ending = [_replaced(one, made.generation, now_ns + overlap_ns) for one in before if one.usable(now_ns)]
            body = {
                "action": "rotate",
                "generation": made.generation,
                "last4": made.last4,
                "expires": _iso(made.expires_ns),
                "ending": {str(one.generation): _iso(one.expires_ns) for one in ending},
            }
            self._let_in(opened, _change(actor, name, body), [made, *ending])
        return made

    def revoke(self, name: str, actor: str) -> tuple[IssuedKey, ...]:
        """The generations that this ended; none where all had been revoked. A broken log does not keep it from that."""
        self._need(name)
        with self._changing(settle=False) as opened:
            now_ns = self._now_ns()
            ended = [
                msgspec.structs.replace(one, revoked_ns=now_ns)
                for one in self._generations(opened, name)
                if one.revoked_ns is None
            ]
            if ended:
                change = _change(actor, name, {"action": "revoke", "generations": [one.generation for one in ended]})
                with opened.transaction():
                    opened.put(ended)
                    opened.note(change, effective=True)
            try:
                self._settle(opened)
            except DrivetrainError as error:
                raise DrivetrainError(
                    f"The key `{name}` is revoked, but the control log could not be told. {error}",
                    do="Mend the control log; the next change of a key writes the record.",
                ) from error
        return tuple(ended)

    # The two stores.

    def _let_in(self, opened: _Opened, change: _Change, keys: Iterable[IssuedKey]) -> None:
        opened.note(change, effective=False)
        self._tell(change, change.body)
        with opened.transaction():
            opened.put(keys)
            opened.drop_note(change)

    def _settle(self, opened: _Opened) -> None:
        """Tell the log what it was not told yet."""
        for change, effective in opened.notes():
            abandoned = {"action": "abandoned", "what": change.body["action"], "change": change.id}
            self._tell(change, change.body if effective else abandoned)
            opened.drop_note(change)

    def _tell(self, change: _Change, body: Mapping[str, Any]) -> None:
        self._log().append(kind="key", actor=change.actor, subject=change.subject, body=body)

    def _need(self, name: str) -> None:
        if not self._path.exists() and not (self._keys_folder / "issued.key").exists():
            raise DrivetrainError(
                f"No key `{name}` was issued; none was.",
                looked=[str(self._path)],
                do="Run `drivetrain keys issue NAME`.",
            )

    def _generations(self, opened: _Opened, name: str) -> list[IssuedKey]:
        found, problems = opened.generations(name)
        if problems:
            raise DrivetrainError(
                " ".join(problems), looked=[str(self._path)], do="It is accepted nowhere. Restore it from your backup."
            )
        if not found:
            raise DrivetrainError(
                f"No key `{name}` was issued.", looked=[str(self._path)], do=did_you_mean(name, opened.names())
            )
        return found

    @contextmanager
    def _changing(self, *, settle: bool = True) -> Iterator[_Opened]:
        """The store, with nobody else changing it. settle: and nothing left open by a process that died."""
        self._keys_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._keys_folder / "issued.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            key_path = self._keys_folder / "issued.key"
            if key_path.exists() and not self._path.exists():
                raise _lost(self._path, key_path)
            with _connected(self._path, "rwc", BUSY_TIMEOUT_S) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                if _schema_version(connection, self._path) == 0:
                    with _transaction(connection):
                        for statement in SCHEMA.split(";"):
                            connection.execute(statement)
                        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                if not key_path.exists() and connection.execute("SELECT 1 FROM issued_keys").fetchone():
                    raise _lost(key_path, self._path)
                # Behind the database: `issued.key` without one means that it was lost.
                opened = _Opened(connection, _Derived(key_file(key_path)))
                if settle:
                    self._settle(opened)
                yield opened
        finally:
            os.close(lock)


class SqliteKeySource:
    """KeySource on a SqliteKeyStore's files, which it never changes. One thread may ask `changed`, any `read`."""

    def __init__(self, path: Path, keys_folder: Path) -> None:
        self._path = path
        self._keys_folder = keys_folder
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._version = -1

    def changed(self) -> bool:
        """Whether anything was committed since this was asked before, or the file is another; True at first.

        Costs about 10 us: a stat, and a look at SQLite's shared memory. Raises: DrivetrainError.
        """
        file = _file_id(self._path)
        if file is None:
            vanished = self._file is not None
            self.close()
            return vanished
        if file != self._file or self._connection is None:
            self.close()
        try:
            if self._connection is None:
                self._connection = sqlite3.connect(
                    f"file:{_quoted(self._path)}?mode=ro", uri=True, timeout=0, isolation_level=None
                )
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error as error:
            self.close()
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:  # being made or recovered: no error
                return True
            raise _damaged(self._path, error) from error
        before = (self._file, self._version)
        self._file, self._version = file, version
        return before != (file, version)

    def read(self) -> IssuedKeys:
        """All keys, by name and generation; on a connection of its own."""
        return _read(self._path, self._keys_folder, READ_TIMEOUT_S)

    def close(self) -> None:
        """Let the file go."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._file, self._version = None, None, -1


class _Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change as the control log is to know it."""

    id: str
    actor: str
    subject: str
    body: dict[str, Any]


class _Derived:
    """What `issued.key` is used for, each under a key of its own."""

    __slots__ = ("_mac_key", "pepper")

    def __init__(self, master: bytes) -> None:
        self.pepper = hashlib.blake2b(b"issued key digest", key=master, digest_size=32).digest()
        self._mac_key = hashlib.blake2b(b"issued key row", key=master, digest_size=32).digest()

    def mac(self, row: tuple[Any, ...]) -> bytes:
        return keyed_mac(self._mac_key, msgspec.json.encode(row))


class _Opened:
    """The store while one process changes it."""

    def __init__(self, connection: sqlite3.Connection, derived: _Derived) -> None:
        self._connection = connection
        self._derived = derived

    def knows(self, name: str) -> bool:
        query = "SELECT 1 FROM issued_keys WHERE name = ?"
        return self._connection.execute(query, (name,)).fetchone() is not None

    def count(self) -> int:
        (count,) = self._connection.execute("SELECT count(*) FROM issued_keys").fetchone()
        return int(count)

    def names(self) -> set[str]:
        return {name for (name,) in self._connection.execute("SELECT DISTINCT name FROM issued_keys")}

    def generations(self, name: str) -> tuple[list[IssuedKey], list[str]]:
        """Those that are whole, and what is wrong with the others."""
        rows = self._connection.execute(f"{SELECT} WHERE name = ? ORDER BY generation", (name,))
        return _checked(rows, self._derived)

    def made(self, terms: KeyTerms, key: str, *, generation: int, now_ns: int, actor: str) -> IssuedKey:
        assert is_well_formed(key.encode())
        return IssuedKey(
            **msgspec.structs.asdict(terms), generation=generation, last4=key[-4:], created_ns=now_ns, created_by=actor,
            digest=key_digest(self._derived.pepper, key.encode()),
        )  # fmt: skip

    def put(self, keys: Iterable[IssuedKey]) -> None:
        marks = ", ".join("?" * (len(COLUMNS) + 1))
        for key in keys:
            row = _row(key)
            self._connection.execute(
                f"INSERT OR REPLACE INTO issued_keys ({', '.join(COLUMNS)}, mac) VALUES ({marks})",  # noqa: S608
                (*row, self._derived.mac(row)),
            )

    def note(self, change: _Change, *, effective: bool) -> None:
        row = (change.id, int(effective), change.actor, change.subject, msgspec.json.encode(change.body).decode())
        self._connection.execute("INSERT INTO pending VALUES (?, ?, ?, ?, ?)", row)

    def notes(self) -> list[tuple[_Change, bool]]:
        """What was begun and not ended, and whether it took effect; oldest first."""
        rows = self._connection.execute("SELECT * FROM pending ORDER BY rowid").fetchall()
        return [
            (_Change(id=change, actor=actor, subject=subject, body=msgspec.json.decode(body)), bool(effective))
            for change, effective, actor, subject, body in rows
        ]

    def drop_note(self, change: _Change) -> None:
        self._connection.execute("DELETE FROM pending WHERE change = ?", (change.id,))

    def transaction(self) -> AbstractContextManager[None]:
        return _transaction(self._connection)


def _read(path: Path, keys_folder: Path, timeout_s: float) -> IssuedKeys:
    key_path = keys_folder / "issued.key"
    if not path.exists():
        if key_path.exists():
            raise _lost(path, key_path)
        return IssuedKeys()
    with _connected(path, "ro", timeout_s) as connection:
        if _schema_version(connection, path) == 0:
            return IssuedKeys()  # being made at this moment
        rows = connection.execute(f"{SELECT} ORDER BY name, generation").fetchall()
    if not rows:
        return IssuedKeys()
    if not key_path.exists():
        raise _lost(key_path, path)
    derived = _Derived(key_file(key_path))
    found, problems = _checked(rows, derived)
    if not found:
        raise DrivetrainError(
            f"None of the keys in {path} fits {key_path}.",
            do="They belong to different backups: restore both from the same one.",
        )
    return IssuedKeys(pepper=derived.pepper, keys=tuple(found), problems=tuple(problems))


def _checked(rows: Iterable[tuple[Any, ...]], derived: _Derived) -> tuple[list[IssuedKey], list[str]]:
    """The keys whose MAC fits, and what is wrong with the others."""
    found: list[IssuedKey] = []
    problems: list[str] = []
    for *fields, mac in rows:
        row = tuple(fields)
        if isinstance(mac, bytes) and hmac.compare_digest(mac, derived.mac(row)):
            found.append(_key(row))
        else:
            problems.append(f"The key `{row[0]}`, generation {row[1]}, was altered from outside.")
    return found, problems


def _change(actor: str, subject: str, body: dict[str, Any]) -> _Change:
    number = secrets.token_hex(8)
    return _Change(id=number, actor=actor, subject=subject, body={**body, "change": number})


def _replaced(key: IssuedKey, by: int, end_ns: int) -> IssuedKey:
    return msgspec.structs.replace(
        key,
        expires_ns=end_ns if key.expires_ns is None else min(key.expires_ns, end_ns),
        replaced_by=key.replaced_by or by,
    )


def _row(key: IssuedKey) -> tuple[Any, ...]:
    values = msgspec.structs.asdict(key)
    values["workflows"] = None if key.workflows is None else msgspec.json.encode(key.workflows).decode()
    values["may_override"] = msgspec.json.encode(key.may_override).decode()
    return tuple(values[name] for name in COLUMNS)


def _key(row: tuple[Any, ...]) -> IssuedKey:
    values: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
    workflows = values["workflows"]
    values["workflows"] = None if workflows is None else tuple(msgspec.json.decode(workflows, type=list[str]))
    values["may_override"] = tuple(msgspec.json.decode(values["may_override"], type=list[str]))
    return IssuedKey(**values)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextmanager
def _connected(path: Path, mode: str, timeout_s: float) -> Iterator[sqlite3.Connection]:
    uri = f"file:{_quoted(path)}?mode={mode}"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None)) as connection:
            yield connection
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def _schema_version(connection: sqlite3.Connection, path: Path) -> int:
    """0 where there is no schema yet. Raises: DrivetrainError where a newer Drivetrain made it."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise DrivetrainError(
            f"{path} has version {version} of its schema; this Drivetrain knows {SCHEMA_VERSION}.",
            do="Use the newer Drivetrain.",
        )
    return version


def _damaged(path: Path, error: Exception) -> DrivetrainError:
    return DrivetrainError(
        f"The issued keys in {path} cannot be used: {error}.",
        do="Where it was damaged, restore it from your backup.",
    )


def _lost(missing: Path, present: Path) -> DrivetrainError:
    return DrivetrainError(
        f"{missing} is missing, and {present} is there: the issued keys cannot be checked.",
        do=f"Restore it from your backup. To give up all issued keys, remove {present} too.",
    )


def _file_id(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _quoted(path: Path) -> str:
    """A path as SQLite's file URIs want it."""
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _iso(ns: int | None) -> str | None:
    return None if ns is None else iso(ns)
