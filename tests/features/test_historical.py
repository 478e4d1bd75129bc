"""Training sets through their public door: any form of labels in, one row per label out, in order, or a clear error."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from arro3.core import Table
from offline_world import NOWHERE, ask, connection, defined, minute, put

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.features import (
    Aggregation,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    OnDemandFeatureView,
    PushSource,
    RequestSource,
    SqlSource,
    TableSource,
)

pytestmark = pytest.mark.slow

CUSTOMER = Entity("customer", value_type=int)
SHOP = Entity("shop", value_type=str)
STATS = FeatureView(
    "stats", entities=[CUSTOMER], source=TableSource("facts"),
    schema=[Field("orders", int, default=0), Field("spent", float), Field("since", datetime)],
)  # fmt: skip
SHOPS = FeatureView("shops", entities=[SHOP], source=TableSource("shops"), schema=[Field("rating", float, default=2.5)])


def per_order(row: Mapping[str, Any]) -> dict[str, Any]:
    spent = row["spent"]
    return {"ratio": None if spent is None else spent / row["amount"], "big": row["amount"] > 5}


RATIOS = OnDemandFeatureView(
    "ratios", function=per_order, schema=[Field("ratio", float, default=-1.0), Field("big", bool)],
    sources=[STATS[["spent"]], RequestSource("basket", schema=[Field("amount", float)])],
)  # fmt: skip
SERVICE = FeatureService("triage", features=[STATS[["spent", "orders"]], SHOPS, RATIOS])
LABELS = [
    {"customer": 1, "shop": "a", "event_timestamp": minute(5), "amount": 2.0},
    {"customer": 2, "shop": "b", "event_timestamp": minute(5), "amount": 8.0},
    {"customer": 9, "shop": "z", "event_timestamp": minute(5), "amount": 2.0},
    {"customer": 1, "shop": None, "event_timestamp": minute(15), "amount": 4.0},
]
WANTED = [
    {"spent": 10.0, "orders": 1, "rating": 4.5, "ratio": 5.0, "big": False},
    {"spent": None, "orders": 7, "rating": 3.5, "ratio": -1.0, "big": True},
    {"spent": None, "orders": 0, "rating": 2.5, "ratio": -1.0, "big": False},
    {"spent": 30.0, "orders": 3, "rating": 2.5, "ratio": 7.5, "big": False},
]


@pytest.fixture
def database() -> Any:
    made = connection()
    columns = {"customer": int, "event_timestamp": datetime, "orders": int, "spent": float, "since": datetime}
    put(
        made, "facts", columns,
        [(1, minute(1), 1, 10.0, minute(-9)), (2, minute(2), 7, None, None), (1, minute(10), 3, 30.0, minute(-9))],
    )  # fmt: skip
    put(
        made,
        "shops",
        {"shop": str, "event_timestamp": datetime, "rating": float},
        [("a", minute(0), 4.5), ("b", minute(0), 3.5)],
    )
    return made


def features_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in WANTED[0]} for row in rows]


def refusal(
    database: Any, labels: Any, features: Any = "triage", root: Path = NOWHERE, **options: Any
) -> DrivetrainError:
    with pytest.raises(DrivetrainError) as raised:
        ask(database, defined(STATS, SHOPS, RATIOS, SERVICE), labels, features, root, **options)
    assert not database.execute("SELECT table_name FROM duckdb_tables() WHERE temporary").fetchall()
    return raised.value


def test_a_service_gives_each_label_its_features(database: Any) -> None:
    got = ask(database, defined(STATS, SHOPS, RATIOS, SERVICE), LABELS, "triage")
    rows = got.rows()
    assert features_of(rows) == WANTED
    assert [{name: row[name] for name in LABELS[0]} for row in rows] == LABELS
    assert list(rows[0]) == [*LABELS[0], *WANTED[0]]
    assert len(got) == 4
    assert got.names == tuple(WANTED[0])


def test_without_defaults_nothing_stands_in(database: Any) -> None:
    got = ask(database, defined(STATS, SHOPS, RATIOS, SERVICE), LABELS, "triage", defaults=False)
    assert features_of(got.rows())[2] == {"spent": None, "orders": None, "rating": None, "ratio": None, "big": False}


def test_labels_come_in_any_form(database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["customer,shop,event_timestamp,amount"]
    for row in LABELS:
        zoned = row["event_timestamp"].astimezone(None if row["shop"] else UTC).isoformat()
        lines.append(f"{row['customer']},{row['shop'] or ''},{zoned},{row['amount']}")
    Path("labels.csv").write_text("\n".join(lines))
    with gzip.open("labels.csv.gz", "wt") as packed:
        packed.write("\n".join(lines))
    Path("labels.jsonl").write_text("\n".join(json.dumps(row, default=datetime.isoformat) for row in LABELS))
    database.execute("CREATE SCHEMA dataset")
    columns = {"customer": int, "shop": str, "event_timestamp": datetime, "amount": float}
    put(database, "labels", columns, [tuple(row.values()) for row in LABELS])
    database.execute('CREATE TABLE dataset."golden@3" AS SELECT * FROM labels')
    database.execute("COPY labels TO 'labels.parquet'")
    naive = [row | {"event_timestamp": row["event_timestamp"].replace(tzinfo=None)} for row in LABELS]
    again = Table.from_arrow(database.sql("FROM labels"))
    for labels in (
        "labels.csv", tmp_path / "labels.csv", "labels.csv.gz", "labels.jsonl", "labels.parquet", "dataset:golden@3",
        "SELECT * FROM labels -- all", "SELECT * FROM labels;", "WITH x AS (FROM labels) SELECT * FROM x",
        LABELS, naive, again,
    ):  # fmt: skip
        got = ask(database, defined(STATS, SHOPS, RATIOS, SERVICE), labels, "triage")
        assert features_of(got.rows()) == WANTED, labels


def test_every_label_is_kept_once_in_its_order(database: Any) -> None:
    dice = random.Random(7)
    labels = []
    for number in range(20_000):
        customer, at = dice.choice([1, 2, 9, None]), minute(dice.randrange(20))
        labels.append({"number": number, "customer": customer, "shop": "a", "event_timestamp": at, "amount": 1.0})
    labels += labels[:5_000]
    got = ask(database, defined(STATS, SHOPS, RATIOS, SERVICE), labels, "triage")
    assert [row["number"] for row in got.rows()] == [row["number"] for row in labels]


def test_several_answers_on_one_connection_do_not_disturb_each_other(database: Any) -> None:
    first = ask(database, defined(STATS), LABELS, ["stats:orders"])
    second = ask(database, defined(STATS), LABELS[:1], ["stats:spent"])
    assert (len(first.rows()), len(second.rows())) == (4, 1)
    first.close()
    second.close()
    assert not database.execute("SELECT table_name FROM duckdb_tables() WHERE temporary").fetchall()


def test_what_is_written_to_parquet_is_what_was_answered(database: Any, tmp_path: Path) -> None:
    got = ask(database, defined(STATS, SHOPS, RATIOS, SERVICE), LABELS, "triage")
    path = tmp_path / "training.parquet"
    got.to_parquet(path)
    assert database.execute(
        "SELECT spent, orders, rating, ratio, big FROM read_parquet(?)", [str(path)]
    ).fetchall() == [tuple(row.values()) for row in WANTED]


def test_a_function_sees_times_in_utc(database: Any) -> None:
    seen: list[Any] = []

    def zone(row: Mapping[str, Any]) -> Any:
        seen.append(row["since"])
        return {"known": row["since"] is not None}

    view = OnDemandFeatureView("zones", sources=[STATS[["since"]]], schema=[Field("known", bool)], function=zone)
    rows = ask(database, defined(STATS, view), LABELS[:2], ["zones:known"]).rows()
    assert [row["known"] for row in rows] == [True, False]
    assert seen == [minute(-9), None]
    assert seen[0].tzinfo is UTC


def test_times_come_back_in_utc(database: Any) -> None:
    row = ask(database, defined(STATS), LABELS[:1], ["stats:since"]).rows()[0]
    assert row["since"] == minute(-9)
    assert row["since"].utcoffset() == timedelta(0)


def test_columns_of_one_name_are_told_apart_or_refused(database: Any) -> None:
    other = FeatureView("more", entities=[CUSTOMER], source=TableSource("facts"), schema=[Field("orders", int)])
    definitions, wanted = defined(STATS, other), ["stats:orders", "more:orders"]
    with pytest.raises(DrivetrainError, match="`more:orders` would have the same name as `stats:orders`"):
        ask(database, definitions, LABELS, wanted)
    row = ask(database, definitions, LABELS, wanted, full_feature_names=True).rows()[0]
    assert (row["stats__orders"], row["more__orders"]) == (1, 1)
    labels = [row | {"Orders": 5} for row in LABELS]
    with pytest.raises(DrivetrainError, match="the labels' column `Orders`"):
        ask(database, definitions, labels, ["stats:orders"])


def test_names_with_quotes_and_spaces_are_names(database: Any) -> None:
    labels = [row | {'a "strange" name': "x'y", "n": 1, "k0": 2, "t_us": 3, "f0": 4, "l0": 5} for row in LABELS]
    rows = ask(database, defined(STATS, SHOPS, RATIOS, SERVICE), labels, "triage").rows()
    assert features_of(rows) == WANTED
    assert [rows[0][name] for name in ('a "strange" name', "n", "k0", "t_us", "f0", "l0")] == ["x'y", 1, 2, 3, 4, 5]


def test_what_labels_lack_is_said(database: Any) -> None:
    without = {name: [{k: v for k, v in row.items() if k != name} for row in LABELS] for name in LABELS[0]}
    for name, why in (("customer", "joined by it"), ("event_timestamp", "as of when"), ("amount", "from the request")):
        error = refusal(database, without[name])
        assert f"no column `{name}`" in error.what
        assert why in error.what
    assert "Did you mean `event_timestamp`?" in refusal(database, LABELS, timestamp="event_timestmp").do
    assert "no times in `customer`" in refusal(database, LABELS, timestamp="customer").what
    assert "There are no labels" in refusal(database, []).what
    assert "No file of labels" in refusal(database, "nowhere.csv").what
    assert "A int holds no labels" in refusal(database, 7).what
    assert (
        "several or of foreign types in `shop`: int, str"
        in refusal(database, [LABELS[0], LABELS[0] | {"shop": 7}]).what
    )
    assert "Did you mean `triage`?" in refusal(database, LABELS, "triag").do
    assert "Did you mean `orders`?" in refusal(database, LABELS, ["stats:order"]).do
    assert "names no feature" in refusal(database, LABELS, ["stats"]).what
    assert "The labels cannot be read" in refusal(database, "SELECT * FROM nothing").what


def test_a_wrong_key_is_an_error_with_its_value(database: Any) -> None:
    labels = [row | {"customer": 1.5} for row in LABELS]
    assert "no int64" in refusal(database, labels).what


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"ratio": 1.0}, "did not return `big`"),
        ({"ratio": 1.0, "big": True, "more": 1}, "returned `more`, which its schema does not have"),
        ({"ratio": "1.0", "big": True}, "gave a wrong value for `ratio`: '1.0', a str, is no float64"),
        (7, "returned an int"),
    ],
)
def test_what_a_function_must_not_return_is_said_with_its_row(database: Any, answer: Any, said: str) -> None:
    def sometimes(row: Mapping[str, Any]) -> Any:
        return answer if row["amount"] > 5 else {"ratio": 1.0, "big": True}

    view = OnDemandFeatureView("ratios", function=sometimes, schema=RATIOS.schema, sources=RATIOS.sources)
    with pytest.raises(DrivetrainError) as raised:
        ask(database, defined(STATS, view), LABELS, ["ratios:ratio"])
    assert raised.value.what.startswith("Row 2 of the labels: ")
    assert said in raised.value.what


def test_a_function_that_raises_is_named_with_its_row(database: Any) -> None:
    def wrong(row: Mapping[str, Any]) -> Any:
        return {"x": 1 / (row["amount"] - 8)}

    view = OnDemandFeatureView("ratios", function=wrong, schema=[Field("x", float)], sources=RATIOS.sources)
    with pytest.raises(DrivetrainError, match=r"Row 2 of the labels: .*`ratios` raised ZeroDivisionError"):
        ask(database, defined(STATS, view), LABELS, ["ratios:x"])


def test_inputs_of_one_name_reach_a_function_by_their_full_names(database: Any) -> None:
    other = FeatureView("more", entities=[CUSTOMER], source=TableSource("facts"), schema=[Field("orders", int)])

    def both(row: Mapping[str, Any]) -> Any:
        return {"x": row["stats__orders"] + row["more__orders"] * 10 + row["spent"]}

    sources = [STATS[["orders", "spent"]], other]
    view = OnDemandFeatureView("both", sources=sources, schema=[Field("x", float)], function=both)
    rows = ask(database, defined(STATS, other, view), LABELS[:1], ["both:x"]).rows()
    assert rows[0]["x"] == 21.0
    assert "spent" not in rows[0]


def test_files_tables_queries_and_pushes_hold_the_same_rows(database: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    database.execute(f"COPY (FROM facts LIMIT 2) TO '{tmp_path}/data/1.parquet'")
    database.execute(f"COPY (FROM facts OFFSET 2) TO '{tmp_path}/data/2.parquet'")
    database.execute(f"COPY facts TO '{tmp_path}/facts.csv' (HEADER)")
    database.execute(f"COPY facts TO '{tmp_path}/facts.jsonl' (FORMAT json)")
    database.execute("CREATE SCHEMA push")
    database.execute("CREATE TABLE push.clicks AS SELECT *, event_timestamp AS created_timestamp FROM facts OFFSET 2")
    for source in (
        FileSource("data/*.parquet"), FileSource("facts.csv"), FileSource("facts.jsonl"), TableSource("facts"),
        SqlSource("q", query="SELECT * FROM facts;"),
        PushSource("clicks", batch_source=SqlSource("first", query="FROM facts LIMIT 2")),
        PushSource("unused", batch_source=TableSource("facts")),
    ):  # fmt: skip
        view = FeatureView("stats", entities=[CUSTOMER], source=source, schema=STATS.schema)
        got = ask(database, defined(view), LABELS, ["stats:orders", "stats:spent", "stats:since"], tmp_path).rows()
        assert [(row["orders"], row["spent"]) for row in got] == [(1, 10.0), (7, None), (0, None), (3, 30.0)]
        assert got[0]["since"] == minute(-9)


def test_a_pushed_row_counts_from_when_it_arrived(database: Any) -> None:
    database.execute("CREATE SCHEMA push")
    database.execute(
        "CREATE TABLE push.clicks AS SELECT *, event_timestamp + INTERVAL 10 MINUTE AS created_timestamp FROM facts"
    )
    view = FeatureView("stats", entities=[CUSTOMER], source=PushSource("clicks"), schema=STATS.schema)
    labels = [{"customer": 1, "event_timestamp": minute(at)} for at in (10, 11, 19, 20)]
    got = ask(database, defined(view), labels, ["stats:orders"], defaults=False)
    assert [row["orders"] for row in got.rows()] == [None, 1, 1, 3]


@pytest.mark.parametrize(
    ("line", "column", "seen"),
    [
        ("x,2024-02-28 23:01:00,1,1.0", "customer", "'x'"),
        ("1,yesterday,1,1.0", "event_timestamp", "'yesterday'"),
        ("1,2024-02-28 23:01:00,1.5,1.0", "orders", "'1.5'"),
        ("1,2024-02-28 23:01:00,99999999999999999999,1.0", "orders", "'99999999999999999999'"),
        ("1,2024-02-28 23:01:00,1,=2+3", "spent", "'=2+3'"),
    ],
)
def test_a_wrong_value_is_named_with_its_row_and_column(
    database: Any, tmp_path: Path, line: str, column: str, seen: str
) -> None:
    lines = ["customer,event_timestamp,orders,spent", "1,2024-02-28 23:00:00,1.0,NaN", line, line]
    (tmp_path / "facts.csv").write_text("\n".join(lines))
    view = FeatureView("stats", entities=[CUSTOMER], source=FileSource("facts.csv"), schema=STATS.schema[:2])
    with pytest.raises(DrivetrainError) as raised:
        ask(database, defined(view), LABELS, ["stats:orders", "stats:spent"], tmp_path)
    assert f"row 2, column `{column}`: {seen}" in raised.value.what
    assert "source `facts.csv` of FeatureView `stats`" in raised.value.what


def test_a_fraction_is_never_rounded_to_a_whole_number(database: Any) -> None:
    halves = SqlSource("q", query="SELECT customer, event_timestamp, orders + 0.5 AS orders FROM facts")
    view = FeatureView("stats", entities=[CUSTOMER], schema=[Field("orders", int)], source=halves)
    with pytest.raises(DrivetrainError, match=r"column `orders`: '1.5'"):
        ask(database, defined(view), LABELS, ["stats:orders"])


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("../secret.csv", "outside the project"),
        ("/etc/passwd", "outside the project"),
        ("link.csv", "outside the project"),
        ("missing.csv", "No file is called"),
        ("*.csv.zip", "No file is called"),
        ("facts.xlsx", "cannot be read"),
        ("broken.parquet", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_said(database: Any, tmp_path: Path, path: str, said: str) -> None:
    root = tmp_path / "project"
    root.mkdir()
    (tmp_path / "secret.csv").write_text("customer,event_timestamp,orders\n")
    (root / "link.csv").symlink_to(tmp_path / "secret.csv")
    (root / "facts.xlsx").write_text("")
    (root / "broken.parquet").write_bytes(b"PAR1 half of a file")
    view = FeatureView("stats", entities=[CUSTOMER], source=FileSource(path), schema=STATS.schema)
    with pytest.raises(DrivetrainError, match=said):
        ask(database, defined(view), LABELS, ["stats:orders"], root)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (",".join(f"c{number}" for number in range(1_000_000)), "more than 4096 columns"),
        ("customer,event_timestamp,orders\n1,2024-01-01,1\n1,2024-01-0", "cannot be read: .*Line: 3"),
        ("customer,event_timestamp,orders\n" + "1,2024-01-01,1\n" * 50_000 + "1", "cannot be read: .*Line: 50002"),
        ('customer,event_timestamp,orders\n1,2024-01-01,1\n1,"2024-01-0', "cannot be read"),
        ("", "no column `event_timestamp`"),
    ],
)
def test_a_csv_file_that_is_broken_or_endless_is_refused_at_once(
    database: Any, tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "facts.csv").write_text(content)
    view = FeatureView("stats", entities=[CUSTOMER], source=FileSource("facts.csv"), schema=STATS.schema[:1])
    with pytest.raises(DrivetrainError, match=said):
        ask(database, defined(view), LABELS, ["stats:orders"], tmp_path)


def test_any_usual_delimiter_is_read(database: Any, tmp_path: Path) -> None:
    for sign in ",;\t|":
        (tmp_path / "facts.csv").write_text(f"customer{sign}event_timestamp{sign}orders\n1{sign}2024-02-28{sign}6\n")
        view = FeatureView("stats", entities=[CUSTOMER], source=FileSource("facts.csv"), schema=STATS.schema[:1])
        assert ask(database, defined(view), LABELS[:1], ["stats:orders"], tmp_path).rows()[0]["orders"] == 6


def test_files_with_columns_in_another_order_are_one_source(database: Any, tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("customer,event_timestamp,orders\n1,2024-02-28,6\n")
    (tmp_path / "2.csv").write_text("orders,customer,event_timestamp\n8,2,2024-02-28\n")
    view = FeatureView("stats", entities=[CUSTOMER], source=FileSource("*.csv"), schema=STATS.schema[:1])
    rows = ask(database, defined(view), LABELS[:2], ["stats:orders"], tmp_path).rows()
    assert [row["orders"] for row in rows] == [6, 8]


def test_what_a_source_lacks_is_said(database: Any) -> None:
    def said(source: Any, schema: Any = STATS.schema) -> DrivetrainError:
        view = FeatureView("stats", entities=[CUSTOMER], source=source, schema=schema)
        with pytest.raises(DrivetrainError) as raised:
            ask(database, defined(view), LABELS, [f"stats:{schema[0].name}"])
        return raised.value

    assert "Did you mean `event_timestamp`?" in said(TableSource("facts", timestamp_field="event_timestamps")).do
    assert "Did you mean `orders`?" in said(TableSource("facts"), [Field("order", int)]).do
    assert "no times in `orders`" in said(TableSource("facts", timestamp_field="orders")).what
    database.execute("CREATE SCHEMA dataset; CREATE TABLE dataset.golden AS SELECT 1 AS x")
    absent = said(TableSource("fact"))
    assert "cannot be read: there is no table `fact`." in absent.what
    assert absent.do == "Did you mean `facts`?"
    absent = said(TableSource("dataset.goldn"))
    assert "there is no Dataset `goldn`." in absent.what
    assert absent.do == "Did you mean `golden`? Make it with `drivetrain dataset create goldn ...`."
    query = said(SqlSource("asked", query="SELECT * FROM dataset.gone"))
    assert query.do.endswith("Or make it with `drivetrain dataset create gone ...`.")
    assert "there is no Dataset `gone@3`" in refusal(database, "dataset:gone@3").what
    assert "no rows yet" in said(PushSource("clicks")).what


def test_windows_that_count_are_zero_over_nothing_whatever_is_asked(database: Any) -> None:
    counted = [Aggregation(function="count", over="1h"), Aggregation(function="sum", column="spent", over="1h"),
               Aggregation(function="approx_distinct", column="orders", over="1h", default=-1)]  # fmt: skip
    view = FeatureView("window", entities=[CUSTOMER], source=TableSource("facts"), aggregations=counted)
    names = [f"window:{one.feature}" for one in counted]
    for defaults, wanted in ((True, (0, None, -1)), (False, (0, None, 0))):
        rows = ask(database, defined(view), LABELS[2:3], names, defaults=defaults).rows()
        assert tuple(rows[0][one.feature] for one in counted) == wanted
