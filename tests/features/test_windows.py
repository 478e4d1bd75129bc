"""Windows over events: exactly what happened and was known, to the last bit, at labels and in what is materialized."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import reduce
from operator import add
from typing import Any

import pytest
from offline_world import NOWHERE, Row, ask, by_key, connection, defined, minute, put, seed_of

from drivetrain.core.features import AGGREGATIONS, Aggregation, Entity, FeatureView, Field, PushSource, TableSource
from drivetrain.features.latest import latest

pytestmark = pytest.mark.slow

USER = Entity("user", value_type=int)
TYPES = {"user": int, "event_timestamp": datetime, "known": datetime, "amount": float, "shop": str}
OVERS = {"1m": 1, "7m": 7, "1h": 60}
MINUTES = 90


def windows(functions: Iterable[str] = AGGREGATIONS, overs: Iterable[str] = OVERS) -> list[Aggregation]:
    chosen = [Aggregation(function=one, column="amount", over=over) for one in functions for over in overs]
    return [
        *chosen,
        Aggregation(function="count", over="7m"),
        Aggregation(function="approx_distinct", column="shop", over="7m"),
    ]


def view(aggregations: Sequence[Aggregation], created: str | None = "known") -> FeatureView:
    return FeatureView(
        "spending", entities=[USER], aggregations=aggregations,
        source=TableSource("events", created_timestamp_column=created),
    )  # fmt: skip


def put_events(database: Any, events: Sequence[Row]) -> None:
    put(database, "events", TYPES, [(*one.key, one.event, one.created, *one.values) for one in events])


def answers(database: Any, declared: FeatureView, labels: Sequence[tuple[int, datetime]]) -> list[tuple[Any, ...]]:
    put(database, "labels", {"user": int, "event_timestamp": datetime}, labels)
    names = [f"spending:{one.feature}" for one in declared.aggregations]
    got = ask(database, defined(declared), "SELECT * FROM labels", names)
    columns = ", ".join(f'"{name}"' for name in got.names)
    return got.relation.project(columns).fetchall()


def random_events(dice: random.Random, count: int, users: int) -> list[Row]:
    """Amounts whose sum depends on their order, NaN among them, and events that are late or lack something."""
    events = []
    for _ in range(count):
        event = minute(dice.randrange(MINUTES)) if dice.random() < 0.98 else None
        created = (
            None if event is None or dice.random() < 0.02 else event + timedelta(minutes=dice.choice([0, 0, -1, 4, 50]))
        )
        amount = dice.choice(
            [None, dice.uniform(-1, 1) * 10.0 ** dice.randrange(-8, 12), dice.random(), 0.1, 1e16, math.nan]
        )
        if dice.random() < 0.9 and amount is not None and math.isnan(amount):
            amount = 0.3
        events.append(
            Row(
                (dice.randrange(users) if dice.random() < 0.98 else None,), event, created, (amount, dice.choice("abc"))
            )
        )
    return events


def expected(events: Sequence[Row], at: datetime, aggregation: Aggregation, *, created: bool) -> Any:
    """One window's value, written to be obvious."""
    start = at - timedelta(minutes=OVERS[aggregation.over])
    inside = [one for one in events if one.event is not None and start < one.event <= at]
    if created:
        inside = [one for one in inside if one.created is not None and one.created <= at]
    if aggregation.column == "*":
        return len(inside)
    place = 0 if aggregation.column == "amount" else 1
    present = [one for one in inside if one.values[place] is not None]
    values = [one.values[place] for one in present]
    ordered = sorted(values, key=_nan_last)
    match aggregation.function:
        case "count":
            return len(values)
        case "approx_distinct":
            return len({"NaN" if one != one else one for one in values})
        case _ if not values:
            return None
        case "sum":
            return reduce(add, ordered)
        case "mean":
            return reduce(add, ordered) / len(values)
        case "min":
            return ordered[0]
        case "max":
            return ordered[-1]
    return max(
        present, key=lambda one: (one.event, one.created if created else 0, _nan_last(one.values[place]))
    ).values[place]


