"""Pushed rows: online at once, in the lake for ever, and none of them where one is wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from online_world import START, World

from drivetrain.core.errors import DrivetrainError

pytestmark = pytest.mark.slow


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def click(world: World, customer: str) -> tuple[Any, Any]:
    answer = world.store.get_online_features(["click:n", "click:page"], [{"customer": customer}]).to_dict()
    return answer["n"][0], answer["page"][0]


def pushed(world: World) -> int:
    with world.store.connect() as connection:
        return connection.execute("SELECT count(*) FROM push.clicks").fetchall()[0][0]  # type: ignore[no-any-return]


def test_a_row_is_online_at_once_and_in_the_lake(world: World) -> None:
    before = pushed(world)
    made = world.store.push("clicks", [{"customer": "ada", "n": 3, "page": "home"}, {"customer": "bob", "n": None}])
    assert (made.rows, made.offline) == (2, True)
    assert click(world, "ada") == (3, "home")
    assert click(world, "bob") == (0, None)
    assert pushed(world) == before + 2
    world.call("ada")
    assert world.seen[0].record.values["page"] == "home"
    label = [{"customer": "ada", "event_timestamp": world.now + timedelta(seconds=1)}]
    assert world.store.get_historical_features(label, ["click:n"]).column("n").to_pylist() == [3]


def test_where_it_goes(world: World) -> None:
    before = pushed(world)
    world.store.push("clicks", [{"customer": "ada", "n": 1}], to="online")
    assert (click(world, "ada")[0], pushed(world)) == (1, before)
    world.store.push("clicks", [{"customer": "ada", "n": 2}], to="offline")
    assert (click(world, "ada")[0], pushed(world)) == (1, before + 1)
    world.store.materialize_incremental()
    assert click(world, "ada")[0] == 2
    with pytest.raises(DrivetrainError, match=r"(?s)`onlin`.*`online`"):
        world.store.push("clicks", [{"customer": "ada"}], to="onlin")


def test_a_late_row_never_overwrites_a_newer_one(world: World) -> None:
    def push(n: int, minutes: int) -> None:
        world.store.push("clicks", [{"customer": "ada", "n": n, "event_timestamp": START - timedelta(minutes=minutes)}])

    push(1, 10)
    push(2, 20)
    assert click(world, "ada")[0] == 1
    world.store.materialize_incremental()
    assert click(world, "ada")[0] == 1
    push(3, 15)
    assert click(world, "ada")[0] == 1
    world.pass_time(seconds=1)
    push(4, 10)  # the same moment, known later: a correction
    assert click(world, "ada")[0] == 4
    world.store.materialize_incremental()
    assert click(world, "ada")[0] == 4


def test_windows_of_pushed_events_move_with_materialization(world: World) -> None:
    world.store.push("clicks", [{"customer": "ada", "n": 3}])
    world.store.push("clicks", [{"customer": "ada", "n": 4}])
    read = ["clicked:n_sum_1d"]
    assert world.store.get_online_features(read, [{"customer": "ada"}]).to_dict()["n_sum_1d"] == [None]
    world.store.materialize_incremental()
    assert world.store.get_online_features(read, [{"customer": "ada"}]).to_dict()["n_sum_1d"] == [7]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"customer": "ada", "n": "3"}, r"row 2, column `n`: '3', a str, is no int64"),
        ({"customer": "ada", "n": 2.5}, r"row 2, column `n`"),
        ({"customer": "ada", "m": 1}, r"(?s)row 2: no column `m`"),
        ({"n": 1}, "row 2: it has no join key; `customer` must be given"),
        ({"customer": 5, "n": 1}, "row 2, column `customer`"),
        ({"customer": "ada", "event_timestamp": datetime(2026, 1, 1)}, r"row 2.*naive time"),
        ({"customer": "ada", "event_timestamp": START + timedelta(hours=1)}, "row 2: its time lies in the future"),
        ({"customer": "ada", "event_timestamp": "yesterday"}, "row 2, column `event_timestamp`"),
    ],
)
def test_one_wrong_row_and_none_is_pushed(world: World, row: dict[str, Any], message: str) -> None:
    before = pushed(world)
    with pytest.raises(DrivetrainError, match=message):
        world.store.push("clicks", [{"customer": "ada", "n": 1}, row])
    assert pushed(world) == before
    assert click(world, "ada") == (0, None)


def test_every_wrong_row_is_named(world: World) -> None:
    with pytest.raises(DrivetrainError) as caught:
        world.store.push("clicks", [{"customer": "ada", "n": "x"}, {"customer": "ada"}, {"n": 1, "page": 7}])
    assert [line.split(":")[0] for line in str(caught.value).splitlines()[1:4]] == [
        "  row 1, column `n`", "  row 3, column `page`", "  row 3",
    ]  # fmt: skip


def test_an_unknown_source_and_arrow_data(world: World) -> None:
    from arro3.core import Array, DataType, Table

    with pytest.raises(DrivetrainError, match=r"(?s)PushSource `click`.*`clicks`"):
        world.store.push("click", [])
    table = Table.from_pydict(
        {
            "customer": Array(["ada", "bob"], type=DataType.string()),
            "n": Array([5, 6], type=DataType.int64()),
            "event_timestamp": Array(["2026-02-01T11:00:00Z"] * 2, type=DataType.string()),
        }
    )
    assert world.store.push("clicks", table).rows == 2
    assert click(world, "bob")[0] == 6
    expected = datetime(2026, 2, 1, 11, tzinfo=UTC)
    answer = world.store.get_online_features(["click:n"], [{"customer": "bob"}])
    assert answer.event_timestamps()["n"] == [expected]
