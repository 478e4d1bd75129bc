"""The store of issued keys: what it keeps, what it never holds, and that no crash leaves an accepted key unlogged."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from keys_world import log_in, source_in, store_in

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.keys import IssuedKey, key_digest, new_key
from drivetrain.ports.keys import KeyTerms

pytestmark = pytest.mark.slow

S = 1_000_000_000
NOW = 1_800_000_000 * S


def fresh() -> str:
    return new_key(secrets.token_bytes)


def bodies(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(record.body) for record in log_in(folder).records() if record.kind == "key"]


def kept(folder: Path, name: str | None = None) -> list[IssuedKey]:
    return [one for one in source_in(folder).read().keys if name in (None, one.name)]


def change(folder: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(folder / "data" / "keys.db", isolation_level=None)) as connection:
        connection.execute(statement, values)


def test_a_key_is_kept_as_it_was_asked_for(tmp_path: Path) -> None:
    store = store_in(tmp_path, now_ns=lambda: NOW)
    terms = KeyTerms(
        name="app", tenant="acme", team="support", use_case="chat", workflows=("a", "b"), may_override=("user",),
        expires_ns=NOW + S,
    )  # fmt: skip
    key = fresh()
    made = store.issue(terms, key, "ann")
    issued = source_in(tmp_path).read()
    assert issued.keys == (made,)
    assert made.digest == key_digest(issued.pepper, key.encode())
    assert (made.last4, made.created_ns, made.created_by, made.generation) == (key[-4:], NOW, "ann", 1)
    for field in KeyTerms.__struct_fields__:
        assert getattr(made, field) == getattr(terms, field)
    (record,) = log_in(tmp_path).records()
    assert (record.kind, record.subject, record.actor) == ("key", "app", "ann")
    assert repr(issued.pepper) not in repr(issued)


def test_nothing_is_there_before_the_first_key(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    assert not source.changed()
    assert source.read().keys == ()
    with pytest.raises(DrivetrainError, match="No key `app` was issued"):
        store_in(tmp_path).revoke("app", "ann")
    assert list(tmp_path.iterdir()) == [], "looking makes nothing"


def test_a_rotation_keeps_the_terms_and_ends_the_old_one(tmp_path: Path) -> None:
    store = store_in(tmp_path, now_ns=lambda: NOW)
    store.issue(KeyTerms(name="app", team="support", workflows=("a",), may_override=("tags",)), fresh(), "ann")
    store.rotate("app", fresh(), "bob", overlap_ns=10 * S, expires_ns=NOW + 99 * S)
    store.rotate("app", fresh(), "bob", overlap_ns=20 * S, expires_ns=None)
    one, two, three = kept(tmp_path)
    assert [key.expires_ns for key in (one, two, three)] == [NOW + 10 * S, NOW + 20 * S, None]
    assert [key.replaced_by for key in (one, two, three)] == [2, 3, None]
    assert {(key.team, key.workflows, key.may_override) for key in (one, two, three)} == {
        ("support", ("a",), ("tags",))
    }
    assert [body["action"] for body in bodies(tmp_path)] == ["issue", "rotate", "rotate"]
    assert bodies(tmp_path)[2]["ending"].keys() == {"1", "2"}


def test_a_revoked_key_stays_revoked(tmp_path: Path) -> None:
    store = store_in(tmp_path, now_ns=lambda: NOW)
    store.issue(KeyTerms(name="app"), fresh(), "ann")
    store.rotate("app", fresh(), "ann", overlap_ns=S, expires_ns=None)
    assert [one.generation for one in store.revoke("app", "ann")] == [1, 2]
    assert store.revoke("app", "ann") == ()
    assert not any(one.usable(0) for one in kept(tmp_path))
    with pytest.raises(DrivetrainError, match="cannot come back"):
        store.rotate("app", fresh(), "ann", overlap_ns=0, expires_ns=None)
    with pytest.raises(DrivetrainError, match="issued before"):
        store.issue(KeyTerms(name="app"), fresh(), "ann")
    assert [body["action"] for body in bodies(tmp_path)] == ["issue", "rotate", "revoke"]
    assert log_in(tmp_path).verify().whole


def test_no_byte_of_a_key_is_on_the_disk(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    keys = [fresh(), fresh(), fresh()]
    store.issue(KeyTerms(name="app"), keys[0], "ann")
    store.rotate("app", keys[1], "ann", overlap_ns=S, expires_ns=None)
    with source_in_use(tmp_path):  # so that the -wal file stays
        store.issue(KeyTerms(name="other"), keys[2], "ann")
        content = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert content.keys() >= {"keys.db", "keys.db-wal", "control.db", "issued.key"}
    assert content["keys.db-wal"]
    for key in keys:
        for start in range(len(key) - 6 - 8 + 1):
            part = key[start : start + 8].encode()
            assert not any(part in data for data in content.values()), "a part of a key is on the disk"


class source_in_use:
    """A reader that keeps the database open, as a gateway's worker does."""

    def __init__(self, folder: Path) -> None:
        self.source = source_in(folder)

    def __enter__(self) -> None:
        self.source.changed()

    def __exit__(self, *_: object) -> None:
        self.source.close()


