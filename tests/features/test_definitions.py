"""Declarations: what they come to, what their fingerprints tell apart, and every mistake that `check` finds at once."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from offline_world import defined

from drivetrain.core.declarations import Record, Workflow
from drivetrain.core.errors import DrivetrainError, Problem
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
    on_demand_feature_view,
)
from drivetrain.features.checks import check
from drivetrain.features.definitions import define
from drivetrain.project.snapshot import Features, GatewaySettings, LedgerSettings, Snapshot

CUSTOMER = Entity("customer", join_keys=["customer_id"], value_type=int)
ORDER = Entity("order", join_keys=["customer_id", "order_id"], value_type=int)
FACTS = TableSource("facts")


def stats(**changes: Any) -> FeatureView:
    usual: dict[str, Any] = {
        "entities": [CUSTOMER], "source": FACTS, "ttl": "2d",
        "schema": [Field("orders", "int64", default=0), Field("spent", float), Field("since", datetime)],
    }  # fmt: skip
    return FeatureView("stats", **(usual | changes))


def ratio(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"ratio": row["spent"] / row["amount"]}


def ratios(view: FeatureView, function: Any = ratio) -> OnDemandFeatureView:
    basket = RequestSource("basket", schema=[Field("amount", float)])
    return OnDemandFeatureView(
        "ratios", sources=[view[["spent"]], basket], schema=[Field("ratio", float)], function=function
    )


def fingerprint(view: FeatureView, *parts: Any, function: Any = ratio) -> str:
    computed = ratios(view, function)
    service = FeatureService("triage", features=[*(parts or (view[["orders"]],)), computed])
    return defined(view, computed, service).service("triage").fingerprint


def test_a_service_is_its_features_in_order_with_all_that_they_need() -> None:
    view = stats()
    items = FeatureView("items", entities=[ORDER], source=FACTS, schema=[Field("count", int)])
    computed = ratios(view)
    service = FeatureService("triage", features=[items, view[["since", "orders"]], computed])
    made = defined(view, items, computed, service).service("triage")
    assert [one.full_name for one in made.features] == [
        "items__count",
        "stats__since",
        "stats__orders",
        "ratios__ratio",
    ]
    assert [(one.dtype, one.default) for one in made.features][1:] == [
        ("timestamp", None),
        ("int64", 0),
        ("float64", None),
    ]
    assert [one.on_demand for one in made.features] == [False, False, False, True]
    assert [(one.name, one.dtype) for one in made.request] == [("amount", "float64")]
    assert [[key.name for key in group.keys] for group in made.groups] == [["customer_id", "order_id"], ["customer_id"]]
    assert [one.name for one in made.groups[1].reads[0].features] == ["since", "orders", "spent"]
    assert [key.name for key in made.keys] == ["customer_id", "order_id"]


def test_a_view_has_its_keys_types_and_durations() -> None:
    view = defined(stats(ttl=timedelta(hours=36))).view("stats")
    assert view.join_keys == ("customer_id",)
    assert view.ttl_us == 36 * 3_600 * 1_000_000
    assert defined(stats(ttl="2w")).view("stats").ttl_us == 14 * 86_400 * 1_000_000
    assert defined(stats(ttl=timedelta(0))).view("stats").ttl_us is None, "as in Feast"


def test_windows_are_typed_by_what_they_count_or_by_the_pushed_column() -> None:
    clicks = PushSource("clicks", schema=[Field("page", str), Field("cents", int)])
    view = FeatureView(
        "window", entities=[CUSTOMER], source=clicks,
        aggregations=[Aggregation(function=function, column=column, over="1h") for function, column in (
            ("last", "page"), ("sum", "cents"), ("mean", "cents"), ("approx_distinct", "page"), ("max", "other"))]
        + [Aggregation(function="count", over="7d", name="clicks")],
    )  # fmt: skip
    made = defined(view).view("window")
    assert [(one.name, one.dtype, one.default) for one in made.features] == [
        ("page_last_1h", "string", None), ("cents_sum_1h", "int64", None), ("cents_mean_1h", "float64", None),
        ("page_approx_distinct_1h", "int64", 0), ("other_max_1h", "float64", None), ("clicks", "int64", 0),
    ]  # fmt: skip


def test_a_fingerprint_tells_apart_whatever_changes_a_value() -> None:
    base = fingerprint(stats())
    assert len(base) == 16
    assert int(base, 16) >= 0
    changed = [
        fingerprint(stats(ttl="3d")),
        fingerprint(stats(ttl=None)),
        fingerprint(stats(source=TableSource("facts", created_timestamp_column="known"))),
        fingerprint(stats(source=TableSource("fact"))),
        fingerprint(stats(source=SqlSource("facts", query="FROM facts"))),
        fingerprint(stats(source=PushSource("facts", batch_source=FACTS))),
        fingerprint(stats(schema=[Field("orders", "int64", default=1), Field("spent", float)])),
        fingerprint(stats(schema=[Field("orders", "float64", default=0), Field("spent", float)])),
        fingerprint(stats(entities=[ORDER])),
        fingerprint(stats(), stats()[["orders", "since"]]),
        fingerprint(stats(), function=lambda row: {"ratio": 0.0}),
    ]
    assert len({base, *changed}) == len(changed) + 1


def test_a_fingerprint_stays_where_no_value_changes() -> None:
    base = fingerprint(stats())
    more = [*stats().schema, Field("unused", float)]
    for same in (
        stats(),
        stats(ttl=timedelta(days=2)),
        stats(description="Other words.", owner="somebody@acme.example", tags={"a": "b"}, online=False),
        stats(schema=more),
    ):
        assert fingerprint(same) == base


def test_the_order_of_features_is_part_of_a_service() -> None:
    view = stats()
    assert fingerprint(view, view[["orders", "since"]]) != fingerprint(view, view[["since", "orders"]])


def test_features_named_one_by_one_are_a_service_without_a_name() -> None:
    view = stats()
    made = defined(view).select(["stats:since", "stats:orders"])
    assert made.name == ""
    assert [one.reference for one in made.features] == ["stats:since", "stats:orders"]
    with pytest.raises(DrivetrainError, match="`stats__since` twice"):
        defined(view).select(["stats:since", "stats:since"])


def test_a_decorated_function_is_a_view_of_its_name() -> None:
    view = stats()

    @on_demand_feature_view(sources=[view], schema=[Field("twice", int)])
    def doubled(row: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"twice": row["orders"] * 2}

    made = defined(view, doubled).on_demand["doubled"]
    assert [one.argument for one in made.inputs] == ["orders", "spent", "since"]


class Ticket(Record):
    customer_id: int
    customer: str
    amount: float = 1.0


def problems(workflows: Any = (), **features: Any) -> list[Problem]:
    """What `check` says of a project."""
    named = {kind: {one.name: one for one in declared} for kind, declared in features.items()}
    snapshot = Snapshot(
        hash="0" * 64, name="test", environment="dev", root=Path(__file__).parent, files={}, templates={},
        workflows={one.name: one for one in workflows}, direct=frozenset(), providers={}, models={}, keys={}, teams=(),
        gateway=GatewaySettings(), ledger=LedgerSettings(), features=Features(**named),
    )  # fmt: skip
    return list(check(snapshot))


def whats(found: list[Problem]) -> list[str]:
    return [one.what for one in found]


def test_a_right_project_has_no_mistakes() -> None:
    view = stats()
    computed = ratios(view)
    service = FeatureService("triage", features=[view, computed])
    mapped = Workflow[Ticket, str]("triage", input=Ticket, features=service)
    found = problems(
        [mapped], entities=[CUSTOMER], views=[view], on_demand=[computed], services=[service], sources=[FACTS]
    )
    assert found == []


def test_every_mistake_is_found_at_once_with_its_line() -> None:
    wrong_entity = Entity("Big", value_type="float64", join_key="id")
    wrong_source = FileSource("../x.csv", timestamp_field="", fresh_within="soon")
    wrong_view = FeatureView(
        "stats", entities=[wrong_entity], source=wrong_source, ttl="2 days",
        schema=[
            Field("a", "int64", default="x"), Field("A", "float64"), Field("b", "decimal"),
            Field("event_timestamp", int),
        ],
    )  # fmt: skip
    wrong_windows = FeatureView(
        "windows", entities=[CUSTOMER], source=PushSource("clicks", schema=[Field("page", str)]), ttl="2d",
        aggregations=[
            Aggregation(function="median", column="x", over="1h"), Aggregation(function="sum", over="1h"),
            Aggregation(function="sum", column="page", over="1h"), Aggregation(function="count", over="7"),
            Aggregation(function="count", over="1h", default="none"),
        ],
    )  # fmt: skip

    def two(row: Any, other: Any) -> Any:
        return {}

    wrong_function = OnDemandFeatureView("ratio", sources=[wrong_view[["nothing"]]], schema=[], function=two)
    empty = FeatureView("empty", entities=[CUSTOMER], source=FACTS)
    service = FeatureService("triage", features=[wrong_view[["a", "c"]], wrong_view[["a"]], stats()[["x"]], empty])
    missing = FeatureService("other", features=[FeatureView("stat", entities=[], source=FACTS)])
    found = problems(
        entities=[wrong_entity], views=[wrong_view, wrong_windows, empty], on_demand=[wrong_function],
        services=[service, missing], sources=[wrong_source],
    )  # fmt: skip
    said = "\n".join(whats(found))
    for expected in (
        "Entity `Big` has a wrong name",
        "Entity `Big` has no argument `join_key`",
        "Entity `Big` has keys that are fractions",
        "FileSource `../x.csv` has a wrong `timestamp_field`",
        "FileSource `../x.csv` has a wrong `fresh_within`",
        "FileSource `../x.csv` has a path that is none in the project",
        "FeatureView `stats` has a wrong `ttl`",
        "FeatureView `stats` has a default for `a` that is no int64",
        "FeatureView `stats` has `A` twice",
        "FeatureView `stats` has a wrong type for `b`",
        "FeatureView `stats` calls a feature `event_timestamp`",
        "FeatureView `windows` has the unknown aggregation `median`",
        "FeatureView `windows` has a `sum` over no column",
        "FeatureView `windows` has a `sum` of `page`, which is string",
        "FeatureView `windows` has a wrong `over`",
        "FeatureView `windows` has a default for `count_1h` that is no int64",
        "FeatureView `windows` has `aggregations` and a `ttl`",
        "FeatureView `empty` has no features",
        "OnDemandFeatureView `ratio` names the feature `stats:nothing`",
        "OnDemandFeatureView `ratio` has no features",
        "OnDemandFeatureView `ratio` has a function that takes 2 arguments instead of one",
        "FeatureService `triage` names the feature `stats:c`",
        "FeatureService `triage` has `stats:a` twice",
        "FeatureService `other` names `stat`, which is not declared",
    ):
        assert expected in said, expected
    assert {one.file for one in found} == {"test_definitions.py"}
    assert all(one.line > 0 for one in found)
    assert next(one.do for one in found if "join_key`" in one.what) == "Did you mean `join_keys`?"
    assert next(one.do for one in found if "`stat`" in one.what) == "Did you mean `stats`?"


def test_keys_of_two_types_are_found() -> None:
    other = Entity("customers", join_keys=["customer_id"], value_type=str)
    assert whats(problems(entities=[CUSTOMER, other])) == [
        "Entity `customers` has the key `customer_id` as string; Entity `customer` has it as int64."
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"features": "triag"}, "names the FeatureService `triag`, which is not declared"),
        ({"features": None, "entity_keys": {"a": "b"}}, "has `entity_keys` but no `features`"),
        ({"input": None}, "has no input field `customer_id`, which FeatureService `triage` needs"),
        ({"entity_keys": {"customer_id": "customers"}}, "has no input field `customers`"),
        ({"entity_keys": {"customer_id": "customer"}}, "has an input field `customer` that is no int64"),
        ({"entity_keys": {"customer_ids": "customer"}}, "has `customer_ids` in `entity_keys`"),
        ({"features_missing": "defaults"}, "has a wrong `features_missing`"),
    ],
)
def test_workflows_that_cannot_look_their_features_up_are_found(changes: dict[str, Any], expected: str) -> None:
    view = stats()
    computed = ratios(view)
    service = FeatureService("triage", features=[view, computed])
    usual: dict[str, Any] = {"input": Ticket, "features": service}
    workflow: Workflow[Any, Any] = Workflow("answer", **(usual | changes))
    found = problems([workflow], views=[view], on_demand=[computed], services=[service], entities=[CUSTOMER])
    assert any(expected in one for one in whats(found)), whats(found)
    assert all("Workflow `answer`" in one for one in whats(found))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ttl": "2 days"}, "wrong duration"),
        ({"ttl": timedelta(days=40_000)}, "wrong duration"),
        ({"schema": [Field("a", "int32")]}, "wrong type"),
        ({"schema": [Field("a", int, default=1.5)]}, "wrong default"),
        ({"schema": [Field("a", int), Field("a", int)]}, "twice"),
    ],
)
def test_a_wrong_declaration_is_never_defined(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DrivetrainError, match=said):
        define(Features(views={"stats": stats(**changes)}))


def test_a_default_is_read_like_every_value() -> None:
    fields = [Field("a", float, default=1), Field("b", datetime, default="2024-01-01T00:00:00+02:00")]
    made = defined(stats(schema=fields)).view("stats")
    assert repr(made.feature("a").default) == "1.0"
    assert made.feature("b").default == datetime(2023, 12, 31, 22, tzinfo=UTC)
