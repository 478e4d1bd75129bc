"""The store in a file: processes that die, and files that cannot be used."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivetrain.adapters.sqlite_idempotency import BUSY_TIMEOUT_S, SqliteIdempotency
from drivetrain.ports.idempotency import ANSWERED, RUNNING, YOURS, Claim, Found, IdempotencyUnavailable, Keep
from support.tries import within

CHILD = """
import sys, time
from pathlib import Path
from drivetrain.adapters.sqlite_idempotency import SqliteIdempotency
from drivetrain.ports.idempotency import Claim, IdempotencyUnavailable, Keep
store = SqliteIdempotency(Path(sys.argv[1]), worker=sys.argv[2])
asks = Claim(b"answered", b"body"), Keep(b"answered", b"sealed"), Claim(b"runs", b"body")
while True:
    try:
        found = store.visit(asks)
        break
    except IdempotencyUnavailable:  # whoever opens at this moment may stand still for longer than a visit waits
        time.sleep(0.01)
print(" ".join(one.outcome for one in found), flush=True)
time.sleep(60)
"""
HOLDER = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="drivetrain-idempotency-"))
    made.chmod(0o755)
    yield made / "idempotency"
    os.chmod(made, 0o755)
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def store(folder: Path) -> Iterator[SqliteIdempotency]:
    made = SqliteIdempotency(folder)
    yield made
    made.close()


def child(script: str, *arguments: str) -> subprocess.Popen[str]:
    started = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline()
    return started


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def claim(store: SqliteIdempotency, id_: bytes) -> Found:
    return store.visit((Claim(id_, b"body"),))[0]


def test_a_killed_worker_leaves_its_answers_and_no_key_held(folder: Path, store: SqliteIdempotency) -> None:
    other = child(CHILD, str(folder), "other")
    assert claim(store, b"runs") == Found(RUNNING)
    os.kill(other.pid, signal.SIGSTOP)
    assert claim(store, b"runs") == Found(RUNNING), "one that is stopped is not dead"
    end(other)
    assert claim(store, b"answered") == Found(ANSWERED, b"sealed")
    assert claim(store, b"runs") == Found(YOURS)


def test_workers_that_start_at_once_find_one_store(folder: Path, store: SqliteIdempotency) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, str(folder), f"w{number}"], stdout=subprocess.PIPE, text=True)
        for number in range(4)
    ]
    try:
        said = [one.stdout.readline().split() for one in children if one.stdout is not None]
        assert sorted(one[-1] for one in said) == [RUNNING, RUNNING, RUNNING, YOURS]
        assert claim(store, b"runs") == Found(RUNNING)
    finally:
        for one in children:
            end(one)


def test_locks_of_dead_workers_are_cleared_away(folder: Path) -> None:
    for number in range(3):
        end(child(CHILD, str(folder), f"w{number}"))
    assert len(list((folder / "workers").iterdir())) == 1
    last = SqliteIdempotency(folder, worker="last")
    claim(last, b"key")
    assert [path.name for path in (folder / "workers").iterdir()] == ["last.lock"]
    last.close()
    assert not list((folder / "workers").iterdir())


def test_a_file_that_somebody_holds_is_given_up_in_time_and_used_again(folder: Path, store: SqliteIdempotency) -> None:
    claim(store, b"mine")
    holder = child(HOLDER, str(folder / "keys.db"))
    os.kill(holder.pid, signal.SIGSTOP)

    def given_up() -> None:
        with pytest.raises(IdempotencyUnavailable, match=r"keys\.db.*locked"):
            claim(store, b"key")

    within(2 * BUSY_TIMEOUT_S + 0.1, given_up)
    end(holder)
    assert claim(store, b"key") == Found(YOURS)
    other = SqliteIdempotency(folder)
    assert claim(other, b"mine") == Found(RUNNING), "the failure did not cost the worker what it held"
    other.close()


def test_a_corrupt_file_is_refused_until_it_is_put_right(folder: Path, store: SqliteIdempotency) -> None:
    store.visit((Claim(b"kept", b"body"), Keep(b"kept", b"sealed")))
    store.close()
    whole = (folder / "keys.db").read_bytes()
    (folder / "keys.db").write_bytes(b"no database" * 1000)
    for _ in range(2):
        with pytest.raises(IdempotencyUnavailable, match="not a database"):
            claim(store, b"kept")
    (folder / "keys.db").write_bytes(whole)
    assert claim(store, b"kept") == Found(ANSWERED, b"sealed")


def test_nothing_is_written_to_a_file_that_was_replaced(folder: Path, store: SqliteIdempotency) -> None:
    other = SqliteIdempotency(folder)
    assert claim(store, b"before") == Found(YOURS)
    shutil.rmtree(folder)
    assert claim(store, b"key") == Found(YOURS)
    assert claim(other, b"key") == Found(RUNNING), "both use what stands there now"
    other.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may read and not write")
def test_a_file_that_may_only_be_read_is_refused(folder: Path, store: SqliteIdempotency) -> None:
    claim(store, b"before")
    for path in (folder, folder / "workers", *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o444)
    reader = SqliteIdempotency(folder)
    os.seteuid(65534)
    try:
        with pytest.raises(IdempotencyUnavailable, match=r"readonly|denied"):
            claim(reader, b"key")
    finally:
        os.seteuid(0)
    assert claim(store, b"before") == Found(RUNNING)


def test_a_folder_that_cannot_be_made_is_refused_and_used_when_it_can(folder: Path, store: SqliteIdempotency) -> None:
    folder.write_text("a file stands here")
    with pytest.raises(IdempotencyUnavailable, match=r"keys\.db"):
        claim(store, b"key")
    folder.unlink()
    assert claim(store, b"key") == Found(YOURS)


def test_a_schema_of_another_version_is_refused(folder: Path, store: SqliteIdempotency) -> None:
    claim(store, b"key")
    store.close()
    with sqlite3.connect(folder / "keys.db") as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(IdempotencyUnavailable, match="version 2"):
        claim(store, b"key")


def test_only_its_owner_may_read_it(folder: Path, store: SqliteIdempotency) -> None:
    claim(store, b"key")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
    assert {mode for name, mode in modes.items() if name not in ("idempotency", "workers")} == {0o600}, modes
    assert modes["workers"] == 0o700