def _nan_last(value: Any) -> tuple[bool, Any]:
    return (True, 0) if value != value else (False, value)


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit."""
    return one == other or (one != one and other != other)


@pytest.mark.parametrize("created", ["known", None])
def test_every_window_holds_exactly_what_was_known(created: str | None) -> None:
    dice = random.Random(seed_of("windows"))
    database = connection()
    events, aggregations = random_events(dice, 6_000, 80), windows()
    put_events(database, events)
    labels = [(dice.randrange(90), minute(dice.randrange(-5, MINUTES + 70))) for _ in range(2_500)]
    got = answers(database, view(aggregations, created), labels)
    of = by_key(events)
    for label, answer in zip(labels, got, strict=True):
        for aggregation, value in zip(aggregations, answer, strict=True):
            right = expected(of.get(label[:1], []), label[1], aggregation, created=created is not None)
            assert same(value, right), (label, aggregation.feature, value, right)


def test_a_window_begins_behind_its_edge_and_ends_with_its_label() -> None:
    database = connection()
    put_events(database, [Row((1,), minute(10), minute(10), (1.0, "a"))])
    declared = view([Aggregation(function="count", over="7m")])
    labels = [(1, minute(at)) for at in (9.999, 10, 16.999, 17)]
    assert answers(database, declared, labels) == [(0,), (1,), (1,), (0,)]


def test_windows_before_1970_are_like_others() -> None:
    database = connection()
    before = datetime.fromisoformat("1969-12-31T23:58:00+00:00")
    put_events(database, [Row((1,), before + timedelta(minutes=number), None, (1.0, "a")) for number in range(6)])
    declared = view([Aggregation(function="count", over="7m"), Aggregation(function="count", over="1m")], None)
    labels = [(1, before + timedelta(minutes=number)) for number in range(6)]
    assert answers(database, declared, labels) == [(number + 1, 1) for number in range(6)]


def test_the_order_of_events_never_decides() -> None:
    dice = random.Random(seed_of("order of events"))
    database = connection()
    events = random_events(dice, 5_000, 3)
    labels = [(dice.randrange(3), minute(dice.randrange(MINUTES))) for _ in range(50)]
    put_events(database, events)
    before = answers(database, view(windows()), labels)
    dice.shuffle(events)
    put_events(database, events)
    assert repr(answers(database, view(windows()), labels)) == repr(before)


def test_nothing_beyond_a_label_changes_a_window() -> None:
    dice = random.Random(seed_of("no look into the future"))
    database, now = connection(), minute(40)
    events = random_events(dice, 2_000, 20)
    labels = [(dice.randrange(20), minute(dice.randrange(40))) for _ in range(300)]
    put_events(database, events)
    before = answers(database, view(windows()), labels)
    known = [one for one in events if one.event and one.event <= now and one.created and one.created <= now]
    assert len(known) < len(events)
    more = [
        Row((dice.randrange(20),), minute(dice.choice([3, 60])), minute(dice.randrange(41, 90)), (5.0, "z"))
        for _ in range(500)
    ]
    put_events(database, known + more)
    assert repr(answers(database, view(windows()), labels)) == repr(before)


def test_what_is_materialized_is_what_a_label_of_that_moment_gets() -> None:
    dice = random.Random(seed_of("latest windows"))
    database, now = connection(), minute(80)
    events = random_events(dice, 4_000, 200)
    events += [Row((user,), minute(5), minute(5), (1.0, "a")) for user in range(200, 210)]
    put_events(database, events)
    aggregations = windows()
    definitions = defined(view(aggregations))
    made = latest(database, definitions.view("spending"), int(now.timestamp() * 1e6), root=NOWHERE)
    names = [one.feature for one in aggregations]
    columns = ", ".join(f'"{name}"' for name in ["user", *names])
    got = {row[0]: row[1:] for row in made.relation.project(columns).fetchall()}
    assert not set(got) & set(range(200, 210)), "no event in the longest window, no row"
    labels = [(user, now) for user in range(210)]
    for (user, _), answer in zip(labels, answers(database, view(aggregations), labels), strict=True):
        row = got.get(user, (None,) * len(names))
        for feature, offline, online in zip(definitions.view("spending").features, answer, row, strict=True):
            assert same(offline, feature.default if online is None else online), (user, feature.name)


def test_many_pairs_are_worked_off_in_portions() -> None:
    database = connection()
    database.execute(
        """CREATE TABLE events AS SELECT 1::BIGINT AS user, timestamptz '2024-01-01 00:00:00+00' AS event_timestamp,
        range::DOUBLE AS amount FROM range(3000)"""
    )
    at = datetime.fromisoformat("2024-01-01T00:00:30+00:00")
    declared = view(
        [Aggregation(function="sum", column="amount", over="1m"), Aggregation(function="count", over="1m")], None
    )
    assert set(answers(database, declared, [(1, at)] * 6_000)) == {(2999 * 3000 / 2, 3000)}


def test_a_pushed_column_keeps_its_type() -> None:
    database = connection()
    database.execute("CREATE SCHEMA push")
    database.execute(
        """CREATE TABLE push.clicks AS SELECT 1::BIGINT AS user,
        timestamptz '2024-01-01 00:00:00+00' AS event_timestamp,
        9007199254740993 - range AS cents, chr(97 + range::INT) AS page FROM range(2)"""
    )
    source = PushSource("clicks", schema=[Field("cents", "int64"), Field("page", "string")])
    wanted = [("sum", "cents"), ("max", "cents"), ("mean", "cents"), ("last", "page")]
    declared = FeatureView(
        "spending", entities=[USER], source=source,
        aggregations=[Aggregation(function=function, column=column, over="1m") for function, column in wanted],
    )  # fmt: skip
    at = datetime.fromisoformat("2024-01-01T00:00:30+00:00")
    assert answers(database, declared, [(1, at)]) == [(18014398509481985, 9007199254740993, 9007199254740992.0, "b")]


def test_a_late_event_is_in_a_window_from_when_it_was_known_and_in_feast_from_the_start() -> None:
    database = connection()
    put_events(database, [Row((1,), minute(10), minute(14), (1.0, "a")), Row((1,), minute(11), None, (1.0, "a"))])
    definitions = defined(view([Aggregation(function="count", over="7m")]))
    labels = [{"user": 1, "event_timestamp": minute(at)} for at in (13, 14)]
    for corrected, wanted in ((False, [0, 1]), (True, [2, 2])):
        got = ask(database, definitions, labels, ["spending:count_7m"], corrected=corrected)
        assert [row["count_7m"] for row in got.rows()] == wanted