ALTERATIONS: dict[str, object] = {
    "workflows": None, "may_override": '["team"]', "expires_ns": None, "revoked_ns": None, "replaced_by": 7,
    "tenant": "other", "team": "sales", "use_case": "x", "name": "eve", "digest": b"x" * 32, "generation": 7,
    "created_ns": 5, "created_by": "eve", "last4": "none",
}  # fmt: skip


def test_a_row_that_was_altered_is_accepted_nowhere(tmp_path: Path) -> None:
    store = store_in(tmp_path, now_ns=lambda: NOW)
    terms = KeyTerms(name="app", tenant="acme", workflows=("a",), expires_ns=NOW + S)
    made = store.issue(terms, fresh(), "ann")
    store.issue(KeyTerms(name="good"), fresh(), "ann")
    store.revoke("app", "ann")
    assert ALTERATIONS.keys() == set(IssuedKey.__struct_fields__)
    for field, value in ALTERATIONS.items():
        with closing(sqlite3.connect(tmp_path / "data" / "keys.db", isolation_level=None)) as connection:
            (before,) = connection.execute(f"SELECT {field} FROM issued_keys WHERE last4 = ?", (made.last4,)).fetchone()
            connection.execute(f"UPDATE issued_keys SET {field} = ? WHERE last4 = ?", (value, made.last4))
            issued = source_in(tmp_path).read()
            assert [one.name for one in issued.keys] == ["good"], field
            assert "altered from outside" in issued.problems[0]
            name = str(value) if field == "name" else "app"
            with pytest.raises(DrivetrainError, match="altered from outside"):
                store.rotate(name, fresh(), "ann", overlap_ns=0, expires_ns=None)
            last4 = value if field == "last4" else made.last4
            connection.execute(f"UPDATE issued_keys SET {field} = ? WHERE last4 = ?", (before, last4))
    assert source_in(tmp_path).read().problems == ()


def test_files_that_do_not_belong_together_are_told(tmp_path: Path) -> None:
    store_in(tmp_path).issue(KeyTerms(name="app"), fresh(), "ann")
    master = tmp_path / "keys" / "issued.key"
    own = master.read_bytes()
    master.write_bytes(bytes(32))
    with pytest.raises(DrivetrainError, match="None of the keys"):
        source_in(tmp_path).read()
    master.unlink()
    for use in (source_in(tmp_path).read, lambda: store_in(tmp_path).issue(KeyTerms(name="b"), fresh(), "ann")):
        with pytest.raises(DrivetrainError, match=r"issued\.key is missing"):
            use()
    assert not master.exists(), "it is not made anew: every key would be unknown"
    master.write_bytes(own)
    for file in (tmp_path / "data").glob("keys.db*"):
        file.unlink()
    for use in (source_in(tmp_path).read, lambda: store_in(tmp_path).issue(KeyTerms(name="b"), fresh(), "ann")):
        with pytest.raises(DrivetrainError, match=r"keys\.db is missing"):
            use()


def test_a_newer_schema_and_a_damaged_file_are_told(tmp_path: Path) -> None:
    store_in(tmp_path).issue(KeyTerms(name="app"), fresh(), "ann")
    change(tmp_path, "PRAGMA user_version = 99")
    with pytest.raises(DrivetrainError, match="Use the newer Drivetrain"):
        source_in(tmp_path).read()
    for file in (tmp_path / "data").glob("keys.db-*"):
        file.unlink()
    (tmp_path / "data" / "keys.db").write_bytes(b"no database" * 1000)
    source = source_in(tmp_path)
    for use in (source.read, source.changed):
        with pytest.raises(DrivetrainError, match="cannot be used"):
            use()


def test_changes_are_seen_by_who_looks_again(tmp_path: Path) -> None:
    source, store = source_in(tmp_path), store_in(tmp_path)
    assert [source.changed() for _ in range(3)] == [False] * 3
    store.issue(KeyTerms(name="app"), fresh(), "ann")
    assert [source.changed() for _ in range(3)] == [True, False, False]
    store.rotate("app", fresh(), "ann", overlap_ns=S, expires_ns=None)
    assert [source.changed() for _ in range(3)] == [True, False, False]
    store.revoke("app", "ann")
    assert [source.changed() for _ in range(3)] == [True, False, False]
    source.read()
    assert not source.changed(), "reading changes nothing"
    path = tmp_path / "data" / "keys.db"
    restored = path.with_name("restored.db")
    with closing(sqlite3.connect(path)) as connection, closing(sqlite3.connect(restored)) as copy:
        connection.backup(copy)
    restored.rename(path)
    assert source.changed(), "another file took its place"
    source.close()


# Crashes and races.

