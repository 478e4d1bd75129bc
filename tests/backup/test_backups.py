"""What a backup's folder holds: whole generations or none, each content once, nothing that was changed unseen."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from backup_world import Said, answered, calls_of, content, data_of, may_mount, project, record, run

from drivetrain.adapters.files import FileVault
from drivetrain.adapters.sqlite import open_control_log
from drivetrain.backup.copying import back_up
from drivetrain.backup.generations import Generations
from drivetrain.cli.backup import stores_of
from drivetrain.core.errors import DrivetrainError
from drivetrain.lake.holding import deleting, held
from drivetrain.lake.plans import ledger_of
from support.tries import PATIENCE_S

pytestmark = pytest.mark.slow

BACK_UP = "import typer; from drivetrain.cli.backup import backup_command; typer.run(backup_command)"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = project(tmp_path / "project")
    record(made, 50, outcomes=5)
    run("lake", "roll", "--project", made)
    record(made, 20)
    log = open_control_log(data_of(made), made / ".drivetrain" / "keys")
    log.append(kind="apply", actor="ann", subject="s", body={})
    return made


def objects(folder: Path) -> set[str]:
    return {path.name for path in (folder / "objects").rglob("*") if path.is_file()}


def restored(backup: Path, to: Path, *more: str) -> Path:
    """A project that has only what came back."""
    run("restore", backup, "--without-keys", *more, "--project", project(to))
    return to


def test_a_second_backup_copies_only_what_is_new(root: Path, tmp_path: Path) -> None:
    first = answered("backup", tmp_path / "b", "--project", root)
    had = objects(tmp_path / "b")
    again = answered("backup", tmp_path / "b", "--project", root)
    assert (again["generation"], again["copied_bytes"], again["bytes"]) == (2, 0, first["bytes"])
    assert objects(tmp_path / "b") == had
    ids = record(root, 3)
    third = answered("backup", tmp_path / "b", "--project", root)
    assert 0 < third["copied_bytes"] < 2_000
    assert set(ids) <= set(calls_of(restored(tmp_path / "b", tmp_path / "third")))
    assert not set(ids) & set(calls_of(restored(tmp_path / "b", tmp_path / "second", "--generation", "2")))
    listed = [json.loads(line) for line in run("backup", tmp_path / "b", "--list", "--json").splitlines()]
    assert [one["generation"] for one in listed] == [1, 2, 3]


def test_a_file_of_the_same_time_and_size_is_looked_at(root: Path, tmp_path: Path) -> None:
    note = data_of(root) / "later-room" / "note.txt"
    note.parent.mkdir()
    note.write_text("one")
    moment = note.stat()
    run("backup", tmp_path / "b", "--project", root)
    note.write_text("two")
    os.utime(note, ns=(moment.st_atime_ns, moment.st_mtime_ns))
    run("backup", tmp_path / "b", "--project", root)
    for number, text in ((1, "one"), (2, "two")):
        new = restored(tmp_path / "b", tmp_path / f"new{number}", "--generation", str(number))
        assert (data_of(new) / "later-room" / "note.txt").read_text() == text


def test_a_database_in_use_is_copied_whole(root: Path, tmp_path: Path) -> None:
    path = data_of(root) / "later.db"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE t (x INTEGER)")
        database.execute("INSERT INTO t VALUES (1)")
        database.commit()
        database.execute("INSERT INTO t VALUES (2)")  # not committed: in nobody's sight
        run("backup", tmp_path / "b", "--project", root)
        database.rollback()
    database.close()
    new = restored(tmp_path / "b", tmp_path / "new")
    assert sorted(one.name for one in data_of(new).glob("later.db*")) == ["later.db"]
    with sqlite3.connect(data_of(new) / "later.db") as copy:
        assert copy.execute("SELECT x FROM t").fetchall() == [(1,)]
    copy.close()


def test_a_damaged_database_is_told_and_no_generation_is_made(root: Path, tmp_path: Path) -> None:
    run("backup", tmp_path / "b", "--project", root)
    path = data_of(root) / "control.db"
    raw = bytearray(path.read_bytes())
    raw[100:400] = b"\xff" * 300
    path.write_bytes(raw)
    for left in data_of(root).glob("control.db-*"):
        left.unlink()
    with pytest.raises(Said, match=r"control\.db cannot be read"):
        run("backup", tmp_path / "b", "--project", root)
    assert Generations(tmp_path / "b").numbers() == [1]


def test_the_copied_lake_needs_no_history(root: Path, tmp_path: Path) -> None:
    for _ in range(3):
        record(root, 5)
        run("lake", "roll", "--project", root)
    from drivetrain.embedded.upkeep import Upkeep

    tables = Upkeep(root).tables
    assert tables.compact("calls") > 0
    before = calls_of(root)
    waste = len(list((data_of(root) / "lake" / "tables" / "calls").rglob("*.parquet")))
    run("backup", tmp_path / "b", "--project", root)
    record(root, 5)
    run("lake", "roll", "--project", root)
    new = restored(tmp_path / "b", tmp_path / "new")
    kept = list((data_of(new) / "lake" / "tables" / "calls").rglob("*.parquet"))
    assert len(kept) < waste
    assert calls_of(new) == before
    record(new, 5)
    run("lake", "roll", "--project", new)
    assert len(calls_of(new)) == len(before) + 5
    Upkeep(new).tables.vacuum("calls", keep_s=0)
    assert len(calls_of(new)) == len(before) + 5


def test_any_change_to_a_backup_is_found_and_nothing_is_restored(root: Path, tmp_path: Path) -> None:
    run("backup", tmp_path / "b", "--project", root)
    new = project(tmp_path / "new")
    chosen = random.Random(7).sample(sorted((tmp_path / "b" / "objects").rglob("*/*")), 6)
    for path in chosen:
        good = path.read_bytes()
        for bad in (good[:-1], bytes([good[0] ^ 1]) + good[1:], None):
            path.unlink() if bad is None else path.write_bytes(bad)
            with pytest.raises(Said, match=r"was changed|is missing"):
                run("restore", tmp_path / "b", "--without-keys", "--project", new)
            assert not (new / ".drivetrain").exists() or not content(new / ".drivetrain")
            path.write_bytes(good)
    run("restore", tmp_path / "b", "--without-keys", "--project", new)


def test_without_a_manifest_there_is_no_backup(root: Path, tmp_path: Path) -> None:
    run("backup", tmp_path / "b", "--project", root)
    (tmp_path / "b" / "generations" / "1" / "manifest.json").unlink()
    with pytest.raises(Said, match="no whole backup"):
        run("restore", tmp_path / "b", "--project", project(tmp_path / "new"))
    assert run("backup", tmp_path / "b", "--project", root)


def test_a_backup_that_is_killed_leaves_whole_generations_only(root: Path, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    to, ended, rounds = tmp_path / "b", 0, 0

    def whole() -> list[int]:
        return Generations(to).numbers() if (to / "drivetrain-backup.json").exists() else []

    while rounds < 8 or (len(whole()) == rounds < 40):  # until one was cut short
        rounds += 1
        record(root, 200)
        had = len(list(to.glob("objects/*/*")))
        child = subprocess.Popen(
            [sys.executable, "-c", BACK_UP, str(to), "--project", str(root)], stdout=subprocess.DEVNULL
        )
        until = time.monotonic() + PATIENCE_S
        while len(list(to.glob("objects/*/*"))) == had and child.poll() is None and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(0.1 * dice.random() ** 2 if rounds <= 8 else 0)
        child.send_signal(signal.SIGKILL)
        ended += child.wait() == 0
    numbers = whole()
    assert ended <= len(numbers) < rounds
    said = answered("backup", to, "--project", root)
    assert not list(to.rglob("*.new"))
    for number in [*numbers, said["generation"]]:
        generation = Generations(to).read(number)
        for file in generation.files:
            Generations(to).verify(file)
    assert calls_of(restored(to, tmp_path / "new")) == calls_of(root)


@pytest.mark.skipif(not may_mount(), reason="only root may mount a small disk")
def test_a_full_disk_leaves_no_half_backup(root: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(disk)], check=True)
    try:
        run("backup", disk / "b", "--project", root)
        (data_of(root) / "large").write_bytes(os.urandom(40 * 1024 * 1024))
        with pytest.raises(Said, match="bytes free; this backup may take"):
            run("backup", disk / "b", "--project", root)
        # What is looked at ahead is not all that may come: somebody else fills the disk meanwhile.
        (data_of(root) / "large").write_bytes(os.urandom(8 * 1024 * 1024))
        to = Generations(disk / "b")
        to.need_space = lambda size: (disk / "other").write_bytes(bytes(76 * 1024 * 1024))  # type: ignore[assignment,method-assign,return-value]
        with pytest.raises(DrivetrainError, match="cannot be written"):
            back_up(stores_of(root), to)
        assert to.numbers() == [1]
        assert not list((disk / "b").rglob("*.new"))
        (disk / "other").unlink()
        (data_of(root) / "large").unlink()
        assert answered("backup", disk / "b", "--project", root)["generation"] == 2
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_places_that_are_no_place_for_a_backup_are_refused(root: Path, tmp_path: Path) -> None:
    inside = root / ".drivetrain"
    for place in (inside / "data" / "b", inside / "keys", inside / "data"):
        with pytest.raises(Said, match="which is to be copied"):
            run("backup", place, "--project", root)
    for keys in (tmp_path / "b" / "keys", tmp_path / "b", tmp_path):
        with pytest.raises(Said, match="Keys would stand beside the data"):
            run("backup", tmp_path / "b", "--with-keys", keys, "--project", root)
    assert not (tmp_path / "b").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("not a backup")
    with pytest.raises(Said, match="no folder of backups"):
        run("backup", tmp_path / "other", "--project", root)
    run("backup", tmp_path / "b", "--with-keys", tmp_path / "k", "--project", root)
    with pytest.raises(Said, match="another sort"):
        run("backup", tmp_path / "k", "--project", root)
    with pytest.raises(Said, match="another sort"):
        run("restore", tmp_path / "k", "--project", project(tmp_path / "new"))


def test_who_keeps_a_backup_in_the_project_is_told(root: Path, tmp_path: Path) -> None:
    def told(to: Path, *more: str | Path) -> str:
        words = [sys.executable, "-c", BACK_UP, str(to), *map(str, more), "--project", str(root)]
        return subprocess.run(words, check=True, capture_output=True, text=True).stderr

    assert told(tmp_path / "b") == ""
    said = told(root / "copies" / "b", "--with-keys", root / "keys-copy")
    assert said.count("lies in the project's folder") == 2
    assert "`copies/` in .gitignore" in said
    assert "`keys-copy/` in .gitignore" in said


def test_copied_keys_are_asked_for_by_name(root: Path, tmp_path: Path) -> None:
    run("backup", tmp_path / "b", "--with-keys", tmp_path / "k", "--project", root)
    new = project(tmp_path / "new")
    own = root / ".drivetrain" / "keys"
    with pytest.raises(Said) as missing:
        run("restore", tmp_path / "b", "--project", new)
    assert f"Looked in: the keys folder {new / '.drivetrain' / 'keys'}" in str(missing.value)
    with pytest.raises(Said, match="no folder of copied keys") as wrong:
        run("restore", tmp_path / "b", "--keys", own, "--project", new)
    assert "--with-keys" in str(wrong.value)
    with pytest.raises(Said, match="data folder and its keys folder") as full:
        run("restore", tmp_path / "b", "--keys", tmp_path / "k", "--project", root)
    assert str(full.value).count(str(own)) == 1


def test_no_key_is_in_a_backup_of_data(root: Path, tmp_path: Path) -> None:
    keys = root / ".drivetrain" / "keys"
    vault = FileVault(keys)
    vault.seal("ann", "call", "request", b"text")
    vault.close()
    run("backup", tmp_path / "b", "--with-keys", tmp_path / "k", "--project", root)
    secrets = [path.read_bytes() for path in (*keys.glob("*.key"), *keys.glob("*.keys"))]
    assert len(secrets) == 3
    data = b"".join(content(tmp_path / "b").values())
    assert not any(secret in data for secret in secrets)
    copied = b"".join(content(tmp_path / "k").values())
    assert all(secret in copied for secret in secrets)


def test_older_generations_are_let_go(root: Path, tmp_path: Path) -> None:
    for number in range(3):
        record(root, 5)
        (data_of(root) / "note").write_text(str(number))
        run("backup", tmp_path / "b", "--project", root)
    before = len(objects(tmp_path / "b"))
    assert answered("backup", tmp_path / "b", "--keep", "2", "--project", root)["deleted"] == [1, 2]
    assert Generations(tmp_path / "b").numbers() == [3, 4]
    assert len(objects(tmp_path / "b")) < before
    for number in (3, 4):
        new = restored(tmp_path / "b", tmp_path / f"new{number}", "--generation", str(number))
        assert calls_of(new) == calls_of(root)


def test_one_backup_at_a_time_goes_to_a_folder(root: Path, tmp_path: Path) -> None:
    with Generations(tmp_path / "b").writing(), pytest.raises(Said, match="Another backup"):
        run("backup", tmp_path / "b", "--project", root)


def test_copies_share_the_hold_and_who_deletes_has_it_alone(tmp_path: Path) -> None:
    with held(tmp_path), held(tmp_path), deleting(tmp_path) as may:
        assert not may
    with deleting(tmp_path) as may:
        assert may
        with pytest.raises(DrivetrainError, match="tidied up"), held(tmp_path, 0.1):
            pass
    with held(tmp_path):
        pass
    assert ledger_of(tmp_path) is None


def test_an_erasure_lists_what_a_restore_moved_aside(root: Path, tmp_path: Path) -> None:
    run("backup", tmp_path / "b", "--with-keys", tmp_path / "k", "--project", root)
    done = answered("restore", tmp_path / "b", "--keys", tmp_path / "k", "--replace", "--project", root)
    assert len(done["aside"]) == 2
    with pytest.raises(Said) as said:
        run("erase", "--subject", "nobody", "--dry-run", "--json", "--project", root)
    assert json.loads(str(said.value))["elsewhere"]["aside"] == sorted(done["aside"])
