"""The hash covers what decides an answer, and nothing else; a stored Snapshot comes back with the same one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drivetrain import DrivetrainError, project
from drivetrain.project.document import parse
from drivetrain.project.files import hash_of
from drivetrain.project.load import Source, build
from drivetrain.project.problems import Problems
from drivetrain.project.snapshot import Versions

CHANGES = [
    ("drivetrain.toml", "# a comment"),
    ("workflows/triage.j2", "{{ text }}!"),
    ("workflows/more/words.txt", "x"),
    ("features/customer.py", "A = 1"),
    ("policies/refund.json", "{}"),
    ("prompts/tone.md", "x"),
    ("evals/triage.py", "A = 1"),
    ("extra.j2", "x"),
]
NO_CHANGES = [
    ("data/golden.csv", "x"),
    ("secrets/dev.key", "x"),
    ("workflows/secrets/dev.txt", "x"),
    ("workflows/dev.key", "x"),
    (".drivetrain/data/segment", "x"),
    (".env", "A=1"),
    ("workflows/.hidden", "x"),
    ("workflows/__pycache__/triage.cpython-311.pyc", "x"),
    ("evals/golden.csv", "x"),
    ("README.md", "x"),
    ("script.py", "x"),
    ("simulator.toml", "x"),
]


def test_the_hash_is_pinned() -> None:
    """It is the same on every machine and must not change by accident: records carry it for ever."""
    files = {"drivetrain.toml": b"[project]\n", "workflows/a.py": b"x = 1\n"}
    assert hash_of(files, "prod", Versions(drivetrain="0.1.0", msgspec="0.20.0")) == (
        "0095b60c1cf574a5cc2cea8dbade3ed6d66f771e562c59a7096f45aa6746c5a2"
    )


def test_the_hash_does_not_depend_on_the_folder(make, small) -> None:
    one = make(small, "one")
    two = make(dict(reversed(small.items())), "deeper/two")
    assert project.load(one).hash == project.load(two).hash == project.content_hash(one)


@pytest.mark.parametrize(("name", "text"), CHANGES, ids=[row[0] for row in CHANGES])
def test_what_changes_the_hash(make, small, name, text) -> None:
    root = make(small)
    before = project.content_hash(root)
    make({name: small.get(name, "") + text})
    assert project.content_hash(root) != before
    assert project.load(root).hash == project.content_hash(root)


@pytest.mark.parametrize(("name", "text"), NO_CHANGES, ids=[row[0] for row in NO_CHANGES])
def test_what_does_not_change_the_hash(make, small, name, text) -> None:
    root = make(small)
    before = project.content_hash(root)
    make({name: text})
    assert project.content_hash(root) == before
    assert name not in project.load(root).files


def test_linked_files_belong_to_the_project(make, small, tmp_path) -> None:
    """Kubernetes mounts a ConfigMap as links into a hidden folder."""
    root = make(small)
    before = project.load(root).hash
    hidden = root / "workflows/..data"
    hidden.mkdir()
    for name in ("triage.py", "triage.j2"):
        (root / "workflows" / name).rename(hidden / name)
        (root / "workflows" / name).symlink_to(hidden / name)
    assert project.load(root).hash == before


def test_a_folder_that_links_to_itself_ends(make, small) -> None:
    root = make(small)
    (root / "workflows/again").symlink_to(root / "workflows")
    assert project.load(root).workflows.keys() == {"triage"}


def test_a_stored_snapshot_comes_back_as_it_was(make, small, tmp_path) -> None:
    root = make(small)
    snapshot = project.load(root)
    folder = tmp_path / "snapshots"
    stored = project.store(snapshot, folder)
    assert stored == folder / snapshot.hash
    make({"workflows/triage.j2": "Changed {{ text }}", "workflows/triage.py": "1 / 0"})
    back = project.load_stored(folder, snapshot.short_hash, root)
    assert (back.hash, back.name, back.environment, back.root) == (snapshot.hash, "shop", "default", root)
    assert back.templates == snapshot.templates
    assert back.workflows["triage"].project == str(root)
    assert back.workflows["triage"].place.file == str(stored / "files/workflows/triage.py")


def test_the_environment_is_stored_too(make, small, tmp_path, monkeypatch) -> None:
    root = make({**small, "drivetrain.toml": small["drivetrain.toml"] + "[env.prod.gateway]\nport = 9\n[env.dev]\n"})
    snapshot = project.load(root, "prod")
    project.store(snapshot, tmp_path / "s")
    monkeypatch.setenv("DRIVETRAIN_ENV", "dev")
    back = project.load_stored(tmp_path / "s", snapshot.hash, root)
    assert (back.environment, back.gateway.port, back.hash) == ("prod", 9, snapshot.hash)


def test_another_version_of_the_package_does_not_change_a_stored_hash(make, small, tmp_path) -> None:
    root = make(small)
    files = project.load(root).files
    older = Source(files=files, root=root, code_root=root, environment="default", versions=Versions(drivetrain="0.0.1"))
    problems = Problems()
    snapshot = build(older, parse(files["drivetrain.toml"], problems), problems)
    project.store(snapshot, tmp_path / "s")
    assert snapshot.hash != project.load(root).hash
    assert project.load_stored(tmp_path / "s", snapshot.short_hash, root).hash == snapshot.hash


def test_storing_twice_writes_once(make, small, tmp_path) -> None:
    snapshot = project.load(make(small))
    first = project.store(snapshot, tmp_path / "s")
    written = os.stat(first / "manifest.json").st_mtime_ns
    assert project.store(snapshot, tmp_path / "s") == first
    assert os.stat(first / "manifest.json").st_mtime_ns == written
    assert [path.name for path in (tmp_path / "s").iterdir()] == [snapshot.hash]


def test_a_stored_snapshot_that_was_changed_is_refused(make, small, tmp_path) -> None:
    snapshot = project.load(make(small))
    stored = project.store(snapshot, tmp_path / "s")
    (stored / "files/workflows/triage.j2").write_text("Other {{ text }}")
    with pytest.raises(DrivetrainError, match="is damaged: its files do not have the hash"):
        project.load_stored(tmp_path / "s", snapshot.short_hash, snapshot.root)
    (stored / "files/workflows/triage.j2").unlink()
    with pytest.raises(DrivetrainError, match=r"workflows/triage\.j2 cannot be read"):
        project.load_stored(tmp_path / "s", snapshot.short_hash, snapshot.root)


@pytest.mark.parametrize(
    ("prefix", "what"), [("abc", "is not the hash"), ("../../..", "is not the hash"), ("0" * 16, "No stored")]
)
def test_a_hash_that_is_not_stored(tmp_path: Path, prefix: str, what: str) -> None:
    with pytest.raises(DrivetrainError, match=what):
        project.load_stored(tmp_path, prefix, tmp_path)
