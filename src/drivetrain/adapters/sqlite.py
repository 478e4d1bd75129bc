"""The control log in SQLite: one table, one chain, and an anchor outside of it.

Owns `control.db` and `control.anchor`. Wired by the commands and the control plane; several processes may append.

Each record's hash covers its fields and the hash before it, so an edit, a gap or another order breaks the chain. The
anchor, kept with the keys, is the head's (seq, hash) under a MAC whose key never leaves the keys folder: it finds a
chain that was computed anew and a tail that was cut. It is written after the commit, so after a crash it may name an
older record: that is fine while the record is on the chain. A head older than the anchor means truncation.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.adapters.files import key_file, keyed_mac
from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.control import CONTROL_FILE, ControlRecord, Verification
from drivetrain.ports.disk import write_whole

GENESIS = "0" * 64
BUSY_TIMEOUT_S = 10.0
"""How long an append waits for others; each holds the log for a few milliseconds."""
BODY_BYTES_MAX = 1024 * 1024
"""A change is described, not carried: what is larger belongs into a file that the body names by hash."""
FINDINGS_MAX = 100
"""Told in one verification; a log that was broken once says so, it need not say it a million times."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS control (
    seq INTEGER PRIMARY KEY,
    at_ns INTEGER NOT NULL,
    kind TEXT NOT NULL,
    actor TEXT NOT NULL,
    subject TEXT NOT NULL,
    body TEXT NOT NULL,
    prev_hash TEXT NOT NULL,
    hash TEXT NOT NULL
) STRICT
"""
COLUMNS = "seq, at_ns, kind, actor, subject, body, prev_hash, hash"


class _Anchor(msgspec.Struct, frozen=True):
    """What stands outside the database."""

    seq: int
    hash: str
    mac: str


class SqliteControlLog:
    """ControlLog in one SQLite file.

    path: the database. keys_folder: holds `control.key` and `control.anchor`; both are made on first use.
    Raises (everywhere): DrivetrainError where the file is damaged.
    """

    def __init__(self, path: Path, keys_folder: Path, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._path = path
        self._anchor_path = keys_folder / "control.anchor"
        self._lock_path = keys_folder / "control.lock"
        self._now_ns = now_ns
        key_path = keys_folder / "control.key"
        keys_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            began = key_path.exists()
            is_gone = not path.exists() and not self._anchor_path.exists()
            if began and is_gone:
                raise DrivetrainError(
                    f"The control log is gone: its key is there, and neither {path.name} nor its anchor is. To begin "
                    "another would hide what was done.",
                    looked=[str(path), str(self._anchor_path), str(key_path)],
                    do="Restore both from your backup. Where there never was a log, since its first start was killed, "
                    f"remove {key_path}.",
                )
            self._key = key_file(key_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            if is_gone:
                # Before the first record, so that a missing anchor is a finding from the first record on.
                self._write_anchor(0, GENESIS)
            with self._opened() as connection:
                connection.execute(SCHEMA)

    def append(self, *, kind: str, actor: str, subject: str, body: Mapping[str, Any]) -> ControlRecord:
        """The record, once it is on disk and anchored.

        body: anything JSON can hold, up to `BODY_BYTES_MAX`. Raises: DrivetrainError where it is larger, or where the
        log was cut or changed: to go on would hide that.
        """
        record = self._append(kind, actor, subject, body, None)
        assert record is not None
        return record

    def append_after(
        self, seq: int, *, kind: str, actor: str, subject: str, body: Mapping[str, Any]
    ) -> ControlRecord | None:
        """As `append`, where `seq` is the last record's number still; None, and nothing appended, where it is not."""
        return self._append(kind, actor, subject, body, seq)

    def records(self, after_seq: int = 0) -> Iterator[ControlRecord]:
        """Every record after `after_seq`, in order, unchecked."""
        with self._opened() as connection:
            query = f"SELECT {COLUMNS} FROM control WHERE seq > ? ORDER BY seq"  # noqa: S608 - our own names
            for row in connection.execute(query, (after_seq,)):
                yield ControlRecord(**dict(zip(ControlRecord.__struct_fields__, row, strict=True)))

    def verify(self) -> Verification:
        """A check of every record and of the anchor; findings name the first record where something is wrong."""
        findings: list[str] = []
        with self._locked():
            anchor = self._read_anchor(findings)
            head, count, at_anchor = GENESIS, 0, GENESIS
            try:
                for count, record in enumerate(self.records(), start=1):
                    _check(record, count, head, findings)
                    head = record.hash
                    if anchor is not None and record.seq == anchor.seq:
                        at_anchor = record.hash
                    if len(findings) >= FINDINGS_MAX:
                        break
                with self._opened() as connection:
                    for (word,) in connection.execute("PRAGMA integrity_check(3)"):
                        if word != "ok":
                            findings.append(f"The database is damaged: {word}.")
            except (DrivetrainError, msgspec.MsgspecError) as error:
                findings.append(f"Record {count + 1} and what follows cannot be read. {error}")
        if anchor is not None and count < anchor.seq:
            findings.append(f"The log ends at record {count}, and record {anchor.seq} was written: its tail was cut.")
        elif anchor is not None and at_anchor != anchor.hash:
            findings.append(f"Record {anchor.seq} is not the one that was written: the chain was computed anew.")
        return Verification(records=count, head=head, findings=tuple(findings[:FINDINGS_MAX]))

    def _append(
        self, kind: str, actor: str, subject: str, body: Mapping[str, Any], after: int | None
    ) -> ControlRecord | None:
        text = canonical(body)
        if len(text) > BODY_BYTES_MAX:
            raise DrivetrainError(
                f"A change of {subject} is described in {len(text)} characters; at most {BODY_BYTES_MAX} are kept.",
                do="Put it into a file, and name the file and its hash.",
            )
        with self._locked(), self._opened() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                record = self._next(connection, kind, actor, subject, text)
                if after is not None and record.seq != after + 1:
                    connection.execute("ROLLBACK")
                    return None
                connection.execute(f"INSERT INTO control ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", _row(record))  # noqa: S608 - our own names
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            self._write_anchor(record.seq, record.hash)
        return record

    def _next(self, connection: sqlite3.Connection, kind: str, actor: str, subject: str, body: str) -> ControlRecord:
        last = connection.execute("SELECT seq, hash FROM control ORDER BY seq DESC LIMIT 1").fetchone() or (0, GENESIS)
        findings: list[str] = []
        anchor = self._read_anchor(findings)
        if anchor is not None and anchor.seq > 0:
            row = connection.execute("SELECT hash FROM control WHERE seq = ?", (anchor.seq,)).fetchone()
            if row is None or row[0] != anchor.hash:
                findings.append(f"Record {anchor.seq} is missing or is not the one that was written.")
        if findings:
            raise DrivetrainError(
                f"The control log was changed from outside, so nothing is added to it. {' '.join(findings)}",
                looked=[str(self._path), str(self._anchor_path)],
                do="Run `drivetrain audit verify`, and restore both files from your backup.",
            )
        record = ControlRecord(
            seq=last[0] + 1,
            at_ns=self._now_ns(),
            kind=kind,
            actor=actor,
            subject=subject,
            body=body,
            prev_hash=last[1],
            hash="",
        )
        return msgspec.structs.replace(record, hash=record_hash(record))

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The database. Raises: DrivetrainError for whatever SQLite says of a damaged or missing file."""
        try:
            with closing(sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                yield connection
        except (sqlite3.Error, UnicodeDecodeError) as error:
            # A flipped byte in its catalogue makes SQLite quote text that is no UTF-8.
            raise DrivetrainError(
                f"The control log in {self._path} cannot be used: {error}.",
                do="See whether its disk is full. `drivetrain audit verify` tells damage: restore that from a backup.",
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time from the commit to its anchor, so that anchors never go backwards."""
        fd = os.open(self._lock_path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _write_anchor(self, seq: int, head: str) -> None:
        anchor = _Anchor(seq, head, self._mac(seq, head))
        write_whole(self._anchor_path, msgspec.json.encode(anchor))

    def _read_anchor(self, findings: list[str]) -> _Anchor | None:
        try:
            raw = self._anchor_path.read_bytes()
        except FileNotFoundError:
            findings.append(f"{self._anchor_path} is missing: whether the tail was cut cannot be told.")
            return None
        try:
            anchor = msgspec.json.decode(raw, type=_Anchor)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            anchor = None
        # Byte for byte, so that no other spelling of the same anchor passes.
        if anchor is None or anchor.mac != self._mac(anchor.seq, anchor.hash) or msgspec.json.encode(anchor) != raw:
            findings.append(f"{self._anchor_path} was changed: its MAC does not fit.")
            return None
        return anchor

    def _mac(self, seq: int, head: str) -> str:
        return keyed_mac(self._key, f"control\0{seq}\0{head}".encode()).hex()


def open_control_log(
    data_folder: Path, keys_folder: Path, *, now_ns: Callable[[], int] = time.time_ns
) -> SqliteControlLog:
    """A project's control log, made where there is none yet. Raises: DrivetrainError where it is gone."""
    return SqliteControlLog(data_folder / CONTROL_FILE, keys_folder, now_ns=now_ns)


def canonical(body: Mapping[str, Any]) -> str:
    """JSON with sorted keys and no white space: the same text for the same body."""
    return msgspec.json.encode(body, order="deterministic").decode()


def record_hash(record: ControlRecord) -> str:
    """SHA-256 over every field but the hash, as a JSON array."""
    fields = [getattr(record, name) for name in ControlRecord.__struct_fields__[:-1]]
    return hashlib.sha256(msgspec.json.encode(fields)).hexdigest()


def _row(record: ControlRecord) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in ControlRecord.__struct_fields__)


def _check(record: ControlRecord, expected_seq: int, expected_prev: str, findings: list[str]) -> None:
    if record.seq != expected_seq:
        findings.append(f"Record {expected_seq} is missing: record {record.seq} stands in its place.")
    if record.prev_hash != expected_prev:
        findings.append(f"Record {record.seq} does not follow the one before it.")
    if record.hash != record_hash(record):
        findings.append(f"Record {record.seq} was edited.")
