"""A Dataset is made whole and numbered, or not at all; its hash is of what it says; its lineage is kept."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from dataset_samples import NOW_NS, Place

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.lineage import MadeV1
from drivetrain.datasets import DatasetRefused, FromFile, FromQuery, parquet_paths, parse_schema
from support.tries import PATIENCE_S

pytestmark = pytest.mark.slow

CSV = (
    "id,name,price,ok,at,day,zip,extra\n"
    '1,"a, ""b""",1.5,true,2026-01-01T00:00:00Z,2026-01-01,007,"{""a"":[1,2]}"\n'
    "2,naïve,-3,FALSE,2026-01-01T01:30:00+01:00,2026-02-28,12345,5\n"
    "3,,,,,,,\n"
)
ROWS = [
    (1, 'a, "b"', 1.5, True, 1_767_225_600_000_000, "2026-01-01", "007", '{"a":[1,2]}'),
    (2, "naïve", -3.0, False, 1_767_227_400_000_000, "2026-02-28", "12345", "5"),
    (3, None, None, None, None, None, None, None),
]
TYPES = ["int64", "string", "float64", "bool", "timestamp", "date", "string", "json"]
EXTRA = {"others": "infer", "columns": {"extra": {"type": "json"}}}


def sources(place: Place) -> dict[str, str]:
    """The same rows as CSV, JSON lines and Parquet."""
    names = CSV.partition("\n")[0].split(",")
    lines = []
    for row in ROWS:
        one: dict[str, Any] = dict(zip(names, row, strict=True))
        one["at"] = {1: "2026-01-01T00:00:00Z", 2: "2026-01-01T01:30:00+01:00"}.get(row[0])
        one["extra"] = json.loads(one["extra"]) if one["extra"] else None
        lines.append(json.dumps({name: value for name, value in one.items() if value is not None}))
    place.file("x.csv", CSV)
    place.file("x.jsonl", "\n".join(lines) + "\n")
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'Asia/Tokyo'")
        columns = (
            'id BIGINT, name VARCHAR, price DOUBLE, ok BOOLEAN, "at" TIMESTAMPTZ, day DATE, zip VARCHAR, extra JSON'
        )
        connection.execute(f"CREATE TABLE x ({columns})")
        for row in ROWS:
            connection.execute("INSERT INTO x VALUES (?, ?, ?, ?, make_timestamptz(?::BIGINT), ?, ?, ?)", list(row))
        connection.execute(f"COPY x TO '{place.root / 'x.parquet'}' (FORMAT parquet, COMPRESSION gzip)")
    return {"csv": "x.csv", "jsonl": "x.jsonl", "parquet": "x.parquet"}


def test_the_same_rows_have_the_same_types_and_hash_from_every_format(tmp_path: Path) -> None:
    place = Place(tmp_path)
    hashes = set()
    for name, file in sources(place).items():
        made = place.datasets.create(name, FromFile(file), declared=parse_schema(EXTRA)).dataset
        columns = made.schema.columns
        assert {column.name: column.type for column in columns} == dict(
            zip(CSV.partition("\n")[0].split(","), TYPES, strict=True)
        )
        by_id = {row["id"]: row for row in place.datasets.rows(name)}
        names = CSV.partition("\n")[0].split(",")
        assert [tuple(by_id[row[0]][one] for one in names) for row in ROWS] == ROWS
        if [column.name for column in columns] == names:
            hashes.add(made.content_hash)
        assert made.newest == {"at": 1_767_227_400_000_000}
        assert place.datasets.verify(name).whole
    assert len(hashes) == 1


