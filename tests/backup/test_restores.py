"""What a restore puts where: nothing is overwritten, nothing is counted twice, and what was forgotten stays so."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import msgspec
import pytest
from backup_world import Said, begin, calls_of, content, data_of, may_mount, project, record, run

from drivetrain.adapters.files import FileVault
from drivetrain.adapters.lake_places import lake_place
from drivetrain.adapters.objects import FileObjects
from drivetrain.adapters.sqlite import SqliteControlLog, open_control_log
from drivetrain.backup.copying import back_up
from drivetrain.backup.generations import Generations
from drivetrain.backup.restoring import Restored, restore
from drivetrain.backup.stores import LakeStores, Stores
from drivetrain.cli.backup import settle_open, stores_of
from drivetrain.core.errors import DrivetrainError
from drivetrain.lake.lake import Lake
from drivetrain.lake.plans import ledger_of
from drivetrain.lake.roller import Roller

pytestmark = pytest.mark.slow


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = project(tmp_path / "project")
    record(made, 30, outcomes=5)
    run("lake", "roll", "--project", made)
    record(made, 20, open_calls=2)
    return made


def log_of(root: Path) -> SqliteControlLog:
    return open_control_log(data_of(root), root / ".drivetrain" / "keys")


def test_what_is_there_is_refused_or_moved_aside_and_never_lost(root: Path, tmp_path: Path) -> None:
    before = calls_of(root)
    run("backup", tmp_path / "b", "--project", root)
    record(root, 9)
    there = content(data_of(root))
    with pytest.raises(Said, match="There is data in"):
        run("restore", tmp_path / "b", "--project", root)
    assert content(data_of(root)) == there
    said = json.loads(run("restore", tmp_path / "b", "--replace", "--project", root, "--json"))
    assert calls_of(root) == before
    (aside,) = said["aside"]
    assert content(Path(aside)) == there
    # And once more, in the same second perhaps.
    run("restore", tmp_path / "b", "--replace", "--project", root)
    assert content(Path(aside)) == there
    assert not list(data_of(root).parent.glob("*.restoring-*"))


def test_a_data_folder_behind_a_link_stays_there(root: Path, tmp_path: Path) -> None:
    before = calls_of(root)
    run("backup", tmp_path / "b", "--project", root)
    new = project(tmp_path / "new")
    (tmp_path / "disk" / "data").mkdir(parents=True)
    data_of(new).parent.mkdir()
    data_of(new).symlink_to(tmp_path / "disk" / "data")
    run("restore", tmp_path / "b", "--project", new)
    assert data_of(new).is_symlink()
    assert calls_of(new) == before


@pytest.mark.skipif(not may_mount(), reason="only root may mount a disk")
def test_a_data_folder_that_is_a_disk_of_its_own_is_restored_on_it(root: Path, tmp_path: Path) -> None:
    before = calls_of(root)
    run("backup", tmp_path / "b", "--project", root)
    new = project(tmp_path / "new")
    data_of(new).mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(data_of(new))], check=True)
    try:
        run("restore", tmp_path / "b", "--project", new)
        assert calls_of(new) == before
        record(new, 3)
        with pytest.raises(Said, match="There is data in"):
            run("restore", tmp_path / "b", "--project", new)
        said = json.loads(run("restore", tmp_path / "b", "--replace", "--project", new, "--json"))
        assert calls_of(new) == before
        (aside,) = said["aside"]
        assert data_of(new) == Path(aside).parent
        assert len(list(Path(aside).glob("calls/*.seg"))) == len(list(data_of(new).glob("calls/*.seg"))) + 1
        run("lake", "roll", "--project", new)
        run("backup", tmp_path / "b", "--project", new)
        assert not [one for one in Generations(tmp_path / "b").read().files if "before-restore" in one.path]
    finally:
        subprocess.run(["umount", str(data_of(new))], check=True)


def test_a_restored_ledger_rolls_on_without_counting_twice(root: Path, tmp_path: Path) -> None:
    before = calls_of(root)
    run("backup", tmp_path / "b", "--project", root)
    run("lake", "roll", "--project", root)
    new = project(tmp_path / "new")
    run("restore", tmp_path / "b", "--project", new)
    assert calls_of(new) == before
    assert ledger_of(data_of(new)) == ledger_of(data_of(root))
    ids = record(new, 5)
    for _ in range(2):
        run("lake", "roll", "--project", new)
        assert calls_of(new).keys() == before.keys() | set(ids)


def test_a_roll_that_was_cut_off_is_finished_after_the_restore(root: Path, tmp_path: Path) -> None:
    place = lake_place("", {}, folder=data_of(root) / "lake", mirror=tmp_path / "m")

    class Dying:
        """Loses its process before the last table is reached."""

        def __getattr__(self, name: str) -> object:
            return getattr(place.tables, name)

        def append(self, table: str, *given: object, **more: object) -> bool:
            if table == "spend":
                raise KeyboardInterrupt
            return place.tables.append(table, *given, **more)  # type: ignore[arg-type]

    before = calls_of(root)
    with pytest.raises(KeyboardInterrupt):
        Roller(data_of(root), Dying()).roll()  # type: ignore[arg-type]
    run("backup", tmp_path / "b", "--project", root)
    new = project(tmp_path / "new")
    run("restore", tmp_path / "b", "--project", new)
    assert calls_of(new) == before
    cost = run("cost", "--project", new, "--json")
    run("lake", "roll", "--project", new)
    assert calls_of(new) == before
    assert json.loads(run("cost", "--project", new, "--json"))["total"] == json.loads(cost)["total"]


def test_the_control_log_ends_where_it_did_and_says_why(root: Path, tmp_path: Path) -> None:
    log = log_of(root)
    for number in range(3):
        log.append(kind="apply", actor="ann", subject=f"s{number}", body={})
    run("backup", tmp_path / "b", "--project", root)
    log.append(kind="apply", actor="ann", subject="later", body={})
    log.append(kind="erase", actor="ann", subject="receipt", body={})
    said = run("restore", tmp_path / "b", "--replace", "--project", root)
    assert "1 erasures were made since; make them again" in said
    assert not log_of(root).verify().findings
    subjects = [record.subject for record in log_of(root).records()]
    assert subjects == ["s0", "s1", "s2", "generation 1"]
    log_of(root).append(kind="apply", actor="ann", subject="next", body={})
    # The anchor of before is kept: it proves that there was a fourth record.
    assert list((root / ".drivetrain" / "keys").glob("control.anchor.before-restore-*"))


def test_keys_that_are_missing_or_others_are_told_before_anything_is_changed(root: Path, tmp_path: Path) -> None:
    log_of(root).append(kind="apply", actor="ann", subject="s", body={})
    run("backup", tmp_path / "b", "--with-keys", tmp_path / "k", "--project", root)
    new = project(tmp_path / "new")
    with pytest.raises(Said, match=r"missing, or are others: control\.key"):
        run("restore", tmp_path / "b", "--project", new)
    log_of(new).append(kind="apply", actor="eve", subject="s", body={})
    there = content(new)
    with pytest.raises(Said, match=r"missing, or are others: control\.key"):
        run("restore", tmp_path / "b", "--replace", "--project", new)
    assert content(new) == there
    run("restore", tmp_path / "b", "--keys", tmp_path / "k", "--replace", "--project", new)
    assert [record.subject for record in log_of(new).records()] == ["s", "generation 1"]


def test_who_was_forgotten_after_the_backup_stays_forgotten(root: Path, tmp_path: Path) -> None:
    keys = root / ".drivetrain" / "keys"
    vault = FileVault(keys)
    sealed = {who: vault.seal(who, "call", "request", who.encode()) for who in ("ann", "bob")}
    vault.close()
    run("backup", tmp_path / "b", "--with-keys", tmp_path / "k", "--project", root)
    vault = FileVault(keys)
    assert vault.forget("ann") == 1
    vault.close()
    said = run("restore", tmp_path / "b", "--keys", tmp_path / "k", "--replace", "--project", root)
    assert "1 subjects were forgotten since" in said
    vault = FileVault(keys)
    assert vault.open("call", "request", sealed["ann"]) is None
    assert vault.open("call", "request", sealed["bob"]) == b"bob"
    vault.close()


def test_a_generation_of_a_newer_layout_is_refused(root: Path, tmp_path: Path) -> None:
    run("backup", tmp_path / "b", "--project", root)
    path = tmp_path / "b" / "generations" / "1" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"layout":0', b'"layout":99'))
    new = project(tmp_path / "new")
    with pytest.raises(Said, match="layout 99"):
        run("restore", tmp_path / "b", "--project", new)
    assert not (new / ".drivetrain").exists()


@pytest.mark.parametrize("bad", ["../../x", "/etc/x", "data/../../x", "data//x", "data/./x"])
def test_a_manifest_never_leads_out_of_the_project(bad: str, root: Path, tmp_path: Path) -> None:
    run("backup", tmp_path / "b", "--project", root)
    path = tmp_path / "b" / "generations" / "1" / "manifest.json"
    found = msgspec.json.decode(path.read_bytes())
    found["files"][0]["path"] = bad
    path.write_bytes(msgspec.json.encode(found))
    new = project(tmp_path / "new")
    with pytest.raises(Said, match="names a file that cannot be"):
        run("restore", tmp_path / "b", "--project", new)


class Elsewhere:
    """A lake that several data folders roll into, as one in an object store does."""

    URL = "s3://lake/prefix"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stores(self, root: Path) -> Stores:
        place = lake_place("", {}, folder=self.folder, mirror=self.folder / "m")
        tables = self.folder / "tables"
        lake = LakeStores(
            url=self.URL, tables=place.tables, raw=FileObjects(tables), files=place.objects, local=(tables,)
        )
        return msgspec.structs.replace(stores_of(root), lake=lake, lake_folder=None)

    def roll(self, root: Path) -> None:
        Roller(data_of(root), self.stores(root).lake.tables).roll()

    def calls(self, root: Path) -> list[str]:
        """As a question from that data folder sees them."""
        lake = self.stores(root).lake
        rows = Lake(data_of(root), lake.tables, lake.files).query("SELECT call_id FROM calls ORDER BY 1").rows
        return [call_id for (call_id,) in rows]

    def outcomes(self, root: Path) -> int:
        lake = self.stores(root).lake
        ((count,),) = Lake(data_of(root), lake.tables, lake.files).query("SELECT count(*) FROM outcomes_history").rows
        return int(count)

    def restored(self, backup: Path, to: Path, *, same: bool = False) -> Restored:
        project(to)
        return restore(self.stores(to), Generations(backup), same=same, settle_open=settle_open)


def test_a_lake_that_went_on_counts_each_call_once(tmp_path: Path) -> None:
    for number in range(3):
        seed = random.randrange(2**32)
        print("seed", seed)
        _went_on(random.Random(seed), tmp_path / str(number), rolled_later=number == 0)


def _went_on(dice: random.Random, folder: Path, *, rolled_later: bool) -> None:
    lake = Elsewhere(folder / "lake")
    root = project(folder / "project")
    steps = [
        lambda: record(root, dice.randrange(1, 9), open_calls=dice.randrange(2), outcomes=3),
        lambda: lake.roll(root),
    ]
    for _ in range(dice.randrange(1, 6)):
        dice.choice(steps)()
    record(root, 3)
    end = begin(root)
    done = back_up(lake.stores(root), Generations(folder / "b"))
    assert not done.generation.lake.copied
    assert not any(one.path.startswith("lake/") for one in done.generation.files)
    at_backup = lake.calls(root)
    if dice.randrange(2):
        end()
    for _ in range(dice.randrange(4)):
        dice.choice(steps)()
    end()
    if rolled_later:
        lake.roll(root)
    everything = lake.calls(root)
    # The machine is gone, and what it had not rolled with it; the lake is not.
    rolled = _in_lake(lake)
    new = folder / "new"
    restored = lake.restored(folder / "b", new)
    assert restored.rejoined is not None
    expected = sorted(rolled | set(at_backup))
    assert set(expected) <= set(everything)
    assert lake.calls(new) == expected
    outcomes = lake.outcomes(new)
    if rolled:
        assert ledger_of(data_of(new)) != ledger_of(data_of(root))
    ids = record(new, 2)
    for _ in range(2):
        lake.roll(new)
        assert lake.calls(new) == sorted([*expected, *ids])
        assert lake.outcomes(new) == outcomes
    assert sorted(_in_lake(lake)) == sorted([*expected, *ids])


def _in_lake(lake: Elsewhere) -> set[str]:
    """Calls that the lake has by itself."""
    import duckdb

    files = lake_place("", {}, folder=lake.folder, mirror=lake.folder / "m").tables.files("calls")
    if files is None or not files.paths:
        return set()
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT call_id FROM read_parquet(?, union_by_name=true)", [list(files.paths)]
        ).fetchall()
    assert len(rows) == len(set(rows)), "a Call is in the lake twice"
    return {call_id for (call_id,) in rows}


def test_the_same_id_is_kept_only_where_the_lake_stands_as_it_was_noted(root: Path, tmp_path: Path) -> None:
    lake = Elsewhere(tmp_path / "lake")
    other = project(tmp_path / "other")
    record(other, 5)
    lake.roll(other)
    record(other, 5)
    back_up(lake.stores(other), Generations(tmp_path / "b"))
    before = lake.calls(other)
    lake.restored(tmp_path / "b", tmp_path / "same", same=True)
    assert ledger_of(data_of(tmp_path / "same")) == ledger_of(data_of(other))
    assert lake.calls(tmp_path / "same") == before
    lake.roll(other)
    with pytest.raises(DrivetrainError, match="went on after this backup"):
        lake.restored(tmp_path / "b", tmp_path / "late", same=True)
    assert not data_of(tmp_path / "late").exists()


def test_a_lake_that_is_older_than_the_backup_is_refused(tmp_path: Path) -> None:
    lake = Elsewhere(tmp_path / "lake")
    root = project(tmp_path / "project")
    record(root, 5)
    lake.roll(root)
    back_up(lake.stores(root), Generations(tmp_path / "b"))
    with pytest.raises(DrivetrainError, match="older copy, or another lake"):
        Elsewhere(tmp_path / "empty").restored(tmp_path / "b", tmp_path / "new")
    assert not data_of(tmp_path / "new").exists()


def test_a_lake_elsewhere_is_copied_on_request_and_put_into_an_empty_one(tmp_path: Path) -> None:
    lake = Elsewhere(tmp_path / "lake")
    root = project(tmp_path / "project")
    record(root, 5)
    lake.roll(root)
    record(root, 5)
    back_up(lake.stores(root), Generations(tmp_path / "b"), with_lake=True)
    before = lake.calls(root)
    with pytest.raises(DrivetrainError, match="holds tables"):
        lake.restored(tmp_path / "b", tmp_path / "new")
    empty = Elsewhere(tmp_path / "empty")
    empty.restored(tmp_path / "b", tmp_path / "new")
    assert empty.calls(tmp_path / "new") == before
    # Or into a project whose lake stands in its folder.
    run("restore", tmp_path / "b", "--project", project(tmp_path / "folder"))
    assert sorted(calls_of(tmp_path / "folder")) == before
