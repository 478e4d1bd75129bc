"""A registry that was damaged or tampered with: a project that names its models is told, never surprised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivetrain.core.errors import ProjectError
from drivetrain.core.models import Column, Signature
from drivetrain.project import load
from drivetrain.project.model_fit import Misfits, fit
from support.projects import settings
from support.registered import register_words

CODE = """
import drivetrain as dt


class Note(dt.Record):
    text: str


class Intent(dt.Record):
    intent: str


words = dt.Workflow("words", input=Note, output=Intent, owner="team@acme.example", team="support", use_case="tests",
                    route=[dt.Variant("m", model="models:/words@champion")])
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "words.py").write_text(CODE)
    (tmp_path / "drivetrain.toml").write_text(settings())
    register_words(tmp_path, "words", {"refund": "refund", "parcel": "delivery"})
    return tmp_path


def model(root: Path) -> Path:
    return root / ".drivetrain" / "data" / "models" / "words"


def edited(root: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    manifest = model(root) / "1" / "model.json"
    content = json.loads(manifest.read_bytes())
    edit(content)
    manifest.write_text(json.dumps(content))


EDITS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a task": (lambda one: one["signature"].update(task="clustering"), "says `clustering`"),
    "a format": (lambda one: one.update(format="pickle"), "says `pickle`"),
    "a type": (lambda one: one["signature"].update(inputs=[{"name": "text", "dtype": "blob"}]), "says `blob`"),
    "a number": (lambda one: one.update(number=2**63), "is that of"),
    "a name": (lambda one: one.update(name="../words"), "is that of"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_manifest_that_says_what_nobody_knows_is_told(root: Path, name: str) -> None:
    assert load(root).pinned["models:/words@champion"].number == 1
    edit, said = EDITS[name]
    edited(root, edit)
    with pytest.raises(ProjectError, match=said):
        load(root)


@pytest.mark.parametrize(
    "content", [b"", b"null", b"\xff", b'{"type": "model.1", "name": "\xff"}', b'{"x": ' + b"[" * 100_000],
    ids=["empty", "null", "bytes", "no UTF-8", "deep"],
)  # fmt: skip
def test_a_manifest_that_is_none_is_told(root: Path, content: bytes) -> None:
    (model(root) / "1" / "model.json").write_bytes(content)
    with pytest.raises(ProjectError, match="manifest cannot be read"):
        load(root)


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b'{"type": "aliases.1", "aliases": {"\xff": 1}}',
                b'{"type": "aliases.1", "aliases": {"champion": "../../1"}}'],
    ids=["empty", "bytes", "no UTF-8", "a path"],
)  # fmt: skip
def test_damaged_aliases_are_not_taken_for_none(root: Path, content: bytes) -> None:
    (model(root) / "aliases.json").write_bytes(content)
    with pytest.raises(ProjectError, match="aliases cannot be read"):
        load(root)


@pytest.mark.parametrize("number", [0, -1, 7, 10**30])
def test_an_alias_at_no_version_is_told(root: Path, number: int) -> None:
    (model(root) / "aliases.json").write_text(json.dumps({"type": "aliases.1", "aliases": {"champion": number}}))
    with pytest.raises(ProjectError, match="does not exist"):
        load(root)


def test_ten_thousand_columns_are_met_in_one_pass(root: Path) -> None:
    """At 10,000 columns a look at each column for each column takes seconds."""
    reads = 0

    class Counted(tuple[Column, ...]):
        def __iter__(self) -> Any:
            nonlocal reads
            reads += 1
            return super().__iter__()

    columns = Counted(Column(name=f"c{number}", dtype="float") for number in range(10_000))
    signature = Signature(task="classification", inputs=columns, target="intent", labels=("a", "b"))
    with pytest.raises(Misfits):
        fit(signature, load(root).workflows["words"])
    assert reads < 10
