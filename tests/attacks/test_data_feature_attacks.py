"""Attacks on features: sources, labels and pushes that lie, and functions that misbehave.

Proved elsewhere: as-of joins, wrong types of a CSV's columns, files that are none, foreign fingerprints, atomic swaps
(features). Here: what gets past a type, what poisons a source for ever, and paths and queries that leave the project.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from drivetrain.core.errors import DrivetrainError
from drivetrain.embedded.feature_store import feature_store
from drivetrain.features.store import FeatureStore
from drivetrain.ports.online import STRING_BYTES_MAX

pytestmark = pytest.mark.slow

AT = "2026-01-05T00:00:00Z"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
GOOD = f"customer,event_timestamp,x\na,{AT},1\nb,{AT},0\n"
VIEW = """
view = dt.FeatureView("view", entities=[customer], source=dt.FileSource({path!r}), schema=[dt.Field("x", {dtype!r})])
inputs = dt.FeatureService("inputs", features=[view])
"""
QUERY = """
view = dt.FeatureView("view", entities=[customer], source=dt.SqlSource("q", query={query!r}),
                      schema=[dt.Field("x", str)])
"""
PUSH = """
clicks = dt.PushSource("clicks", schema=[dt.Field("n", int), dt.Field("page", str), dt.Field("at", "timestamp")])
view = dt.FeatureView("view", entities=[customer], source=clicks,
                      schema=[dt.Field("n", int), dt.Field("page", str), dt.Field("at", "timestamp")])
inputs = dt.FeatureService("inputs", features=[view])
"""
FUNCTION = """
view = dt.FeatureView("view", entities=[customer], source=dt.FileSource("rows.csv"), schema=[dt.Field("x", int)])

@dt.on_demand_feature_view(sources=[view, dt.RequestSource("asked", schema=[dt.Field("when", "timestamp")])],
                           schema=[dt.Field("y", float)])
def made(row):
    BODY

inputs = dt.FeatureService("inputs", features=[view, made])
"""

Make = Callable[..., FeatureStore]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A project in `tmp_path/project` that declares this, beside these files."""
    root = tmp_path / "project"

    def made(declared: str, files: dict[str, str | bytes] | None = None) -> FeatureStore:
        (root / "features").mkdir(parents=True, exist_ok=True)
        (root / "drivetrain.toml").write_text('[project]\nname = "attacked"\n')
        (root / "features" / "declared.py").write_text(
            f'import drivetrain as dt\ncustomer = dt.Entity("customer")\n{declared}'
        )
        for name, content in (files or {}).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return feature_store(root)

    return made


def kept(store: FeatureStore) -> dict[str, str]:
    """Every file of the lake and of the online vectors."""
    folder = store.snapshot.data_folder
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in ("lake", "online")
        for path in sorted((folder / part).rglob("*"))
        if path.is_file() and "lock" not in path.name
    }


def refused(store: FeatureStore, ask: Callable[[], object]) -> str:
    """What the error says; every vector and table is as it was."""
    before = kept(store)
    with pytest.raises(DrivetrainError) as caught:
        ask()
    assert kept(store) == before
    return str(caught.value)


def parquet(folder: Path, sql: str) -> bytes:
    path = folder / "made.parquet"
    with duckdb.connect() as connection:
        connection.execute(f"COPY ({sql}) TO '{path}' (FORMAT parquet)")
    return path.read_bytes()


# What gets past a type.


@pytest.mark.parametrize(
    ("dtype", "rows", "said"),
    [
        ("int64", f"a,{AT},1\nb,infinity,2\n", "row 2, column `event_timestamp`: 'infinity'"),
        ("int64", f"a,{AT},1\nb,05/01/2026,2\n", "row 2, column `event_timestamp`: '05/01/2026'"),
        ("int64", f"a,{AT},1\nb,1767571200,2\n", "row 2, column `event_timestamp`: '1767571200'"),
        ("timestamp", f"a,{AT},{AT}\nb,{AT},-infinity\n", "row 2, column `x`: '-infinity'"),
        ("int64", f"a,{AT},nan\n", "row 1, column `x`: 'nan'"),
        ("int64", f"a,{AT},9223372036854775808\n", "row 1, column `x`: '9223372036854775808'"),
    ],
)
def test_a_value_that_is_none_is_named_and_no_vector_changes(make: Make, dtype: str, rows: str, said: str) -> None:
    good = GOOD if dtype == "int64" else f"customer,event_timestamp,x\na,{AT},{AT}\n"
    store = make(VIEW.format(path="rows.csv", dtype=dtype), {"rows.csv": good})
    store.materialize_incremental()
    make(VIEW.format(path="rows.csv", dtype=dtype), {"rows.csv": f"customer,event_timestamp,x\n{rows}"})
    assert said in refused(store, store.materialize_incremental)
    labels = [{"customer": "b", "event_timestamp": NOW}]
    assert said in refused(store, lambda: store.get_historical_features(labels, "inputs"))


