"""Checkpoints and exports of the control log: what was signed stays provable, whatever happens to the log."""

from __future__ import annotations

import json
import random
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner, Result

from drivetrain.adapters.checkpoints import MARKS_MAX, differences, make_checkpoint, public_text
from drivetrain.adapters.sqlite import GENESIS, SqliteControlLog, open_control_log, record_hash
from drivetrain.cli import audit
from drivetrain.ports.control import ControlRecord

pytestmark = pytest.mark.slow

app = typer.Typer()
app.add_typer(audit.app, name="audit")
RECORDS = 12
SEED = 20261121


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["audit", *arguments])


def project_in(folder: Path, records: int = RECORDS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "drivetrain.toml").write_text('[project]\nname = "shop"\n')
    log = log_of(folder)
    for number in range(records):
        kind = "apply" if number % 3 else "budget.set"
        log.append(kind=kind, actor="ann", subject=f"triage-{number}", body={"n": number, "why": 'so "é" \\ 👩'})
    return folder


def log_of(folder: Path) -> SqliteControlLog:
    return open_control_log(folder / ".drivetrain" / "data", folder / ".drivetrain" / "keys")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return project_in(tmp_path / "shop")


def signed(project: Path, name: str = "one.json", *more: str) -> tuple[Path, str]:
    """A checkpoint's file and the public key that it was signed with."""
    path = project.parent / name
    made = run("checkpoint", "--project", str(project), "--out", str(path), "--json", *more)
    assert made.exit_code == 0, made.output
    return path, json.loads(made.output)["public_key"]


def verified(project: Path, *files: Path, more: tuple[str, ...] = ()) -> Result:
    named = [part for file in files for part in ("--checkpoint", str(file))]
    return run("verify", "--project", str(project), *named, *more)