def test_the_hash_follows_every_value_the_order_and_the_types(tmp_path: Path) -> None:
    place = Place(tmp_path)
    texts = [
        "a,b\n1,2\n3,4\n",
        "a,b\n3,4\n1,2\n",
        "a,b\n1,2\n3,5\n",
        "a,c\n1,2\n3,4\n",
        "a,b\n1,2\n3,\n",
        "b,a\n1,2\n3,4\n",
    ]
    hashes = [
        place.datasets.create("x", FromFile(place.file("x.csv", text))).dataset.content_hash for text in texts + texts
    ]
    assert len(set(hashes)) == len(texts)
    assert hashes[: len(texts)] == hashes[len(texts) :]
    as_text = parse_schema({"columns": {"a": {"type": "string"}, "b": {"type": "string"}}})
    place.file("x.csv", texts[0])
    assert place.datasets.create("x", FromFile("x.csv"), declared=as_text).dataset.content_hash not in hashes


def test_a_type_is_inferred_from_all_rows_and_loses_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path)
    columns = {
        "late": ["1"] * 20_000 + ["x"],
        "zero": ["0"] * 20_000 + ["007"],
        "long": ["1"] * 20_000 + ["12345678901234567890"],
        "phone": ["5"] * 20_000 + ["+49301"],
        "number": ["1"] * 20_000 + ["2.5"],
        "whole": ["1"] * 20_000 + ["-2"],
        "empty": [""] * 20_001,
    }
    text = ",".join(columns) + "\n" + "".join(",".join(row) + "\n" for row in zip(*columns.values(), strict=True))
    made = place.datasets.create("x", FromFile(place.file("x.csv", text))).dataset
    assert [column.type for column in made.schema.columns] == [
        "string", "string", "string", "string", "float64", "int64", "string",
    ]  # fmt: skip
    assert made.rows == 20_001


def test_numbers_rise_and_each_keeps_its_rows_and_its_lineage(tmp_path: Path) -> None:
    place = Place(tmp_path)
    for text in ("a\n1\n", "a\n1\n2\n"):
        place.datasets.create("golden", FromFile(place.file("x.csv", text)))
    assert place.datasets.numbers("golden") == [1, 2]
    assert [row["a"] for row in place.datasets.rows("golden@1")] == [1]
    assert [row["a"] for row in place.datasets.rows("golden")] == [1, 2]
    assert [one.number for one in place.datasets.newest()] == [2]
    records = [(one.kind, one.actor, one.subject) for one in place.log.kept]
    assert records == [("made", "tester", "dataset:golden@1"), ("made", "tester", "dataset:golden@2")]
    made = msgspec.json.decode(place.log.kept[1].body, type=MadeV1)
    dataset = place.datasets.show("golden")
    assert made.at_ns == dataset.made_ns == NOW_NS
    assert made.facts == {"rows": 2, "content_hash": dataset.content_hash}
    assert made.inputs == dataset.inputs
    assert made.inputs[0].startswith("file:x.csv@")
    paths = parquet_paths(place.objects)
    assert sorted(paths) == ["golden", "golden@1", "golden@2"]
    assert paths["golden"] == paths["golden@2"] != paths["golden@1"]
    with duckdb.connect() as connection:
        assert place.datasets.relation(connection, "golden@1").fetchall() == [(1,)]


@pytest.mark.parametrize("name", ["Golden", "", "a/b", "../x", "golden@1", "x" * 65])
def test_a_name_is_checked(tmp_path: Path, name: str) -> None:
    place = Place(tmp_path)
    with pytest.raises(DrivetrainError, match="no name for a Dataset"):
        place.datasets.create(name, FromFile(place.file("x.csv", "a\n1\n")))


