"""Point-in-time joins: what a label gets is what was known at its moment, whatever the rows look like."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from offline_world import NOWHERE, Row, ask, by_key, connection, defined, expected, minute, put, seed_of

from drivetrain.core.features import Entity, FeatureView, Field, TableSource
from drivetrain.features.latest import latest

pytestmark = pytest.mark.slow

SHOP = Entity("shop", join_keys=("country", "shop"), value_type=str)
TYPES = {"country": str, "shop": str, "event_timestamp": type(minute(0)), "known": type(minute(0)), "a": int, "b": str}
TTLS = (None, timedelta(minutes=1), timedelta(minutes=9))
CREATED = ("known", None)
MINUTES = 40
"""Times are whole minutes of this span, so that equal times are everywhere."""


def view(ttl: timedelta | None = None, created: str | None = "known") -> FeatureView:
    return FeatureView(
        "stats", entities=[SHOP], ttl=ttl, schema=[Field("a", "int64"), Field("b", "string")],
        source=TableSource("facts", created_timestamp_column=created),
    )  # fmt: skip


def fact(
    country: str | None, shop: str | None, event: float | None, known: float | None, a: int | None, b: str | None = ""
) -> Row:
    times = [None if one is None else minute(one) for one in (event, known)]
    return Row((country, shop), *times, (a, b))


def put_facts(database: Any, facts: Sequence[Row]) -> None:
    put(database, "facts", TYPES, [(*one.key, one.event, one.created, *one.values) for one in facts])


def put_labels(database: Any, labels: Sequence[tuple[Any, Any, Any]]) -> None:
    put(database, "labels", {"country": str, "shop": str, "event_timestamp": type(minute(0))}, labels)


def answers(database: Any, declared: FeatureView, **options: Any) -> list[tuple[Any, Any]]:
    """(a, b) of each row of `labels`, in its order."""
    with_features = ask(database, defined(declared), "SELECT * FROM labels", ["stats:a", "stats:b"], **options)
    got = with_features.relation.project("a, b").fetchall()
    with_features.close()
    return got


def one(database: Any, at: float, declared: FeatureView, **options: Any) -> Any:
    """`a` of the shop de/1 at a minute."""
    put_labels(database, [("de", "1", minute(at))])
    return answers(database, declared, **options)[0][0]


def random_facts(dice: random.Random, count: int, shops: int) -> list[Row]:
    """Rows of which many are late, early, twice, corrected, or lack a time or a key."""
    facts: list[Row] = []
    for _ in range(count):
        if facts and dice.random() < 0.15:
            twin = dice.choice(facts)
            key, event, created = twin.key, twin.event, twin.created
            if dice.random() < 0.5:
                created = minute(dice.randrange(MINUTES))
        else:
            country = dice.choice(["de", "fr"]) if dice.random() < 0.98 else None
            key = (country, str(dice.randrange(shops)) if dice.random() < 0.98 else None)
            event = minute(dice.randrange(MINUTES)) if dice.random() < 0.98 else None
            late = dice.choice([-3, 0, 0, 0, 1, 5, dice.randrange(MINUTES)])
            created = None if event is None or dice.random() < 0.02 else event + timedelta(minutes=late)
        values = (dice.choice([None, *range(5)]), dice.choice([None, "", "x", "y"]))
        facts.append(Row(key, event, created, values))
    return facts


def random_labels(dice: random.Random, count: int, shops: int) -> list[tuple[Any, Any, Any]]:
    """Labels of known shops, of unknown ones, and some without a key or a time."""
    return [
        (
            dice.choice(["de", "fr"]) if dice.random() < 0.98 else None,
            str(dice.randrange(shops + shops // 10 + 1)) if dice.random() < 0.98 else None,
            minute(dice.randrange(-3, MINUTES + 15)) if dice.random() < 0.98 else None,
        )
        for _ in range(count)
    ]


def check_against_brute_force(name: str, labels_count: int) -> None:
    dice = random.Random(seed_of(name))
    combinations = [(ttl, created, corrected) for ttl in TTLS for created in CREATED for corrected in (False, True)]
    each = -(-labels_count // len(combinations))
    database = connection()
    for ttl, created, corrected in combinations:
        shops = dice.choice([1, 30, 1_000])
        facts = random_facts(dice, max(40, min(each // 3, shops * 20)), shops)
        labels = random_labels(dice, each, shops)
        put_facts(database, facts)
        put_labels(database, labels)
        got = answers(database, view(ttl, created), corrected=corrected)
        assert len(got) == len(labels)
        known: dict[Any, Any] = {}
        of = by_key(facts)
        for label, answer in zip(labels, got, strict=True):
            if label not in known:
                key, at = label[:2], label[2]
                rows = of.get(key, ()) if at is not None else ()
                known[label] = expected(rows, at, ttl, created=created is not None, corrected=corrected) or (None, None)
            assert answer == known[label], (label, ttl, created, corrected)


def test_random_labels_get_what_brute_force_finds() -> None:
    check_against_brute_force("asof", 200_000)


def test_a_million_random_labels_get_what_brute_force_finds() -> None:
    check_against_brute_force("asof, a million", 1_000_000)


@pytest.mark.parametrize("created", CREATED)
def test_nothing_beyond_a_label_changes_what_it_gets(created: str | None) -> None:
    dice = random.Random(seed_of("no look into the future"))
    database, now = connection(), 25
    facts = random_facts(dice, 3_000, 60)
    labels = [label for label in random_labels(dice, 5_000, 60) if label[2] is None or label[2] <= minute(now)]
    put_labels(database, labels)

    def beyond(row: Row) -> bool:
        late = created is not None and (row.created is None or row.created > minute(now))
        return row.event is None or row.event > minute(now) or late

    put_facts(database, facts)
    before = answers(database, view(None, created))
    assert len({answer for answer in before if answer != (None, None)}) > 5
    for _ in range(5):
        changed = [row for row in facts if not beyond(row)]
        for row in filter(beyond, facts):
            if dice.random() < 0.3:
                continue
            values = (dice.randrange(100, 200), "the future")
            later = minute(now + 1 + dice.randrange(50))
            event = dice.choice([later, row.event]) if created else later
            known = later if event is None or event <= minute(now) else dice.choice([row.created, later])
            changed += [Row(row.key, event, known, values)] * dice.choice([1, 2])
        assert changed != facts
        put_facts(database, changed)
        assert answers(database, view(None, created)) == before


def test_the_order_of_rows_never_decides() -> None:
    dice = random.Random(seed_of("order"))
    database = connection()
    facts = random_facts(dice, 4_000, 20)
    put_labels(database, random_labels(dice, 3_000, 20))
    put_facts(database, facts)
    before = answers(database, view())
    dice.shuffle(facts)
    put_facts(database, facts)
    assert answers(database, view()) == before


def test_a_row_counts_from_its_event_time_to_the_very_end_of_its_ttl() -> None:
    database = connection()
    put_facts(database, [fact("de", "1", 10, 10, 7)])
    declared = view(timedelta(minutes=5))
    assert [one(database, at, declared) for at in (9.999, 10, 15, 15.001)] == [None, 7, 7, None]


def test_a_late_row_counts_from_when_it_was_known_and_in_feast_from_the_start() -> None:
    database = connection()
    put_facts(database, [fact("de", "1", 10, 10, 1), fact("de", "1", 12, 20, 2)])
    assert [one(database, at, view()) for at in (11, 12, 19.999, 20)] == [1, 1, 1, 2]
    assert [one(database, at, view(), corrected=True) for at in (11, 12, 20)] == [1, 2, 2]


def test_a_late_correction_of_the_past_does_not_replace_what_is_newer() -> None:
    database = connection()
    put_facts(database, [fact("de", "1", 10, 10, 1), fact("de", "1", 15, 15, 2), fact("de", "1", 12, 30, 3)])
    assert one(database, 40, view()) == 2


def test_a_late_row_that_outlived_its_ttl_hides_nothing() -> None:
    database = connection()
    put_facts(database, [fact("de", "1", 1, 20, 1), fact("de", "1", 18, 18, 2)])
    assert one(database, 21, view(timedelta(minutes=5))) == 2


def test_of_equal_event_times_the_last_created_wins_then_the_greatest_values() -> None:
    database = connection()
    facts = [
        fact("de", "1", 10, 8, 9),
        fact("de", "1", 10, 9, 1, "a"),
        fact("de", "1", 10, 9, 1, "b"),
        fact("de", "1", 10, 9, None, "z"),
    ]
    put_facts(database, facts)
    put_labels(database, [("de", "1", minute(10))])
    assert answers(database, view()) == [(1, "b")]


def test_rows_without_a_time_or_a_key_never_count() -> None:
    database = connection()
    facts = [
        fact("de", "1", None, 1, 1),
        fact("de", "1", 2, None, 2),
        fact(None, "1", 3, 3, 3),
        fact("de", None, 4, 4, 4),
    ]
    put_facts(database, facts)
    put_labels(database, [("de", "1", minute(9)), (None, "1", minute(9)), ("de", None, minute(9)), ("de", "1", None)])
    assert answers(database, view()) == [(None, None)] * 4
    assert answers(database, view(), corrected=True)[0] == (2, "")


def test_keys_are_compared_whole() -> None:
    database = connection()
    put_facts(database, [fact("a", "bc", 1, 1, 1), fact("ab", "c", 1, 1, 2)])
    put_labels(database, [("ab", "c", minute(2)), ("a", "bc", minute(2)), ("a", "c", minute(2))])
    assert [a for a, _ in answers(database, view())] == [2, 1, None]


def test_a_view_without_entities_holds_for_every_label() -> None:
    database = connection()
    put_facts(database, [fact("de", "1", 10, 10, 1), fact("fr", "2", 12, 12, 2)])
    put_labels(database, [(None, None, minute(11)), ("de", "1", minute(13)), ("de", "1", minute(9))])
    declared = FeatureView("stats", entities=[], schema=view().schema, source=TableSource("facts"))
    assert [a for a, _ in answers(database, declared)] == [1, 2, None]


@pytest.mark.parametrize("created", CREATED)
@pytest.mark.parametrize("ttl", TTLS)
def test_what_is_materialized_is_what_a_label_of_that_moment_gets(created: str | None, ttl: timedelta | None) -> None:
    dice = random.Random(seed_of("latest"))
    database, now = connection(), minute(25)
    facts = random_facts(dice, 3_000, 100)
    put_facts(database, facts)
    made = latest(database, defined(view(ttl, created)).view("stats"), int(now.timestamp() * 1e6), root=NOWHERE)
    got = {row[:2]: row[2:4] for row in made.relation.project("country, shop, a, b").fetchall()}
    found = {
        key: values
        for key, rows in by_key(facts).items()
        if (values := expected(rows, now, ttl, created=created is not None, corrected=False)) is not None
    }
    assert got == found
    assert made.rows == len(found) > 0
