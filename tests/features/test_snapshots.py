"""What was materialized is asked in SQL: as of when, what it held, and never of persons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from online_world import START, World, write_csv

from drivetrain.core.errors import DrivetrainError
from drivetrain.embedded.asking import open_lake
from drivetrain.features.snapshots import KEPT

pytestmark = pytest.mark.slow

DECLARED = """
import drivetrain as dt
shop = dt.Entity("shop")
person = dt.Entity("person"{subject})
sales = dt.FeatureView("sales", entities=[shop], source=dt.FileSource("data/sales.csv", name="sales_rows"),
                       schema=[dt.Field("n", int, default=7), dt.Field("since", "timestamp")])
habits = dt.FeatureView("habits", entities=[person], source=dt.FileSource("data/habits.csv", name="habit_rows"),
                        schema=[dt.Field("word", str)])
"""


def declare(subject: str = "") -> str:
    return DECLARED.replace("{subject}", subject)


def write(world_root: Path, n: str) -> None:
    at = START.isoformat()
    rows = [
        {"shop": "a", "event_timestamp": at, "n": n, "since": "2025-01-01T00:00:00Z"},
        {"shop": "b", "event_timestamp": at, "n": "", "since": ""},
    ]
    write_csv(world_root / "data/sales.csv", rows)
    write_csv(world_root / "data/habits.csv", [{"person": "p", "event_timestamp": at, "word": "secret-habit"}])


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path, declared=declare())
    write(tmp_path, "1")
    return world


def ask(world: World, query: str) -> list[tuple[Any, ...]]:
    return open_lake(world.root).query(query).rows


def files(world: World) -> list[str]:
    folder = world.root / ".drivetrain/data/lake/files/features"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.parquet"))


def test_a_view_is_a_table_of_what_was_materialized_last(world: World) -> None:
    with pytest.raises(DrivetrainError, match=r"no table `feature\.sales`"):
        ask(world, "select * from feature.sales")
    world.store.materialize_incremental()
    rows = ask(world, "select shop, n, epoch_us(since), epoch_us(event_timestamp) from feature.sales order by shop")
    start_us = int(START.timestamp()) * 1_000_000
    assert rows == [("a", 1, 1_735_689_600_000_000, start_us), ("b", None, None, start_us)]
    write(world.root, "2")
    assert ask(world, "select max(n) from feature.sales") == [(1,)], "the source changed, and nothing was materialized"
    world.pass_time(hours=1)
    world.store.materialize_incremental()
    assert ask(world, "select max(n) from feature.sales") == [(2,)]
    named = "20260201T120000.000000Z"
    assert ask(world, f'select max(n) from feature."sales@{named}"') == [(1,)]
    assert ask(world, f'select s.n from feature.sales s join feature."sales@{named}" t using (shop) where t.n = 1') == [
        (2,)
    ]


def test_the_last_ones_are_kept_and_a_moment_has_one(world: World) -> None:
    for _ in range(KEPT + 2):
        world.pass_time(hours=1)
        world.store.materialize_incremental()
    assert len(files(world)) == 2 * KEPT
    write(world.root, "3")
    before = files(world)
    world.store.materialize_incremental(feature_views=["sales"])  # the same moment again
    assert len(files(world)) == 2 * KEPT
    assert len(set(before) - set(files(world))) == 1, "a file never changes: a new one takes its place"
    assert ask(world, "select max(n) from feature.sales") == [(3,)]
    past = START
    world.store.materialize(None, past, ["sales"])
    assert ask(world, 'select count(*) from feature."sales@20260201T120000.000000Z"') == [(2,)]
    assert ask(world, "select max(n) from feature.sales") == [(3,)]


def test_lineage_names_the_file(world: World) -> None:
    made = world.store.materialize_incremental()
    paths = {view.name: view.snapshot for view in made.views}
    assert sorted(path.removeprefix("features/") for path in paths.values()) == files(world)
    facts = ask(world, "select body->>'$.facts.snapshot' from control where kind = 'made' order by seq")
    assert facts == [(paths["sales"],), (paths["habits"],)]


def test_of_persons_there_is_none_and_none_stays(world: World) -> None:
    world.store.materialize_incremental()
    assert ask(world, "select word from feature.habits") == [("secret-habit",)]
    (world.root / "features/customer.py").write_text(declare(", subject=True"))
    made = world.reload().materialize_incremental(feature_views=["sales"])
    assert {view.name: bool(view.snapshot) for view in made.views} == {"sales": True}
    assert [path.partition("/")[0] for path in files(world)] == ["sales"]
    made = world.store.materialize_incremental()
    assert {view.name: bool(view.snapshot) for view in made.views} == {"sales": True, "habits": False}
    with pytest.raises(DrivetrainError, match=r"no table `feature\.habits`"):
        ask(world, "select * from feature.habits")


def test_a_view_that_is_not_declared_any_more_leaves_nothing(world: World) -> None:
    world.store.materialize_incremental()
    declared = declare()
    (world.root / "features/customer.py").write_text(declared[: declared.index("habits =")])
    world.reload().materialize_incremental()
    assert [path.partition("/")[0] for path in files(world)] == ["sales"]