def test_an_unknown_dataset_number_or_split_names_the_nearest(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.datasets.create("golden", FromFile(place.file("x.csv", "a\n1\n")))
    for given, said in (
        ("goldn", "Did you mean `golden`"),
        ("golden@7", "Its numbers: 1"),
        ("a b", "names no Dataset"),
    ):
        with pytest.raises(DrivetrainError, match=said):
            place.datasets.show(given)
    with pytest.raises(DrivetrainError, match="has no split `train`"):
        list(place.datasets.rows("golden", split="train"))
    with pytest.raises(DrivetrainError, match="no lake"):
        place.datasets.create("golden", FromQuery("select 1"))


def test_two_creators_at_once_get_two_numbers(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.file("x.csv", "a\n1\n")
    made, failed = [], []

    def create() -> None:
        try:
            made.append(place.datasets.create("golden", FromFile("x.csv")).dataset.number)
        except Exception as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    class Slow:
        """All look for the next number before any takes it."""

        together = threading.Barrier(4)

        def __getattr__(self, name: str) -> Any:
            return getattr(place.objects, name)

        def list(self, prefix: str) -> list[str]:
            found = place.objects.list(prefix)
            self.together.wait(PATIENCE_S)
            return found

    place.datasets = place.over(Slow())
    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert sorted(made) == [1, 2, 3, 4]
    state = place.state()
    assert len([path for path in state if path.endswith("rows.parquet") or "rows-" in path]) == 4


class Failing:
    """A store that fails at its n-th writing, and leaves half of what it was given."""

    def __init__(self, place: Place, at: int) -> None:
        self.objects, self.left = place.objects, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objects, name)

    def _turn(self) -> bool:
        self.left -= 1
        return self.left < 0

    def put_file(self, path: str, source: Path) -> None:
        if self._turn():
            self.objects.put(path, source.read_bytes()[:100])
            raise OSError(28, "No space left on device")
        self.objects.put_file(path, source)

    def put(self, path: str, content: bytes, *, new: bool = False) -> None:
        if self._turn():
            raise OSError(28, "No space left on device")
        self.objects.put(path, content, new=new)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path: Path, at: int) -> None:
    place = Place(tmp_path)
    place.datasets.create("golden", FromFile(place.file("x.csv", "a,b\n1,2\n")))
    before = place.state()
    file = place.file("y.csv", "a,b\n1,x\n3,4\n5,y\n")
    schema = parse_schema({"columns": {"a": {"type": "int64"}, "b": {"type": "int64"}}})
    with pytest.raises(DrivetrainError, match="No space left on device"):
        place.over(Failing(place, at)).create("golden", FromFile(file), declared=schema, allow_quarantine=True)
    assert place.state() == before
    assert place.datasets.create("golden", FromFile(file), declared=schema, allow_quarantine=True).dataset.number == 2


def test_what_the_control_log_refuses_was_never_made(tmp_path: Path) -> None:
    place = Place(tmp_path)
    file = place.file("x.csv", "a\n1\n")
    before = place.state()
    place.log.failing = DrivetrainError("The control log was tampered with.")
    with pytest.raises(DrivetrainError, match="tampered"):
        place.datasets.create("golden", FromFile(file))
    assert place.state() == before


ORDERS = "id,who,amount,state,at\n1,ada,5,open,2025-12-31T00:00:00Z\n2,bob,7.5,done,2025-12-30T00:00:00Z\n"
SCHEMA: dict[str, Any] = {
    "unique": [["who", "at"]],
    "columns": {
        "id": {"type": "int64", "nullable": False, "unique": True},
        "who": {"type": "string", "pattern": "[a-z]+", "references": "people@1.name", "personal": True},
        "amount": {"type": "float64", "minimum": 0, "maximum": 100},
        "state": {"type": "string", "values": ["open", "done"]},
        "at": {"type": "timestamp", "minimum": "2025-01-01T00:00:00Z", "fresh_within": "2d"},
    },
}