@pytest.mark.parametrize(
    ("dtype", "value", "said"),
    [
        ("bool", "5", "no bool: row 1, column `x`: '5'"),
        ("timestamp", "timestamptz 'infinity'", "no timestamp: row 1, column `x`: 'infinity'"),
        ("int64", "'inf'::double", "no int64: row 1, column `x`: 'inf'"),
        ("int64", "1e30", "no int64"),
    ],
)
def test_a_parquet_column_of_another_type_is_never_turned_into_one(
    make: Make, tmp_path: Path, dtype: str, value: str, said: str
) -> None:
    content = parquet(tmp_path, f"SELECT 'a' AS customer, timestamptz '2026-01-05' AS event_timestamp, {value} AS x")
    store = make(VIEW.format(path="rows.parquet", dtype=dtype), {"rows.parquet": content})
    assert said in refused(store, store.materialize_incremental)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"customer,event_timestamp,x,x\na,{AT},1,2\n", "has the column `x` twice"),
        (f"customer,event_timestamp,x,X\na,{AT},1,2\n", "has the column `X` twice"),
        (f"customer,event_timestamp,x\ra,{AT},1\r", "carriage return without a line feed"),
        (f"customer,event_timestamp,x\na,{AT},1\n".encode("utf-16"), "is no UTF-8 text"),
        (f"customer,event_timestamp,x\n{'b' * 5_000_000},{AT},2\n", "cannot be read"),
    ],
)
def test_a_csv_file_that_could_be_read_in_two_ways_is_read_in_none(make: Make, content: str | bytes, said: str) -> None:
    store = make(VIEW.format(path="rows.csv", dtype="int64"), {"rows.csv": content})
    told = refused(store, store.materialize_incremental)
    assert said in told
    assert len(told) < 2_000


@pytest.mark.parametrize("count", [b"\x92\x4e", b"\x8e\x4e"], ids=["more", "fewer"])
def test_a_parquet_file_whose_footer_lies_about_its_rows_is_no_source_and_no_labels(
    make: Make, tmp_path: Path, count: bytes
) -> None:
    """The footer says 5,001 or 4,999 wherever it counts, and the pages hold 5,000."""
    rows = "SELECT 'c' || i AS customer, timestamptz '2026-01-05' AS event_timestamp, i AS x FROM range(5000) t(i)"
    whole = parquet(tmp_path, rows)
    store = make(VIEW.format(path="rows.parquet", dtype="int64"), {"rows.parquet": whole})
    store.materialize_incremental()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    lying = whole[:footer] + whole[footer:].replace(b"\x90\x4e", count)  # zigzag of 5,000
    assert lying != whole
    make(VIEW.format(path="rows.parquet", dtype="int64"), {"rows.parquet": lying, "labels.parquet": lying})
    assert "cannot be read: `rows.parquet`" in refused(store, store.materialize_incremental)
    labels = store.snapshot.root / "labels.parquet"
    told = refused(store, lambda: store.get_historical_features(labels, ["view:x"], full_feature_names=True))
    assert "The labels cannot be read: `labels.parquet`" in told


