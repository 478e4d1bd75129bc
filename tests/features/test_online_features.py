"""Reads of online features: what stands in for what is missing, expired or null, and what a Call's record says."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from online_world import START, World, write_csv

from drivetrain.core.errors import DrivetrainError
from drivetrain.features.online import ROWS_MAX

pytestmark = pytest.mark.slow

DECLARED = """
import drivetrain as dt
from datetime import datetime, UTC

customer = dt.Entity("customer", join_keys=["region", "number"], value_type=int)
shop = dt.Entity("shop")
rows = dt.FileSource("data/rows.csv", name="rows", fresh_within="3h")
facts = dt.FeatureView("facts", entities=[customer], source=rows, ttl="2d", schema=[
    dt.Field("count", int, default=-1), dt.Field("score", float), dt.Field("name", str, default="nobody"),
    dt.Field("since", "timestamp", default=datetime(2000, 1, 1, tzinfo=UTC)), dt.Field("good", bool),
])
more = dt.FeatureView("more", entities=[customer], source=rows, schema=[dt.Field("score", float, default=9.0)])
shops = dt.FeatureView("shops", entities=[shop], source=dt.FileSource("data/shops.csv", name="shops"),
                       schema=[dt.Field("size", int)])
world = dt.FeatureView("world", entities=[], source=dt.FileSource("data/world.csv", name="world"),
                       schema=[dt.Field("rate", float)])
hidden = dt.FeatureView("hidden", entities=[shop], source=dt.FileSource("data/shops.csv", name="shops2"), online=False,
                        schema=[dt.Field("size", int, default=5)])

@dt.on_demand_feature_view(sources=[facts[["count"]], dt.RequestSource("r", schema=[dt.Field("amount", float),
                           dt.Field("factor", int, default=2)])], schema=[dt.Field("total", float)])
def priced(row):
    return {"total": row["count"] * row["amount"] * row["factor"]}