def with_people(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.datasets.create("people", FromFile(place.file("people.csv", "name\nada\nbob\nEve\n")))
    return place


def test_each_constraint_finds_its_violation(tmp_path: Path) -> None:
    place = with_people(tmp_path)
    good = place.datasets.create("orders", FromFile(place.file("x.csv", ORDERS)), declared=parse_schema(SCHEMA)).dataset
    assert "dataset:people@1" in good.inputs
    assert place.datasets.verify("orders").whole
    bad = [
        (",ada,5,open,2025-12-29T00:00:00Z", "id", "nullable"),
        ("1,ada,5,open,2025-12-28T00:00:00Z", "id", "unique"),
        ("4,ADA,5,open,2025-12-27T00:00:00Z", "who", "pattern [a-z]+"),
        ("5,zoe,5,open,2025-12-26T00:00:00Z", "who", "references people@1.name"),
        ("6,ada,-1,open,2025-12-25T00:00:00Z", "amount", "minimum 0"),
        ("7,ada,101,open,2025-12-24T00:00:00Z", "amount", "maximum 100"),
        ("8,ada,5,gone,2025-12-23T00:00:00Z", "state", "values 'open', 'done'"),
        ("9,ada,5,open,2024-12-31T00:00:00Z", "at", "minimum 2025-01-01T00:00:00Z"),
        ("10,bob,5,open,2025-12-30T00:00:00Z", "who, at", "unique"),
    ]
    text = ORDERS + "".join(f"{row}\n" for row, _, _ in bad)
    before = place.state()
    with pytest.raises(DatasetRefused) as caught:
        place.datasets.create("orders", FromFile(place.file("y.csv", text)), declared=parse_schema(SCHEMA))
    assert place.state() == before
    found = {(one.row, one.column, one.constraint) for one in caught.value.violations}
    wanted = {(row, column, constraint) for row, (_, column, constraint) in enumerate(bad, 3)}
    twice = {(1, "id", "unique"), (2, "who, at", "unique"), (5, "who", "references people@1.name")}
    assert found == wanted | twice
    stale = ORDERS.replace("2025-12-31", "2025-12-29").replace("12-30", "12-28")
    with pytest.raises(DatasetRefused, match="column at: '2025-12-29T00:00:00") as caught:
        place.datasets.create(
            "orders", FromFile(place.file("z.csv", stale)), declared=parse_schema(SCHEMA), allow_quarantine=True
        )
    assert caught.value.violations[0].constraint == "fresh_within 2d"


def test_quarantine_takes_the_bad_rows_and_lists_each_reason(tmp_path: Path) -> None:
    place = with_people(tmp_path)
    text = (
        ORDERS
        + "3,zoe,-1,open,2025-12-29T00:00:00Z\n4,ada,2,done,2025-12-28T00:00:00Z\n2,bob,1,open,2025-12-01T00:00:00Z\n"
    )
    created = place.datasets.create(
        "orders", FromFile(place.file("x.csv", text)), declared=parse_schema(SCHEMA), allow_quarantine=True
    )
    made = created.dataset
    # Neither of the two rows with id 2 is known to be the right one.
    assert [row["id"] for row in place.datasets.rows("orders")] == [1, 4]
    assert made.quarantine is not None
    assert (made.quarantine.rows, made.quarantine.violations) == (3, 4)
    local = place.objects.local(made.quarantine.file.path)
    with duckdb.connect() as connection:
        rows = connection.execute(f'SELECT "row", "column", "constraint", "value" FROM \'{local}\'').fetchall()
    assert rows == [
        (2, "id", "unique", "2"),
        (3, "amount", "minimum 0", "-1.0"),
        (3, "who", "references people@1.name", "zoe"),
        (5, "id", "unique", "2"),
    ]
    assert [(one.row, one.column, one.constraint, one.value) for one in created.quarantined] == rows
    assert place.datasets.verify("orders").whole


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"columns": {"x": {"type": "int"}}}, "`columns.x.type` is one of int64"),
        ({"columns": {"x": {"type": "int64", "minimun": 1}}}, "Did you mean `minimum`"),
        ({"columns": {"x": {"type": "int64", "minimum": "a"}}}, "`columns.x.minimum` is no int64"),
        ({"columns": {"x": {"type": "string", "minimum": 1}}}, "holds for int64"),
        ({"columns": {"x": {"type": "string", "pattern": "("}}}, "no regular expression"),
        ({"columns": {"x": {"type": "string", "references": "people.name"}}}, "DATASET@NUMBER.COLUMN"),
        ({"columns": {"x": {"type": "int64", "fresh_within": "2d"}}}, "holds for timestamp"),
        ({"columns": {"x": {"type": "bool", "values": ["yes"]}}}, "is no bool"),
        ({"columns": {"x": {"type": "timestamp", "minimum": "2026-01-01"}}}, "is no timestamp"),
        ({"timezone": "Europe/Berlin"}, 'can only be "UTC"'),
        ({"unique": [["y"]]}, "`unique` names `y`"),
        ({"colums": {}}, "Did you mean `columns`"),
    ],
)
def test_a_schema_with_a_mistake_says_which(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(DrivetrainError, match=said.replace("(", "\\(").replace(")", "\\)")):
        parse_schema(schema)


def test_schema_and_rows_must_have_the_same_columns(tmp_path: Path) -> None:
    place = Place(tmp_path)
    file = place.file("x.csv", "a,b\n1,2\n")
    for schema, said in (
        ({"columns": {"a": {"type": "int64"}}}, "The rows have column `b`, and the schema does not"),
        ({"columns": {"z": {"type": "int64"}}}, "The schema has column `z`, and the rows do not"),
    ):
        with pytest.raises(DrivetrainError, match=said):
            place.datasets.create("x", FromFile(file), declared=parse_schema(schema))
    dropped = parse_schema({"others": "drop", "columns": {"a": {"type": "int64"}}})
    place.datasets.create("x", FromFile(file), declared=dropped)
    assert list(place.datasets.rows("x")) == [{"a": 1}]
    inferred = parse_schema({"others": "infer", "columns": {"b": {"type": "string"}}})
    place.datasets.create("x", FromFile(file), declared=inferred)
    assert list(place.datasets.rows("x")) == [{"a": 1, "b": "2"}]


def test_typed_columns_keep_what_they_hold(tmp_path: Path) -> None:
    """Sums, decimals, lists and structs, over several row groups of the other version of Parquet's pages."""
    place = Place(tmp_path)
    sql = (
        "SELECT range AS id, 9007199254740993::DECIMAL(38, 0) AS large, range::DECIMAL(9, 2) / 4 AS price, "
        "[range, NULL] AS many, {'a': range} AS inner, "
        "'x'::ENUM ('x', 'y') AS kind, NULL::INTEGER AS nothing FROM range(5000)"
    )
    with duckdb.connect() as connection:
        options = "(FORMAT parquet, PARQUET_VERSION v2, ROW_GROUP_SIZE 2048)"
        connection.execute(f"COPY ({sql}) TO '{place.root / 'x.parquet'}' {options}")
    made = place.datasets.create("x", FromFile("x.parquet")).dataset
    assert [column.type for column in made.schema.columns] == [
        "int64", "int64", "float64", "json", "json", "string", "int64",
    ]  # fmt: skip
    rows = list(place.datasets.rows("x"))
    assert rows[3] == {
        "id": 3, "large": 9_007_199_254_740_993, "price": 0.75, "many": "[3,null]", "inner": '{"a":3}', "kind": "x",
        "nothing": None,
    }  # fmt: skip
    assert [row["id"] for row in rows] == list(range(5_000))
    assert place.datasets.verify("x").whole


def test_a_damaged_number_keeps_nobody_from_the_others(tmp_path: Path) -> None:
    place = Place(tmp_path)
    for name in ("one", "two", "two"):
        place.datasets.create(name, FromFile(place.file("x.csv", "a\n1\n")))
    (place.store / "datasets/two/2/manifest.json").write_text("{")
    assert sorted(parquet_paths(place.objects)) == ["one", "one@1", "two@1"]
