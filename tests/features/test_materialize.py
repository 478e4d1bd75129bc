"""Materialization: vectors as of a moment, whatever came late, moved or was taken back."""

from __future__ import annotations

import csv
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from online_world import CUSTOMERS, START, World, write_csv

from drivetrain.core.errors import DrivetrainError

pytestmark = pytest.mark.slow

DECLARED = """
import drivetrain as dt
customer = dt.Entity("customer")
rows = dt.FileSource("data/rows.csv", name="rows", created_timestamp_column="created")
facts = dt.FeatureView("facts", entities=[customer], source=rows, schema=[dt.Field("n", int)])
moving = dt.FeatureView("moving", entities=[customer], source=dt.FileSource("data/rows.csv", name="rows2"),
                        aggregations=[dt.Aggregation(function="sum", column="n", over="1d", name="sum_1d")])
other = dt.FeatureView("other", entities=[customer], source=dt.FileSource("data/other.csv", name="other"),
                       schema=[dt.Field("m", float)])
service = dt.FeatureService("service", features=[facts, moving, other])
"""


def row(customer: str, hours: float, n: int, late: float = 0) -> dict[str, Any]:
    event = START + timedelta(hours=hours)
    return {
        "customer": customer, "event_timestamp": event.isoformat(),
        "created": (event + timedelta(hours=late)).isoformat(), "n": n,
    }  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path, declared=DECLARED)
    write_csv(
        tmp_path / "data/rows.csv", [row("a", -30, 1), row("a", -2, 2), row("b", -40, 3), row("a", -1, 9, late=5)]
    )
    write_csv(tmp_path / "data/other.csv", [{"customer": "c", "event_timestamp": START.isoformat(), "m": 0.5}])
    return world


def read(world: World, *names: str) -> dict[str, list[Any]]:
    answer = world.store.get_online_features("service", {"customer": list(names)}).to_dict()
    return {name: answer[name] for name in ("n", "sum_1d", "m")}


def test_late_rows_and_moving_windows_need_no_book(world: World) -> None:
    made = world.store.materialize_incremental()
    assert made.tables == {"facts@@customer": 2, "moving@@customer": 1, "other@@customer": 1, "service@customer": 3}
    assert {view.name: view.rows for view in made.views} == {"facts": 2, "moving": 1, "other": 1}
    assert read(world, "a", "b", "c") == {"n": [2, 3, None], "sum_1d": [11.0, None, None], "m": [None, None, 0.5]}
    world.pass_time(hours=6)  # the late row is known now, though its event time is before the last run
    world.store.materialize_incremental()
    assert read(world, "a")["n"] == [9]
    world.pass_time(hours=30)
    world.store.materialize_incremental()
    assert read(world, "a") == {"n": [9], "sum_1d": [None], "m": [None]}
    # What the sources take back is gone.
    write_csv(world.root / "data/rows.csv", [row("b", -40, 3)])
    world.store.materialize_incremental()
    assert read(world, "a", "b")["n"] == [None, 3]


def test_a_past_end_gives_what_was_known_then(world: World) -> None:
    world.store.materialize_incremental(START - timedelta(hours=10))
    assert read(world, "a", "b") == {"n": [1, 3], "sum_1d": [1.0, None], "m": [None, None]}
    seen = world.store.reader().read("service", {"customer": "a"}, world.now_ns())
    assert seen.as_of_ns == world.now_ns() - 10 * 3_600 * 10**9
    with pytest.raises(DrivetrainError, match="a moment to come"):
        world.store.materialize_incremental(START + timedelta(seconds=1))
    with pytest.raises(DrivetrainError, match="start lies after the end"):
        world.store.materialize(START, START - timedelta(seconds=1))


def test_a_start_leaves_out_what_is_older_unless_it_was_there(world: World) -> None:
    world.store.materialize(START - timedelta(hours=4), START)
    assert read(world, "a", "b")["n"] == [2, None]
    world.store.materialize_incremental()
    assert read(world, "a", "b")["n"] == [2, 3]
    world.store.materialize(START - timedelta(hours=4), START)
    assert read(world, "a", "b")["n"] == [2, 3]


def test_some_views_only(world: World) -> None:
    made = world.store.materialize_incremental(feature_views=["other"])
    assert set(made.tables) == {"other@@customer", "service@customer"}
    with pytest.raises(DrivetrainError, match=r"(?s)No FeatureView is called `othr`.*`other`"):
        world.store.materialize_incremental(feature_views=["othr"])


def test_a_source_that_fails_leaves_every_vector(world: World) -> None:
    world.store.materialize_incremental()
    before = read(world, "a", "b", "c")
    write_csv(world.root / "data/other.csv", [{"customer": "c", "event_timestamp": START.isoformat(), "m": "many"}])
    write_csv(world.root / "data/rows.csv", [row("a", -1, 77)])
    with pytest.raises(DrivetrainError, match=r"(?s)other.*row 1.*`m`.*many"):
        world.store.materialize_incremental()
    assert read(world, "a", "b", "c") == before


def test_lineage_knows_what_was_made_from_what(world: World) -> None:
    world.store.apply()
    world.store.materialize_incremental()
    with world.store.connect() as connection:
        found = connection.execute("SELECT subject, body FROM control WHERE kind = 'made' ORDER BY seq").fetchall()
    subjects = [subject.split("@")[0] for subject, _ in found]
    assert subjects == ["service:service", "features:facts", "features:moving", "features:other"]
    assert '"rows":2' in found[1][1]
    assert '"source:rows"' in found[1][1]
    assert world.store.apply().changed == ()


def test_many_entities_come_through_in_batches(tmp_path: Path) -> None:
    world = World(tmp_path, declared=DECLARED)
    with (tmp_path / "data/rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row("", 0, 0)))
        writer.writeheader()
        writer.writerows(row(f"x{n}", -1, n) for n in range(11_000))
    write_csv(tmp_path / "data/other.csv", [{"customer": "x5", "event_timestamp": START.isoformat(), "m": 0.5}])
    made = world.store.materialize_incremental()
    assert made.tables["service@customer"] == 11_000
    names = [f"x{n}" for n in range(0, 11_000, 11)]
    assert read(world, *names)["n"] == list(range(0, 11_000, 11))
    assert read(world, "x5") == {"n": [5], "sum_1d": [5.0], "m": [0.5]}
    assert CUSTOMERS[0] not in names
