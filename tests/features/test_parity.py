"""Online and offline mean the same, and where they do not, parity says which feature and why."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from online_world import CUSTOMERS, DECLARED, World, skew

from drivetrain.features.parity import FeatureParity, ParityReport, cause_of

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("DRIVETRAIN_TEST_SEED", "20260131"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    print(f"seed {SEED}")
    return World(tmp_path, seed=SEED)


def of(report: ParityReport, reference: str) -> FeatureParity:
    return next(one for one in report.features["everything"] if one.feature == reference)


def test_what_calls_saw_is_what_training_would_see(world: World) -> None:
    """Every type, window, function, ttl, late row, null and push, over days of a moving clock: not one difference."""
    for hours in (0, 5, 26, 70):
        world.pass_time(hours=hours)
        world.push_some(5)
        world.calls(12)
        world.store.materialize_incremental()
        world.calls(8)
        world.pass_time(minutes=40)
        world.push_some(4)
        world.calls(12)
    report = world.store.parity(world.seen)
    assert report.calls == len(world.seen)
    assert report.skipped == {}
    assert {one.feature: (one.causes, one.examples) for one in report.features["everything"] if one.differs} == {}
    # Not because nothing was there: each feature had values, and most were out of date at some Call.
    for name in world.seen[0].record.values:
        values = [repr(one.record.values[name]) for one in world.seen]
        assert len(set(values)) > 2 or name in ("vip", "n_sum_1d", "approx_distinct"), name
    assert sum(one.stale > 0 for one in report.features["everything"]) > 10
    assert any(seen.expired for one in world.seen for seen in one.record.views.values())
    assert any(one.record.views["click"].as_of_us > one.as_of_ns // 1_000 for one in world.seen)


@pytest.mark.parametrize(
    ("column", "change", "reference", "cause"),
    [
        ("mean", lambda value: value and round(value, 2), "stats:mean", "rounding"),
        ("price", lambda value: value and float(int(value * 1000) / 1000), "prices:price", "rounding"),
        ("since", lambda value: value and value + 2 * 3_600_000_000, "stats:since", "time zone"),
        ("city", lambda value: value or "unknown", "stats:city", "unknown"),
        ("orders", lambda value: 0 if value else value, "stats:orders", "default"),
    ],
)
def test_a_planted_skew_is_found_and_named(
    world: World, column: str, change: Callable[[Any], Any], reference: str, cause: str
) -> None:
    skew(world, column, change)
    world.store.materialize_incremental()
    for customer in CUSTOMERS:
        world.call(customer)
    report = world.store.parity(world.seen)
    found = of(report, reference)
    assert found.differs > 0
    assert max(found.causes, key=lambda name: found.causes[name]) == cause
    assert set(found.examples) <= {one.call_id for one in world.seen}
    assert all(
        one.differs == 0 for one in report.features["everything"] if one.feature not in (reference, "judged:kind")
    )


def test_another_default_is_named(world: World) -> None:
    """The serving side was deployed with another default than the project says now."""
    world.store.materialize_incremental()
    world.call("stranger", 99)
    seen = world.seen[0]
    assert seen.record.values["price"] == -1.0
    values = {**seen.record.values, "city": "unknown", "price": 0.0}
    record = msgspec.structs.replace(seen.record, values=values)
    report = world.store.parity([msgspec.structs.replace(seen, record=record)])
    for reference in ("stats:city", "prices:price"):
        assert of(report, reference).causes == {"default": 1}
        assert of(report, reference).mismatch == 1


def test_a_row_that_only_the_online_side_has_is_extra_and_one_that_it_lacks_is_missing(world: World) -> None:
    world.store.push("clicks", [{"customer": "c0", "n": 5, "page": "x"}], to="online")
    world.store.push("clicks", [{"customer": "c1", "n": 6, "page": "y"}], to="offline")
    world.pass_time(seconds=1)
    world.call("c0")
    world.call("c1")
    # The offline row came after the vectors' moment: late, not wrong.
    assert of(world.store.parity(world.seen), "click:n").extra == 1
    assert of(world.store.parity(world.seen), "click:n").missing == 0
    assert of(world.store.parity(world.seen), "click:n").stale >= 1
    moment = int(world.now.timestamp()) * 1_000_000
    later = msgspec.structs.replace(
        world.seen[1].record,
        views={name: msgspec.structs.replace(one, as_of_us=moment) for name, one in world.seen[1].record.views.items()},
    )
    lost = msgspec.structs.replace(world.seen[1], record=later)
    found = of(world.store.parity([lost]), "click:n")
    assert (found.missing, found.causes) == (1, {"default": 1})


def test_calls_of_another_definition_are_not_compared(world: World) -> None:
    world.call("c0")
    path = world.root / "features" / "customer.py"
    path.write_text(DECLARED.replace('default="nowhere"', 'default="elsewhere"'))
    report = world.reload().parity(world.seen)
    assert report.calls == 0
    assert report.skipped == {"its service was defined otherwise": 1}
    path.write_text(DECLARED.replace('"everything"', '"all_of_it"'))
    assert world.reload().parity(world.seen).skipped == {"its service is no longer declared": 1}


@pytest.mark.parametrize(
    ("seen", "expected", "dtype", "cause"),
    [
        (0.33, 1 / 3, "float64", "rounding"),
        (0.3333333432674408, 1 / 3, "float64", "rounding"),
        (1200.0, 1234.5, "float64", "rounding"),
        (0.30000000000000004, 0.3, "float64", "rounding"),
        (2.0, 5.0, "float64", "unknown"),
        ("3", 3, "int64", "type"),
        (3.0, 3, "int64", "type"),
        ("2026-01-01T02:00:00+00:00", "2026-01-01T00:00:00+00:00", "string", "time zone"),
        ("Köln", "Bonn", "string", "unknown"),
        (True, False, "bool", "unknown"),
    ],
)
def test_causes(seen: Any, expected: Any, dtype: str, cause: str) -> None:
    assert cause_of(seen, expected, dtype) == cause


def test_a_time_cut_to_seconds_is_rounding(world: World) -> None:
    exact = world.now + timedelta(microseconds=123_456)
    assert cause_of(world.now, exact, "timestamp") == "rounding"
    assert cause_of(exact - timedelta(hours=5, minutes=30), exact, "timestamp") == "time zone"
    assert cause_of(exact - timedelta(seconds=5), exact, "timestamp") == "unknown"
