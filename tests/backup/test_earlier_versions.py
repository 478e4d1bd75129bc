"""What earlier versions wrote is read, migrated, backed up and brought back; what a newer one wrote is left alone."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import pytest
from backup_world import Said, answered, calls_of, cost_of, run

from drivetrain.adapters.sqlite_counters import SqliteCounters
from drivetrain.backup.layout import LAYOUT, opened, read_layout
from drivetrain.core.errors import DrivetrainError
from drivetrain.embedded.limiting import limits_folder
from drivetrain.ledger.frames import segments
from drivetrain.ports.counters import AccountState

EARLIER = sorted((Path(__file__).parent / "earlier").glob("*.tar.gz"))


def unpacked(archive: Path, to: Path) -> tuple[Path, dict[str, Any]]:
    with tarfile.open(archive) as tar:
        tar.extractall(to, filter="data")
    return to, json.loads((to / "expected.json").read_text())


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def account(data: Path) -> AccountState:
    """Of the budget, in the month in which the archives were made."""
    store = SqliteCounters(limits_folder(data))
    try:
        ((one),) = store.accounts("all/", "@2026-11", 10).first
        return one.state
    finally:
        store.close()


def check_all(root: Path, expected: dict[str, Any]) -> None:
    """Every command that reads says what that version said."""
    calls = calls_of(root)
    assert set(expected["ids"]) < set(calls)
    assert len(calls) == expected["calls"]
    assert sum(status == "interrupted" for status, _ in calls.values()) == 1
    assert cost_of(root) == sum(cost for _, cost in calls.values()) == expected["cost_nano_usd"]
    shown = answered("calls", "show", expected["ids"][0], "--project", root)
    assert shown["status"] == "answered"
    assert "Where is invoice 0?" in run("calls", "show", expected["ids"][0], "--payload", "--project", root)
    assert [one["metric"] for one in shown["outcomes"]] == ["solved"]
    run("audit", "verify", "--project", root)
    run("check", "--project", root)
    if (root / ".drivetrain" / "data" / "limits").exists():
        assert [one["name"] for one in answered("budget", "--project", root)["limits"]] == ["all"]
    if (root / ".drivetrain" / "data" / "keys.db").exists():
        assert json.loads(run("keys", "list", "--project", root, "--json"))["name"] == "app"


@pytest.mark.slow
@pytest.mark.parametrize("archive", EARLIER, ids=lambda path: path.name)
def test_everything_that_an_earlier_version_wrote_is_read_migrated_and_restored(archive: Path, tmp_path: Path) -> None:
    root, expected = unpacked(archive, tmp_path / "project")
    data = root / ".drivetrain" / "data"
    check_all(root, expected)

    before = content(data / "calls")
    told = answered("migrate", "--dry-run", "--project", root)["steps"]
    assert [one["what"] for one in told] == ["remove", "roll", "note layout"]
    assert content(data / "calls") == before
    assert read_layout(data) == 0

    run("backup", tmp_path / "unmigrated", "--project", root)
    done = answered("migrate", "--project", root)["steps"]
    assert [one["what"] for one in done] == [one["what"] for one in told]
    assert f"{expected['calls']} Calls" in done[1]["detail"]
    assert not (data / "cache" / "parts.1").exists()
    assert read_layout(data) == LAYOUT
    assert answered("migrate", "--project", root)["steps"] == []
    check_all(root, expected)

    # Of before the migration and of after it: either way everything comes back.
    run("backup", tmp_path / "migrated", "--project", root)
    for source in ("unmigrated", "migrated"):
        run("restore", tmp_path / source, "--replace", "--project", root)
        assert (read_layout(data) == LAYOUT) == (source == "migrated")
        check_all(root, expected)
        if (data / "limits").exists():
            # The worker that was killed is resolved: what its last Call had reserved counts.
            state = account(data)
            assert state.settled >= expected["cost_nano_usd"]
            assert state.held == 0
    run("lake", "roll", "--project", root)
    check_all(root, expected)


def test_a_migration_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from drivetrain.backup import migrating

    root, expected = unpacked(EARLIER[-1], tmp_path / "project")
    data = root / ".drivetrain" / "data"

    def dies() -> str:
        raise DrivetrainError("killed")

    with pytest.raises(DrivetrainError, match="killed"):
        migrating.migrate(data, roll=dies)
    assert read_layout(data) == 0
    assert [one["what"] for one in answered("migrate", "--project", root)["steps"]] == ["roll", "note layout"]
    assert cost_of(root) == expected["cost_nano_usd"]


def test_a_folder_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    root, _ = unpacked(EARLIER[-1], tmp_path / "project")
    data = root / ".drivetrain" / "data"
    (data / "layout.json").write_text(f'{{"layout": {LAYOUT + 1}, "version": "9.0.0", "more": [1]}}')
    before = content(data)
    for command in (("migrate",), ("backup", tmp_path / "b")):
        with pytest.raises(Said, match=r"written by drivetrain 9\.0\.0"):
            run(*command, "--project", root)
    with pytest.raises(DrivetrainError, match=r"written by drivetrain 9\.0\.0"):
        opened(data)
    assert content(data) == before


def test_a_database_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    root, _ = unpacked(EARLIER[-1], tmp_path / "project")
    data = root / ".drivetrain" / "data"
    with sqlite3.connect(data / "idempotency" / "keys.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(Said, match="schema 99"):
        run("migrate", "--project", root)
    assert (data / "cache" / "parts.1").exists()
    assert read_layout(data) == 0
    assert segments(data)


def test_a_new_folder_gets_this_versions_layout_and_an_old_one_does_not(tmp_path: Path) -> None:
    opened(tmp_path / "new")
    assert read_layout(tmp_path / "new") == LAYOUT
    opened(tmp_path / "new")
    (tmp_path / "old" / "calls").mkdir(parents=True)
    opened(tmp_path / "old")
    assert read_layout(tmp_path / "old") == 0
    assert not (tmp_path / "old" / "layout.json").exists()


@pytest.mark.parametrize("raw", ["", "[]", '{"layout": "1"}', "\xff", "{" * 70_000])
def test_a_layout_that_says_nothing_is_an_error(raw: str, tmp_path: Path) -> None:
    (tmp_path / "layout.json").write_text(raw, encoding="latin-1")
    with pytest.raises(DrivetrainError, match="says nothing that is understood"):
        opened(tmp_path)
