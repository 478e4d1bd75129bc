"""What SQLite keeps of an answer, or of a name, beyond its row: free pages and logs hold nothing of it afterwards."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

from drivetrain.adapters.sqlite_counters import SqliteCounters
from drivetrain.adapters.sqlite_idempotency import SqliteIdempotency
from drivetrain.ports.counters import MONEY, Line, SyncRequest, Terms, Want
from drivetrain.ports.idempotency import Claim, IdempotencyUnavailable, Keep

SAID = b"what-she-was-told-"


def test_an_answer_is_in_no_page_and_no_log_though_workers_have_the_file_open(tmp_path: Path) -> None:
    worker = SqliteIdempotency(tmp_path, worker="a")
    for number in range(40):
        id_ = b"%d" % number
        worker.visit((Claim(id_, b"body"),))
        worker.visit((Keep(id_, SAID * 400 + id_),))
    with closing(sqlite3.connect(tmp_path / "keys.db", isolation_level=None)) as older:
        older.execute("PRAGMA secure_delete = OFF")  # some builds of SQLite have it on
        # As an earlier version left it: dropped from its row, and still in a free page.
        older.execute("UPDATE known SET answer = NULL WHERE id < x'32'")
    assert SAID in _everything(tmp_path)
    stop, refused = threading.Event(), []

    def visit() -> None:
        number = 1_000
        while not stop.is_set():
            number += 1
            try:
                worker.visit((Claim(b"%d" % number, b"body"),))
            except IdempotencyUnavailable as error:
                refused.append(error)

    busy = threading.Thread(target=visit)
    busy.start()
    store = SqliteIdempotency(tmp_path, worker="b")
    assert store.drop_answers() > 0
    stop.set()
    busy.join()
    assert SAID not in _everything(tmp_path)
    store.close()
    worker.close()


def test_a_name_is_in_no_page_and_no_log_of_the_counters(tmp_path: Path) -> None:
    store = SqliteCounters(tmp_path)
    store.join("worker", "segment-1")
    for number in range(300):
        terms = Terms(f"person/somebody-{number}@2026-03", MONEY, 100)
        store.sync(SyncRequest("worker", 0, wants=(Want(1, (Line(number + 1, terms, 10, 10, 10),)),)))
    with closing(sqlite3.connect(tmp_path / "counters.db", isolation_level=None)) as older:
        older.execute("PRAGMA secure_delete = OFF")
        for table, name in (("accounts", "id"), ("leases", "account")):
            older.execute(f"DELETE FROM {table} WHERE {name} = 'person/somebody-250@2026-03'")
    other = SqliteCounters(tmp_path)
    assert all(name in _everything(tmp_path) for name in (b"somebody-123", b"somebody-250"))
    assert other.rename({"person/somebody-123@2026-03": "person/erased@2026-03"}) == 1
    assert not any(name in _everything(tmp_path) for name in (b"somebody-123", b"somebody-250"))
    assert b"somebody-124" in _everything(tmp_path)
    store.close()
    other.close()


def _everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