both = dt.FeatureService("both", features=[facts, more, shops, world])
sold = dt.FeatureService("sold", features=[priced, shops])
half = dt.FeatureService("half", features=[hidden, shops[["size"]]])
"""
SINCE = datetime(2021, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path, declared=DECLARED)
    at, old = START - timedelta(hours=1), START - timedelta(days=3)
    fact = {"score": "0.5", "name": "Ada", "since": SINCE.isoformat(), "good": "true"}
    rows: list[dict[str, Any]] = [
        {"region": 1, "number": 1, "event_timestamp": at.isoformat(), "count": 7, **fact},
        {"region": 1, "number": 2, "event_timestamp": old.isoformat(), "count": 8, **fact},
        {"region": 2, "number": 1, "event_timestamp": at.isoformat(), **dict.fromkeys(["count", *fact], "")},
    ]
    write_csv(tmp_path / "data/rows.csv", rows)
    write_csv(tmp_path / "data/shops.csv", [{"shop": "x", "event_timestamp": at.isoformat(), "size": 3}])
    write_csv(tmp_path / "data/world.csv", [{"event_timestamp": at.isoformat(), "rate": 1.25}])
    world.store.materialize_incremental()
    return world


def test_values_defaults_and_nulls_in_the_order_of_the_entities(world: World) -> None:
    entities = [
        {"region": 1, "number": 1, "shop": "x"},
        {"region": 1, "number": 2, "shop": "nowhere"},
        {"region": 2, "number": 1, "shop": None},
        {"region": 9, "number": 9, "shop": "x"},
    ]
    answer = world.store.get_online_features("both", entities)
    default = datetime(2000, 1, 1, tzinfo=UTC)
    assert answer.to_dict() == {
        "region": [1, 1, 2, 9],
        "number": [1, 2, 1, 9],
        "shop": ["x", "nowhere", None, "x"],
        "count": [7, -1, -1, -1],
        "facts__score": [0.5, None, None, None],
        "name": ["Ada", "nobody", "nobody", "nobody"],
        "since": [SINCE, default, default, default],
        "good": [True, None, None, None],
        "more__score": [0.5, 0.5, 9.0, 9.0],
        "size": [3, None, None, 3],
        "rate": [1.25] * 4,
    }
    assert answer.statuses()["count"] == ["PRESENT", "NOT_FOUND", "PRESENT", "NOT_FOUND"]
    assert answer.event_timestamps()["size"] == [START - timedelta(hours=1), None, None, START - timedelta(hours=1)]


def test_a_row_expires_at_read_and_not_a_microsecond_before(world: World) -> None:
    one = [{"region": 1, "number": 1, "shop": "x"}]
    world.now = START - timedelta(hours=1) + timedelta(days=2)
    assert world.store.get_online_features("both", one).to_dict()["count"] == [7]
    world.pass_time(microseconds=1)
    answer = world.store.get_online_features("both", one)
    assert answer.to_dict()["count"] == [-1]
    assert answer.to_dict()["more__score"] == [0.5]  # its view has no ttl
    assert answer.statuses()["count"] == ["OUTSIDE_MAX_AGE"]


def test_single_features_are_read_without_any_service(world: World) -> None:
    entities = {"region": [1, 9], "number": [1, 9]}
    assert world.store.get_online_features(["facts:count", "more:score"], entities).to_dict() == {
        **entities, "count": [7, -1], "score": [0.5, 9.0],
    }  # fmt: skip
    with pytest.raises(DrivetrainError, match="no feature `cuont`"):
        world.store.get_online_features(["facts:cuont"], entities)


def test_a_function_sees_the_request_and_the_defaults(world: World) -> None:
    entities = [
        {"region": 1, "number": 1, "shop": "x", "amount": 0.5},
        {"region": 9, "number": 9, "shop": "x", "amount": 2},
    ]
    assert world.store.get_online_features("sold", entities).to_dict()["total"] == [7.0, -4.0]
    with pytest.raises(DrivetrainError, match="request column `amount` is missing"):
        world.store.get_online_features("sold", [{"region": 1, "number": 1, "shop": "x"}])


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        ([{"region": 1, "shop": "x"}], "join key `number` is not given"),
        ([{"region": "1", "number": 1, "shop": "x"}], "join key `region` is int64"),
        ([{"region": True, "number": 1, "shop": "x"}], "join key `region` is int64"),
        ([{"region": 2**63, "number": 1, "shop": "x"}], None),
        ([{"region": 1, "number": 1, "shop": "x"}, {"region": 1, "shop": "x"}], "for some entities"),
        ({"region": [1, 2], "number": [1], "shop": ["x", "x"]}, "`number` has not as many"),
        ([{"region": 1, "number": 1, "shop": "x"}] * (ROWS_MAX + 1), "at most"),
    ],
)
def test_wrong_entities_are_refused_and_unknown_ones_missing(world: World, entities: Any, message: str | None) -> None:
    if message is None:
        assert world.store.get_online_features("both", entities).to_dict()["count"] == [-1]
        return
    with pytest.raises(DrivetrainError, match=message):
        world.store.get_online_features("both", entities)


def test_what_a_call_sees(world: World) -> None:
    reader = world.store.reader()
    given = {"region": 1, "number": 1, "shop": "x", "text": "a secret"}
    seen = reader.read("both", given, world.now_ns())
    assert seen.given == {"region": 1, "number": 1, "shop": "x"}
    assert (seen.values["count"], seen.values["rate"]) == (7, 1.25)
    assert (seen.as_of_ns, seen.stale, seen.missing) == (world.now_ns(), (), ())
    assert seen.fingerprint == world.store.definitions.services["both"].fingerprint
    world.pass_time(hours=3, seconds=1)
    seen = reader.read("both", {**given, "shop": "none"}, world.now_ns())
    assert seen.stale == ("facts", "more")
    assert seen.missing == ("shop",)
    assert reader.read("both", {**given, "number": 9}, world.now_ns()).missing == ("customer",)
    # Known to one of its views, though expired in the other.
    assert reader.read("both", {**given, "number": 2}, world.now_ns()).missing == ()
    assert reader.read("sold", {**given, "number": 2, "amount": 1.0}, world.now_ns()).missing == ("customer",)


def test_a_view_that_is_not_online_gives_its_defaults(world: World) -> None:
    assert world.store.get_online_features("half", [{"shop": "x"}]).to_dict() == {
        "shop": ["x"], "hidden__size": [5], "shops__size": [3],
    }  # fmt: skip


def test_a_changed_definition_is_an_error_until_it_is_materialized(world: World) -> None:
    path = world.root / "features" / "customer.py"
    path.write_text(DECLARED.replace('ttl="2d"', 'ttl="3d"'))
    store = world.reload()
    one = [{"region": 1, "number": 1, "shop": "x", "amount": 1.0}]
    for features in ("both", "sold", ["facts:count"]):
        with pytest.raises(DrivetrainError, match="definition"):
            store.get_online_features(features, one)
    assert store.get_online_features(["shops:size"], one).to_dict()["size"] == [3]
    store.materialize_incremental()
    assert store.get_online_features("both", one).to_dict()["count"] == [7]
    # Another function needs no other vectors.
    path.write_text(path.read_text().replace('row["amount"]', '(row["amount"] + 1)'))
    assert world.reload().get_online_features("sold", one).to_dict()["total"] == [28.0]


def test_reading_imports_no_lake_and_no_database() -> None:
    code = (
        "import sys, drivetrain.features.online, drivetrain.features.store, drivetrain.adapters.mapped_online\n"
        "heavy = {'duckdb', 'deltalake', 'arro3', 'sqlite3', 'numpy'} & {name.split('.')[0] for name in sys.modules}\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
