"""The control log: ordered over processes, and no change goes unseen."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from drivetrain.adapters.sqlite import SqliteControlLog
from drivetrain.core.errors import DrivetrainError

pytestmark = pytest.mark.slow

FIELDS = ("seq", "at_ns", "kind", "actor", "subject", "body", "prev_hash", "hash")


def log_in(folder: Path) -> SqliteControlLog:
    return SqliteControlLog(folder / "data" / "control.db", folder / "keys", now_ns=lambda: 1_767_225_600_000_000_000)


def filled(folder: Path, count: int = 4) -> SqliteControlLog:
    log = log_in(folder)
    for number in range(count):
        log.append(kind="promote", actor="ann", subject="triage", body={"to": "prod", "n": number})
    return log


def run(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / "data" / "control.db")) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def test_records_come_back_in_order_and_the_log_is_whole(tmp_path: Path) -> None:
    log = filled(tmp_path)
    assert [record.seq for record in log.records()] == [1, 2, 3, 4]
    assert [record.seq for record in log.records(after_seq=2)] == [3, 4]
    assert next(log.records()).body == '{"n":0,"to":"prod"}'
    found = log_in(tmp_path).verify()
    assert found.whole, found.findings
    assert found.records == 4
    assert log_in(tmp_path / "empty").verify().whole


def test_every_edit_of_a_character_is_found(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    record = next(log_in(tmp_path).records())
    for field in FIELDS:
        before = getattr(record, field)
        edits: list[object] = (
            [before + 7, before - 7, -before]
            if isinstance(before, int)
            else [before[:i] + ("x" if before[i] != "x" else "y") + before[i + 1 :] for i in range(len(before))]
        )
        for edit in (*edits, *([] if isinstance(before, int) else [before + " ", ""])):
            with closing(sqlite3.connect(tmp_path / "data" / "control.db", isolation_level=None)) as connection:
                connection.execute(f"UPDATE control SET {field} = ? WHERE seq = ?", (edit, record.seq))
                assert not log_in(tmp_path).verify().whole, (field, edit)
                place = edit if field == "seq" else record.seq
                connection.execute(f"UPDATE control SET {field} = ? WHERE seq = ?", (before, place))
    assert log_in(tmp_path).verify().whole


@pytest.mark.parametrize(
    "statements",
    [
        ["DELETE FROM control WHERE seq = 2"],
        ["DELETE FROM control WHERE seq = 4"],
        ["DELETE FROM control WHERE seq > 1"],
        ["DELETE FROM control"],
        ["DELETE FROM control WHERE seq = 1"],
        ["UPDATE control SET seq = 99 WHERE seq = 2", "UPDATE control SET seq = 2 WHERE seq = 3",
         "UPDATE control SET seq = 3 WHERE seq = 99"],
        ["DELETE FROM control WHERE seq = 2", "UPDATE control SET seq = seq - 1 WHERE seq > 2"],
        ["INSERT INTO control SELECT 5, at_ns, kind, actor, subject, body, hash, hash FROM control WHERE seq = 4"],
        ["DROP TABLE control"],
    ],
)  # fmt: skip
def test_gaps_reordering_and_truncation_are_found_and_appends_refused(tmp_path: Path, statements: list[str]) -> None:
    filled(tmp_path)
    run(tmp_path, *statements)
    assert not log_in(tmp_path).verify().whole
    if "seq = 4" in statements[0] and statements[0].startswith("DELETE"):
        with pytest.raises(DrivetrainError, match="changed from outside"):
            log_in(tmp_path).append(kind="k", actor="a", subject="s", body={})


def test_a_chain_that_was_computed_anew_is_found(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "data" / "control.db").unlink()
    for leftover in (tmp_path / "data").glob("control.db-*"):
        leftover.unlink()
    forged = log_in(tmp_path / "elsewhere")
    for number in range(5):
        forged.append(kind="promote", actor="eve", subject="triage", body={"n": number})
    (tmp_path / "elsewhere" / "data" / "control.db").rename(tmp_path / "data" / "control.db")
    findings = log_in(tmp_path).verify().findings
    assert any("computed anew" in one for one in findings), findings


def test_a_crash_between_commit_and_anchor_is_no_finding(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    anchor = (tmp_path / "keys" / "control.anchor").read_bytes()
    filled(tmp_path, 1)
    (tmp_path / "keys" / "control.anchor").write_bytes(anchor)
    assert log_in(tmp_path).verify().whole
    filled(tmp_path, 1)
    found = log_in(tmp_path).verify()
    assert found.whole
    assert found.records == 5


def test_every_altered_byte_of_the_anchor_is_found(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    path = tmp_path / "keys" / "control.anchor"
    whole = path.read_bytes()
    for place in range(len(whole)):
        altered = bytearray(whole)
        altered[place] ^= 1
        path.write_bytes(altered)
        assert not log_in(tmp_path).verify().whole, place
    path.unlink()
    assert not log_in(tmp_path).verify().whole


def test_no_altered_byte_of_the_file_changes_what_is_read_unseen(tmp_path: Path) -> None:
    log = filled(tmp_path, 2)
    run(tmp_path)
    path = tmp_path / "data" / "control.db"
    whole = path.read_bytes()
    before = list(log.records())
    used = [place for place in range(len(whole)) if whole[place]]
    seen = 0
    for place in (*used[::5], *range(0, len(whole), 997)):
        for leftover in path.parent.glob("control.db-*"):
            leftover.unlink()
        altered = bytearray(whole)
        altered[place] ^= 1 << place % 8
        path.write_bytes(altered)
        try:
            log = log_in(tmp_path)
            found = log.verify()
            if found.whole:
                assert list(log.records()) == before, place
            else:
                seen += 1
        except DrivetrainError:
            seen += 1
    assert seen > 50


APPEND = """
import sys
from pathlib import Path
from drivetrain.adapters.sqlite import SqliteControlLog
folder = Path(sys.argv[1])
log = SqliteControlLog(folder / "data" / "control.db", folder / "keys")
for number in range(int(sys.argv[3])):
    log.append(kind="k", actor=sys.argv[2], subject="s", body={"n": number})
"""


def _append_from_four(folder: Path, count: int) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", APPEND, str(folder), f"p{index}", str(count)], env=os.environ)
        for index in range(4)
    ]
    assert [process.wait() for process in running] == [0] * 4
    log = log_in(folder)
    assert log.verify().whole, log.verify().findings
    records = list(log.records())
    assert [record.seq for record in records] == list(range(1, 4 * count + 1))
    for index in range(4):
        own = [record.body for record in records if record.actor == f"p{index}"]
        assert own == [f'{{"n":{number}}}' for number in range(count)]


def test_four_processes_append_one_chain(tmp_path: Path) -> None:
    _append_from_four(tmp_path, 10)


def test_four_processes_append_one_long_chain(tmp_path: Path) -> None:
    _append_from_four(tmp_path, 150)
