"""What is made is compared, proved and exported: every change is found, and nothing is written by halves."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from dataset_samples import Place

from drivetrain.core.datasets import SampleV1, SplitV1
from drivetrain.core.errors import DrivetrainError
from drivetrain.datasets import FromFile, parse_schema

pytestmark = pytest.mark.slow

SCHEMA = parse_schema(
    {
        "others": "infer",
        "columns": {"id": {"type": "int64", "unique": True}, "mail": {"type": "string", "personal": True}},
    }
)
ONE = "id,mail,label,note\n1,a@x,spam,=1\n2,b@x,ham,\n3,c@x,ham,plain\n"
TWO = "id,mail,label,score\n2,b@x,spam,1\n3,c@x,ham,2\n4,d@x,spam,3\n5,e@x,spam,4\n"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    for text in (ONE, TWO):
        place.datasets.create("golden", FromFile(place.file("x.csv", text)), declared=SCHEMA)
    return place


def test_diff_tells_columns_rows_and_labels(place: Place) -> None:
    found = place.datasets.diff("golden@1", "golden@2", label="label")
    assert (found.columns_added, found.columns_removed, found.columns_changed) == (("score",), ("note",), ())
    assert found.key == ("id",)
    assert (found.added, found.removed, found.changed, found.moved) == (2, 1, 1, None)
    assert (found.keys_added, found.keys_removed, found.keys_changed) == (("4", "5"), ("1",), ("2",))
    assert [(one.value, one.before, one.after) for one in found.labels["label"]] == [("spam", 1, 3), ("ham", 2, 1)]
    assert not found.is_same
    assert place.datasets.diff("golden@1", "golden@1").is_same
    stricter = parse_schema({"others": "infer", "columns": {"id": {"type": "float64", "minimum": 0}}})
    place.datasets.create("golden", FromFile(place.file("x.csv", ONE)), declared=stricter)
    changed = place.datasets.diff("golden@1", "golden@3", key=["note"]).columns_changed
    assert "id: type 'int64' -> 'float64'" in changed
    assert "mail: personal True -> False" in changed
    with pytest.raises(DrivetrainError, match="Did you mean `label`"):
        place.datasets.diff("golden@1", "golden@2", label="lable")


def test_diff_without_a_key_counts_copies(tmp_path: Path) -> None:
    place = Place(tmp_path)
    for name, text in (("one", "a\n1\n1\n2\n"), ("two", "a\n1\n2\n3\n")):
        place.datasets.create(name, FromFile(place.file("x.csv", text)))
    found = place.datasets.diff("one", "two")
    assert (found.key, found.added, found.removed, found.changed) == ((), 1, 1, 0)


def test_diff_counts_rows_that_moved_to_another_split(tmp_path: Path) -> None:
    place = Place(tmp_path)
    file = place.file("x.csv", "id\n" + "".join(f"{n}\n" for n in range(200)))
    for seed in (1, 2):
        split = SplitV1(shares=(("train", 0.5), ("test", 0.5)), key=("id",), seed=seed)
        place.datasets.create("x", FromFile(file), split=split)
    one, two = ({row["id"]: row["split"] for row in place.datasets.rows(f"x@{n}")} for n in (1, 2))
    assert place.datasets.diff("x@1", "x@2").moved == sum(one[key] != two[key] for key in one) > 0


def changed_manifest(place: Place, **fields: Any) -> None:
    path = place.store / "datasets/golden/2/manifest.json"
    manifest = json.loads(path.read_bytes())
    path.write_text(json.dumps({**manifest, **fields}))


def test_verify_finds_each_change(place: Place) -> None:
    assert place.datasets.verify("golden").whole
    (rows,) = place.datasets.show("golden").files
    path = place.store / rows.path
    whole = path.read_bytes()

    def findings() -> str:
        found = place.datasets.verify("golden")
        assert not found.whole
        return "\n".join(found.findings)

    path.write_bytes(whole[:-1] + b"x")
    assert "was changed: its SHA-256 is another" in findings()
    path.write_bytes(whole[:-20])
    assert "bytes, and had" in findings()
    path.unlink()
    assert "is missing" in findings()
    kept = place.root / "kept.parquet"
    kept.write_bytes(whole)
    changed = "* REPLACE (CASE WHEN id = 5 THEN 'ham' ELSE label END AS label)"
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT {changed} FROM '{kept}') TO '{path}' (FORMAT parquet)")
    told = findings()
    assert "SHA-256" in told or "bytes" in told
    assert "the hash of its rows is another" in told
    # With the manifest changed too, the control log still knows better.
    file = msgspec.to_builtins(rows)
    again = place.datasets.verify("golden")
    assert again.rows == 4
    _forge(place, path, file)
    assert findings() == "Its manifest is not what record 2 of the control log says was made."
    path.write_bytes(whole)


def _forge(place: Place, path: Path, file: dict[str, Any]) -> None:
    """A manifest that fits the changed rows in every way that a manifest can."""
    from drivetrain.datasets.content import content_hash
    from drivetrain.datasets.numbers import file_hash
    from drivetrain.datasets.staging import open_bench

    dataset = place.datasets.show("golden")
    with open_bench(place.scratch) as bench:
        content = content_hash(bench, dataset.all_columns, f"FROM read_parquet('{path}')")
    changed_manifest(
        place,
        content_hash=content,
        files=[{**file, "bytes": path.stat().st_size, "sha256": file_hash(path)}],
    )


def test_verify_holds_the_rows_against_the_constraints_again(place: Place) -> None:
    manifest = json.loads((place.store / "datasets/golden/2/manifest.json").read_bytes())
    manifest["schema"]["columns"][3]["maximum"] = 3
    changed_manifest(place, schema=manifest["schema"])
    (finding,) = place.datasets.verify("golden").findings
    assert finding == "1 violations of its schema, the first: row 4, column score: '4' violates maximum 3."


def test_verify_of_a_dataset_that_nobody_noted(place: Place) -> None:
    place.log.kept.clear()
    assert place.datasets.verify("golden").findings == ("The control log does not know that it was made.",)


def test_a_manifest_that_is_none_is_an_error(place: Place) -> None:
    path = place.store / "datasets/golden/2/manifest.json"
    for content in (b"{", b"\xff", b'{"type": "dataset.9"}', path.read_bytes().replace(b'"golden"', b'"silver"')):
        path.write_bytes(content)
        with pytest.raises(DrivetrainError, match=r"manifest datasets/golden/2/manifest.json"):
            place.datasets.show("golden")


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_an_export_has_the_rows_and_is_noted(place: Place, format: str) -> None:
    place.file("x.csv", ONE)
    sampled = place.datasets.create("some", FromFile("x.csv"), declared=SCHEMA, sampling=SampleV1(rows=3)).dataset
    out = place.root / f"out.{format}"
    done = place.datasets.export("some", out, format=format, personal=False)
    assert (done.rows, done.columns, done.left_out) == (3, ("id", "label", "note", "weight"), ("mail",))
    assert "a@x" not in out.read_bytes().decode("latin-1")
    if format == "csv":
        assert list(csv.reader(out.open()))[1] == ["1", "spam", "'=1", "1.0"]
    elif format == "jsonl":
        assert json.loads(out.read_text().splitlines()[1]) == {"id": 2, "label": "ham", "note": None, "weight": 1.0}
    else:
        place.datasets.create("back", FromFile(out.name))
        assert [row["id"] for row in place.datasets.rows("back")] == [1, 2, 3]
        assert place.datasets.diff("some", "back", key=["id"]).columns_removed == ("mail",)
    record = place.log.kept[3]
    assert (record.kind, record.actor, record.subject) == ("exported", "tester", sampled.artifact)
    body = json.loads(record.body)
    assert body == {
        "format": format, "rows": 3, "sha256": done.sha256, "personal": False, "split": "", "to": out.name,
    }  # fmt: skip


def test_an_export_is_whole_or_not_there_and_replaces_nothing(place: Place) -> None:
    taken = place.root / "taken.csv"
    taken.write_text("mine")
    for to, format, said in (
        (taken, "csv", "there already"),
        (place.root / "no/such/folder.csv", "csv", "cannot be written"),
        (place.root / "x.xlsx", "xlsx", "no format"),
    ):
        with pytest.raises(DrivetrainError, match=said):
            place.datasets.export("golden", to, format=format)
    place.log.failing = DrivetrainError("The control log is full.")
    with pytest.raises(DrivetrainError, match="is full"):
        place.datasets.export("golden", place.root / "new.csv", format="csv")
    assert taken.read_text() == "mine"
    assert not [path for path in place.root.iterdir() if path.name not in ("x.csv", "taken.csv")]
    assert len(place.log.kept) == 2