# Pushes.


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"customer": "a", "page": "x" * (STRING_BYTES_MAX + 1)}, "row 2, column `page`: it has 1,048,577 bytes"),
        ({"customer": "x" * 70_000, "n": 1}, "row 2: its join keys have more than 60,000 bytes"),
        ({"customer": "a", "page": "\ud800"}, "row 2, column `page`: half of a surrogate pair"),
        ({"customer": "\ud800"}, "row 2, column `customer`: half of a surrogate pair"),
        ({"customer": "a", "at": "0001-01-01T00:00:00+14:00"}, "row 2, column `at`"),
        ({"customer": "a", "event_timestamp": "0001-01-01T00:00:00+14:00"}, "row 2, column `event_timestamp`"),
        ({"customer": "a", "n": float("nan")}, "row 2, column `n`: 'nan'"),
        ({5: 1}, "row 2: no column `5`"),
        (None, "row 2 is a NoneType"),
    ],
)
def test_a_push_with_one_bad_row_leaves_nothing_and_the_source_whole(make: Make, row: Any, said: str) -> None:
    store = make(PUSH)
    store.push("clicks", [{"customer": "a", "n": 1}])
    assert said in refused(store, lambda: store.push("clicks", [{"customer": "b", "n": 2}, row]))
    store.materialize_incremental()
    assert store.get_online_features("inputs", [{"customer": "a"}, {"customer": "b"}]).to_dict()["n"] == [1, None]


def test_of_rows_pushed_for_one_moment_calls_see_the_one_that_training_sees(make: Make) -> None:
    store = make(PUSH)
    store.push("clicks", [{"customer": "a", "n": 9}, {"customer": "a", "n": None}, {"customer": "a", "n": 1}])
    same = {"customer": "b", "event_timestamp": AT, "created_timestamp": AT}
    for n in (2, 7, 3):
        store.push("clicks", [{**same, "n": n}])
    seen = store.get_online_features("inputs", [{"customer": "a"}, {"customer": "b"}]).to_dict()["n"]
    labels = [{"customer": name, "event_timestamp": datetime.now(UTC)} for name in "ab"]
    assert seen == store.get_historical_features(labels, "inputs").column("n").to_pylist() == [9, 7]
    store.materialize_incremental()
    assert store.get_online_features("inputs", [{"customer": "a"}, {"customer": "b"}]).to_dict()["n"] == seen


PARTS = """
rows = dt.FeatureView("rows", entities=[customer], source=dt.FileSource("rows.csv"),
                      schema=[dt.Field("a", int), dt.Field("b", int)])
clicks = dt.PushSource("clicks", schema=[dt.Field("c", int), dt.Field("d", int)])
pushed = dt.FeatureView("pushed", entities=[customer], source=clicks, schema=[dt.Field("c", int), dt.Field("d", int)])
whole = dt.FeatureService("whole", features=[rows, pushed])
part = dt.FeatureService("part", features=[rows[["b"]], pushed[["d"]]])
"""


def test_of_rows_of_one_moment_the_same_one_wins_whichever_features_are_asked_for(make: Make) -> None:
    store = make(PARTS, {"rows.csv": f"customer,event_timestamp,a,b\nk,{AT},1,9\nk,{AT},2,1\nk,{AT},,99\n"})
    store.materialize_incremental()
    store.push("clicks", [{"customer": "k", "c": 1, "d": 9}, {"customer": "k", "c": 2, "d": 1}])
    labels = [{"customer": "k", "event_timestamp": datetime.now(UTC)}]
    for service in ("whole", "part"):
        online = store.get_online_features(service, [{"customer": "k"}]).to_dict()
        offline = store.get_historical_features(labels, service)
        for name in ("b", "d"):
            assert online[name] == offline.column(name).to_pylist() == [1]


def test_rows_that_are_kept_and_not_online_are_not_to_be_pushed_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(PUSH)
    store.push("clicks", [{"customer": "a", "n": 1}])

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.online, "push", full)
    with pytest.raises(DrivetrainError, match="1 rows of `clicks` are kept, and not all of them are online") as caught:
        store.push("clicks", [{"customer": "b", "n": 2}])
    assert "Do not push them again" in str(caught.value)
    monkeypatch.undo()
    store.materialize_incremental()
    assert store.get_online_features("inputs", [{"customer": "b"}]).to_dict()["n"] == [2]


# Paths and queries.


@pytest.mark.parametrize("path", ["data/***.csv", "../*.csv", "*/../../*.csv", "link.csv", "dir/*.csv", "*.csv"])
def test_no_pattern_leaves_the_project(make: Make, tmp_path: Path, path: str) -> None:
    (tmp_path / "outside.csv").write_text(GOOD)
    store = make(VIEW.format(path=path, dtype="int64"), {"rows.csv": GOOD})
    os.symlink(tmp_path / "outside.csv", tmp_path / "project" / "link.csv")
    os.symlink(tmp_path, tmp_path / "project" / "dir")
    told = refused(store, store.materialize_incremental)
    assert "outside the project" in told or "no pattern of files" in told or "No file is called" in told