DIE = """
import os, signal, sys
from pathlib import Path
from drivetrain.adapters.sqlite import SqliteControlLog
from drivetrain.adapters.sqlite_keys import SqliteKeyStore
from drivetrain.core.keys import new_key
from drivetrain.ports.keys import KeyTerms

folder, when, action = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

class Deadly:
    def append(self, **record):
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        SqliteControlLog(folder / "data" / "control.db", folder / "keys").append(**record)
        os.kill(os.getpid(), signal.SIGKILL)

store = SqliteKeyStore(folder / "data" / "keys.db", folder / "keys", Deadly)
key = new_key(os.urandom)
if action == "issue":
    store.issue(KeyTerms(name="app"), key, "ann")
elif action == "rotate":
    store.rotate("app", key, "ann", overlap_ns=10**9, expires_ns=None)
else:
    store.revoke("app", "ann")
"""


def test_kill_9_between_the_two_stores_leaves_no_accepted_key_unlogged(tmp_path: Path) -> None:
    cases = [(action, when) for action in ("issue", "rotate", "revoke") for when in ("before", "after")]
    running = []
    for action, when in cases:
        folder = tmp_path / f"{action}-{when}"
        if action != "issue":
            store_in(folder).issue(KeyTerms(name="app"), fresh(), "ann")
        running.append(subprocess.Popen([sys.executable, "-c", DIE, str(folder), when, action], env=os.environ))
    assert [child.wait(timeout=50) for child in running] == [-signal.SIGKILL] * len(cases)
    for action, when in cases:
        folder = tmp_path / f"{action}-{when}"
        before = {"issue": 0, "rotate": 1, "revoke": 1}[action]
        accepted = [one for one in kept(folder) if one.usable(NOW)]
        assert len(accepted) == (0 if action == "revoke" else before), (action, when)
        logged = {body["generation"] for body in bodies(folder) if body["action"] in ("issue", "rotate")}
        assert {one.generation for one in accepted} <= logged, (action, when)
        assert all(one.expires_ns is None for one in accepted), "half a rotation"
        # Whoever changes a key next tells the log what is missing.
        store_in(folder).issue(KeyTerms(name="next"), fresh(), "bob")
        said = [body["action"] for body in bodies(folder)]
        settled = {"issue": "abandoned", "rotate": "abandoned", "revoke": "revoke"}[action]
        wanted = ["issue"] * before + [action] * (when == "after") + [settled, "issue"]
        assert said == wanted, (action, when)
        with closing(sqlite3.connect(folder / "data" / "keys.db")) as connection:
            assert connection.execute("SELECT count(*) FROM pending").fetchone() == (0,)
        assert log_in(folder).verify().whole
        twice = [body["change"] for body in bodies(folder)[before:-1]]
        assert len(set(twice)) == 1, "all that is said of a change names it"


ISSUE = """
import sys
from pathlib import Path
from drivetrain.adapters.sqlite import SqliteControlLog
from drivetrain.adapters.sqlite_keys import SqliteKeyStore
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.keys import new_key
from drivetrain.ports.keys import KeyTerms
import os
folder = Path(sys.argv[1])
log = lambda: SqliteControlLog(folder / "data" / "control.db", folder / "keys")
store = SqliteKeyStore(folder / "data" / "keys.db", folder / "keys", log)
store.issue(KeyTerms(name=sys.argv[2]), new_key(os.urandom), "ann")
try:
    store.issue(KeyTerms(name="app"), new_key(os.urandom), sys.argv[2])
except DrivetrainError as error:
    assert "issued before" in str(error), error
    sys.exit(3)
"""


def test_of_several_that_issue_one_name_at_once_one_gets_it(tmp_path: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", ISSUE, str(tmp_path), f"p{n}"]) for n in range(5)]
    codes = [child.wait(timeout=50) for child in running]
    assert sorted(codes) == [0, 3, 3, 3, 3]
    (one,) = kept(tmp_path, "app")
    assert one.created_by == f"p{codes.index(0)}"
    assert len(kept(tmp_path)) == 6
    assert sum(record.subject == "app" for record in log_in(tmp_path).records()) == 1
    assert log_in(tmp_path).verify().whole


def test_a_broken_log_lets_no_key_in_and_keeps_none_from_being_revoked(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.issue(KeyTerms(name="app"), fresh(), "ann")
    anchor = tmp_path / "keys" / "control.anchor"
    whole = anchor.read_bytes()
    anchor.write_bytes(b"{}")
    with pytest.raises(DrivetrainError, match="control log was changed"):
        store.issue(KeyTerms(name="new"), fresh(), "ann")
    with pytest.raises(DrivetrainError, match="control log was changed"):
        store.rotate("app", fresh(), "ann", overlap_ns=0, expires_ns=None)
    with pytest.raises(DrivetrainError, match="`app` is revoked, but the control log could not be told"):
        store.revoke("app", "ann")
    (one,) = kept(tmp_path)
    assert one.revoked_ns is not None
    anchor.write_bytes(whole)
    assert store.revoke("app", "ann") == ()
    assert [body["action"] for body in bodies(tmp_path)] == ["issue", "abandoned", "revoke"]
