"""A model's columns are the input's fields and the features of its workflow's FeatureService, live and replayed."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from promise_gateway import Gateway
from sklearn.linear_model import LinearRegression

import drivetrain as dt
from support.projects import settings

pytestmark = pytest.mark.slow

FEATURES = """\
import drivetrain as dt

customer = dt.Entity("customer")
orders = dt.FeatureView(
    "orders", entities=[customer], source=dt.FileSource("data/orders.csv"),
    schema=[dt.Field("orders", int, default=0), dt.Field("basket", float, default=10.0)],
)
inputs = dt.FeatureService("inputs", features=[orders])
"""
WORKFLOWS = """\
import drivetrain as dt


class Ask(dt.Record):
    who: str
    amount: float


class Told(dt.Record):
    worth: float


def settle(case):
    return dt.act("call", "worth it") if case.answer.worth > 100 and case.features["orders"] else dt.act("wait")


worth = dt.Workflow(
    "worth", input=Ask, output=Told, owner="team@acme.example", team="support", use_case="tests",
    features="inputs", entity_keys={"customer": "who"}, retention="full",
    route=[dt.Variant("model", model="models:/worth@champion")],
    policy=dt.Policy("settle", decide=settle, reads=("features.orders", "answer.worth")),
)
"""
ROWS = "customer,event_timestamp,orders,basket\nada,2026-01-05T09:00:00Z,3,40\nbob,2026-01-06T10:00:00Z,1,8\n"


def expected(amount: float, orders: float, basket: float) -> float:
    return 2 * amount + 10 * orders - basket


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(tmp_path_factory.mktemp("worth"))
    made.write({"drivetrain.toml": settings(), "data/orders.csv": ROWS})
    rows = np.random.default_rng(1).uniform(0, 50, (200, 3))
    estimator = LinearRegression().fit(rows, [expected(*row) for row in rows])
    dt.import_model(
        estimator, "worth", sample=rows, columns=["amount", "orders", "basket"], target="worth", project=made.root
    )
    registry = dt.open_registry(made.root)
    registry.move_alias("worth", "champion", 1, reason="a test")
    made.write({"features/shop.py": FEATURES, "workflows/worth.py": WORKFLOWS})
    made.command("features", "materialize")
    made.start()
    yield made
    if made.alive:
        made.stop()


def ask(gateway: Gateway, who: str, amount: float) -> dict[str, Any]:
    body = json.dumps({"who": who, "amount": amount}).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}/v1/workflows/worth", body) as answer:
        return json.loads(answer.read())  # type: ignore[no-any-return]


def test_columns_come_from_the_input_and_from_features(gateway: Gateway) -> None:
    ada, bob, new = ask(gateway, "ada", 50.0), ask(gateway, "bob", 5.0), ask(gateway, "nobody", 60.0)
    assert ada["output"]["worth"] == pytest.approx(expected(50, 3, 40), abs=1e-3)
    assert bob["output"]["worth"] == pytest.approx(expected(5, 1, 8), abs=1e-3)
    assert new["output"]["worth"] == pytest.approx(expected(60, 0, 10), abs=1e-3)
    assert [one["decision"]["action"] for one in (ada, bob, new)] == ["wait", "wait", "wait"]
    assert ask(gateway, "ada", 80.0)["decision"]["action"] == "call"


def test_its_calls_are_replayed_with_the_features_that_they_saw(gateway: Gateway) -> None:
    ask(gateway, "ada", 90.0)
    gateway.write({"data/orders.csv": ROWS.replace(",3,40", ",9,1")})
    gateway.command("features", "materialize")
    replayed = json.loads(gateway.command("replay", "--json"))
    assert replayed["different"] == []
    assert replayed["same"] >= 1
    (found,) = json.loads(
        gateway.command("sql", "select count(*) as made from decisions where policy = 'settle'", "--json")
    )
    assert found["made"] == replayed["same"]