@pytest.mark.parametrize(
    "source",
    ["'{outside}'", "read_csv('{outside}')", "read_text('{outside}')", "glob('{folder}/*')", "duckdb_settings()"],
)
def test_no_query_of_a_source_or_of_labels_reads_a_file(make: Make, tmp_path: Path, source: str) -> None:
    outside = tmp_path / "outside.csv"
    outside.write_text(GOOD)
    query = "SELECT * FROM " + source.format(outside=outside, folder=tmp_path)
    store = make(QUERY.format(query=query))
    assert "The source `q` of FeatureView `view` cannot be read" in refused(store, store.materialize_incremental)
    told = refused(store, lambda: store.get_historical_features(query, ["view:x"]))
    assert "The labels cannot be read" in told


# Labels.


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            "customer,event_timestamp\na,2026-02-01T00:00:00Z\na,nonsense\n",
            "row 2, column `event_timestamp`: 'nonsense'",
        ),
        (
            "customer,event_timestamp\na,2026-02-01T00:00:00Z\na,infinity\n",
            "row 2, column `event_timestamp`: 'infinity'",
        ),
        ("customer,customer,event_timestamp\na,b,2026-02-01T00:00:00Z\n", "has the column `customer` twice"),
        ([{}], "have no columns"),
        ([{"customer": "a", "event_timestamp": NOW, "n\0": 1}], "a NUL byte"),
        (
            [{"customer": "a", "event_timestamp": NOW}, {"customer": "\ud800", "event_timestamp": NOW}],
            "Row 2 of the labels",
        ),
        (
            [{"customer": "a", "event_timestamp": "0001-01-01"}, {"customer": "a", "event_timestamp": "x"}],
            "row 2, column",
        ),
    ],
)
def test_a_wrong_label_is_named_by_row_and_column(make: Make, tmp_path: Path, labels: Any, said: str) -> None:
    store = make(VIEW.format(path="rows.csv", dtype="int64"), {"rows.csv": GOOD})
    if isinstance(labels, str):
        (tmp_path / "labels.csv").write_text(labels)
        labels = tmp_path / "labels.csv"
    assert said in refused(store, lambda: store.get_historical_features(labels, "inputs"))


# Functions and entities.


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise SystemExit(3)", "raised SystemExit"),
        ("return (lambda f: f(f))(lambda f: f(f))", "raised RecursionError"),
        ('return {"y": "1"}', "gave a wrong value for `y`"),
        ('return {"y": 1.0, "z": 1}', "returned `z`"),
        ("yield 1", "returned a generator"),
    ],
)
def test_a_function_that_misbehaves_ends_the_question_and_nothing_else(make: Make, body: str, said: str) -> None:
    store = make(FUNCTION.replace("BODY", body), {"rows.csv": GOOD})
    store.materialize_incremental()
    assert said in refused(store, lambda: store.get_online_features("inputs", [{"customer": "a", "when": NOW}]))


def test_a_function_that_changes_its_input_changes_nobody_elses(make: Make) -> None:
    body = 'row["x"] = 99; row.clear(); return {"y": 2.0}'
    store = make(FUNCTION.replace("BODY", body), {"rows.csv": GOOD})
    store.materialize_incremental()
    seen = store.get_online_features("inputs", [{"customer": "a", "when": NOW}]).to_dict()
    assert (seen["x"], seen["y"]) == ([1], [2.0])


@pytest.mark.parametrize(
    "given",
    [{"customer": "\ud800"}, {"customer": 5}, {"when": "0001-01-01T00:00:00+14:00"}, {"when": 5}, {"when": "x"}],
)
def test_what_a_request_gives_is_refused_before_anything_is_computed(make: Make, given: dict[str, Any]) -> None:
    store = make(FUNCTION.replace("BODY", 'return {"y": 1.0}'), {"rows.csv": GOOD})
    store.materialize_incremental()
    asked = {"customer": "a", "when": NOW, **given}
    assert next(iter(given)) in refused(store, lambda: store.get_online_features("inputs", [asked]))