def rechained(folder: Path, change: dict[int, dict[str, object]], drop: frozenset[int] = frozenset()) -> None:
    """The log with some records changed or left out, every hash computed anew, and an anchor that fits: what somebody
    with the keys can do."""
    records = [one for one in log_of(folder).records() if one.seq not in drop]
    before, rows = GENESIS, []
    for seq, record in enumerate(records, start=1):
        fields = {**{name: getattr(record, name) for name in ControlRecord.__struct_fields__}, **change.get(seq, {})}
        made = ControlRecord(**{**fields, "seq": seq, "prev_hash": before, "hash": ""})
        before = record_hash(made)
        rows.append((*(getattr(made, name) for name in ControlRecord.__struct_fields__[:-1]), before))
    data, keys = folder / ".drivetrain" / "data", folder / ".drivetrain" / "keys"
    with closing(sqlite3.connect(data / "control.db")) as connection:
        connection.execute("DELETE FROM control")
        connection.executemany("INSERT INTO control VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (keys / "control.anchor").unlink()
    log_of(folder)._write_anchor(len(rows), before)


def test_a_log_that_grows_still_agrees_with_every_checkpoint(project: Path) -> None:
    first, _ = signed(project)
    log_of(project).append(kind="apply", actor="bob", subject="triage", body={})
    second, _ = signed(project, "two.json")
    found = verified(project, first, second)
    assert found.exit_code == 0, found.output
    assert "as signed: 2 checkpoints" in found.output
    key = project / ".drivetrain" / "keys" / "checkpoint.key"
    assert key.stat().st_mode & 0o777 == 0o600


def test_a_rewritten_log_with_a_fitting_anchor_is_found_and_the_record_named(project: Path) -> None:
    path, _ = signed(project)
    rechained(project, {7: {"actor": "eve"}})
    assert verified(project).exit_code == 0, "the forgery is one that only a checkpoint can find"
    found = verified(project, path)
    assert found.exit_code == 1
    assert "Record 7 is not the one that stood there" in found.output


def test_a_cut_tail_with_a_fitting_anchor_is_found_and_what_is_gone_named(project: Path) -> None:
    path, _ = signed(project)
    rechained(project, {}, frozenset({10, 11, 12}))
    assert verified(project).exit_code == 0
    found = verified(project, path)
    assert found.exit_code == 1
    assert "Records 10 to 12 stood there" in found.output


def test_a_deleted_log_is_found_with_or_without_its_keys(project: Path) -> None:
    path, public = signed(project)
    shutil.copytree(project, project.with_name("other"))
    shutil.rmtree(project.with_name("other") / ".drivetrain" / "data")
    assert verified(project.with_name("other")).exit_code == 1
    shutil.rmtree(project / ".drivetrain" / "data")
    (project / ".drivetrain" / "keys" / "control.anchor").unlink()
    gone = verified(project)
    assert gone.exit_code == 1
    assert "was deleted" in gone.output
    shutil.rmtree(project / ".drivetrain")
    assert verified(project).exit_code == 0, "nothing is left that could tell"
    found = verified(project, path, more=("--trust", public))
    assert found.exit_code == 1
    assert f"Records 1 to {RECORDS} stood there" in found.output


def test_random_edits_of_rows_and_bytes_are_found(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    random_ = random.Random(SEED)
    whole = project_in(tmp_path / "whole")
    path, public = signed(whole)
    for attempt in range(40):
        folder = tmp_path / f"copy-{attempt}"
        shutil.copytree(whole, folder)
        way = random_.choice(("edit", "drop", "tail", "swap", "bytes"))
        seq = random_.randint(1, RECORDS)
        if way == "edit":
            field = random_.choice(("at_ns", "kind", "actor", "subject", "body"))
            changed: object = random_.getrandbits(40) if field == "at_ns" else f'"{random_.getrandbits(40):x}"'
            rechained(folder, {seq: {field: changed}})
        elif way == "drop":
            rechained(folder, {}, frozenset({seq}))
        elif way == "tail":
            rechained(folder, {}, frozenset(range(seq, RECORDS + 1)))
        elif way == "swap":
            records = {one.seq: one for one in log_of(folder).records()}
            other = seq % RECORDS + 1
            rechained(folder, {seq: {"subject": records[other].subject, "body": records[other].body},
                               other: {"subject": records[seq].subject, "body": records[seq].body}})  # fmt: skip
        else:
            before = list(log_of(folder).records())
            # Into one file, as a closed log stands: a write-ahead log beside it would hide the edit, not honour it.
            with closing(sqlite3.connect(folder / ".drivetrain" / "data" / "control.db")) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            database = folder / ".drivetrain" / "data" / "control.db"
            content = bytearray(database.read_bytes())
            wanted = random_.choice(before).hash.encode()
            place = content.index(wanted) + random_.randrange(len(wanted))
            content[place] ^= 1 << random_.randrange(7)
            database.write_bytes(bytes(content))
        found = verified(folder, path, more=("--trust", public))
        assert found.exit_code == 1, (attempt, way, seq, found.output)


def test_every_altered_byte_of_a_checkpoint_is_found(project: Path) -> None:
    path, _ = signed(project)
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        altered = bytearray(content)
        altered[place] ^= 4
        path.write_bytes(bytes(altered))
        assert verified(project, path).exit_code == 1, place
    path.write_bytes(content + b" ")
    assert verified(project, path).exit_code == 1
    path.write_bytes(content)
    assert verified(project, path).exit_code == 0


def test_a_forger_with_a_key_of_their_own_is_found(project: Path, tmp_path: Path) -> None:
    own = signed(project)[1]
    theirs = tmp_path / "theirs.key"
    theirs.write_bytes(b"\7" * 32)
    forged, key = signed(project, "forged.json", "--key", str(theirs))
    found = verified(project, forged)
    assert found.exit_code == 1
    assert "signed with another key" in found.output
    assert verified(project, forged, more=("--trust", key)).exit_code == 0
    claimed = json.loads(forged.read_bytes())
    claimed["public_key"] = own
    forged.write_text(json.dumps(claimed, indent=2, ensure_ascii=False) + "\n")
    claim = verified(project, forged)
    assert claim.exit_code == 1
    assert "signature does not fit" in claim.output


def test_a_key_of_openssl_signs_and_other_files_are_refused(project: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    def pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    own = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "own.pem").write_bytes(pem(own))
    path, public = signed(project, "pem.json", "--key", str(tmp_path / "own.pem"))
    assert public == public_text(own)
    assert verified(project, path, more=("--trust", public)).exit_code == 0
    (tmp_path / "curve.pem").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    (tmp_path / "text").write_text("no key")
    for name in ("curve.pem", "text", "missing"):
        refused = run("checkpoint", "--project", str(project), "--out", str(tmp_path / "x"), "--key",
                      str(tmp_path / name))  # fmt: skip
        assert refused.exit_code == 1
        assert "openssl genpkey" in refused.output


def test_a_log_that_is_not_whole_is_not_signed(project: Path) -> None:
    with closing(sqlite3.connect(project / ".drivetrain" / "data" / "control.db", isolation_level=None)) as connection:
        connection.execute("UPDATE control SET actor = 'eve' WHERE seq = 3")
    refused = run("checkpoint", "--project", str(project), "--out", str(project / "x.json"))
    assert refused.exit_code == 1
    assert "Record 3 was edited" in refused.output
    assert not (project / "x.json").exists()
    assert run("export", "--project", str(project), "--out", str(project / "x.jsonl")).exit_code == 1


def test_a_long_log_is_marked_sparsely_and_still_says_where() -> None:
    records, before = [], GENESIS
    for seq in range(1, 3 * MARKS_MAX):
        made = ControlRecord(
            seq=seq, at_ns=seq, kind="apply", actor="a", subject="s", body="{}", prev_hash=before, hash=""
        )
        before = record_hash(made)
        records.append(msgspec.structs.replace(made, hash=before))
    key = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
    made_of = make_checkpoint(records, key, project="p", environment="e", at="2026-11-21T00:00:00Z")
    assert len(made_of.marks) <= MARKS_MAX
    hashes = [one.hash for one in records]
    assert differences(made_of, hashes) == ""
    for changed in range(1, len(hashes) + 1, 97):
        told = differences(made_of, hashes[: changed - 1] + [GENESIS] * (len(hashes) - changed + 1))
        named = [int(one) for one in re.findall(r"\d+", told.partition(" is not")[0])]
        assert min(named) <= changed <= max(named) <= min(named) + 2, told


def exported(project: Path, *more: str, name: str = "log.jsonl") -> tuple[Path, str]:
    path = project.parent / name
    made = run("export", "--project", str(project), "--out", str(path), "--json", *more)
    assert made.exit_code == 0, made.output
    return path, json.loads(made.output)["public_key"]


def checked(path: Path, key: str) -> Result:
    return run("verify", "--export", str(path), "--trust", key)


def test_an_export_is_proved_apart_from_its_project_and_noted_in_the_log(project: Path) -> None:
    path, key = exported(project)
    noted = list(log_of(project).records())[-1]
    assert (noted.kind, noted.subject) == ("exported", "control")
    assert json.loads(noted.body)["records"] == RECORDS
    shutil.rmtree(project)
    found = checked(path, key)
    assert found.exit_code == 0, found.output
    assert f"whole: {RECORDS} records of shop, default" in found.output
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [one["seq"] for one in lines[1:-1]] == list(range(1, RECORDS + 1))
    assert lines[-1]["count"] == RECORDS
    nobody = run("verify", "--export", str(path), "--project", str(path.parent))
    assert nobody.exit_code == 1


def test_an_export_holds_what_was_chosen(project: Path) -> None:
    path, key = exported(project, "--kind", "budget.set", "--since", "1h")
    kinds = {json.loads(line)["kind"] for line in path.read_text().splitlines()[1:-1]}
    assert kinds == {"budget.set"}
    assert checked(path, key).exit_code == 0
    none, _ = exported(project, "--until", "2001-01-01", name="none.jsonl")
    assert len(none.read_text().splitlines()) == 2
    assert checked(none, key).exit_code == 0
    again = run("export", "--project", str(project), "--out", str(path))
    assert again.exit_code == 1
    assert "is there already" in again.output


def test_every_change_of_an_export_is_found(project: Path, tmp_path: Path) -> None:
    path, key = exported(project)
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    forged = msgspec.json.decode(lines[3], type=ControlRecord)
    forged = msgspec.structs.replace(forged, actor="eve")
    forged = msgspec.structs.replace(forged, hash=record_hash(forged))
    changes = {
        "cut": b"".join(lines[:-1]), "half": content[: len(content) // 2], "empty": b"", "twice": content + content,
        "dropped": b"".join(lines[:5] + lines[6:]), "swapped": b"".join([*lines[:2], lines[3], lines[2], *lines[4:]]),
        "forged": b"".join([*lines[:3], msgspec.json.encode(forged) + b"\n", *lines[4:]]),
        "more": b"".join([*lines, lines[4]]), "spaces": content.replace(b'"kind":', b'"kind": ', 1),
    }  # fmt: skip
    print(f"seed {SEED}")
    random_ = random.Random(SEED)
    for number in range(150):
        altered = bytearray(content)
        altered[random_.randrange(len(altered))] ^= 1 << random_.randrange(8)
        changes[f"bit {number}"] = bytes(altered)
    target = tmp_path / "altered.jsonl"
    for name, content in changes.items():
        target.write_bytes(content)
        found = checked(target, key)
        assert found.exit_code == 1, (name, found.output)
        assert "Traceback" not in found.output
