"""Promise 22: features before the route, through a real gateway. Rules see them, records keep them, parity holds.

The provider is not asked: rules answer from features alone, so what a client gets is what the vectors hold.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from promise_gateway import Gateway

from support.projects import model, provider, settings

pytestmark = pytest.mark.slow

CODE = """\
import drivetrain as dt

customer = dt.Entity("customer")
orders = dt.FeatureView(
    "orders", entities=[customer], source=dt.FileSource("data/orders.csv", created_timestamp_column="known"),
    schema=[dt.Field("orders", int, default=0), dt.Field("basket", float)],
)
clicks = dt.PushSource("clicks", schema=[dt.Field("page", str)])
last_click = dt.FeatureView(
    "last_click", entities=[customer], source=clicks, schema=[dt.Field("page", str, default="")]
)
"""
MORE = """\
spent = dt.FeatureView(
    "spent", entities=[customer], source=dt.FileSource("data/orders.csv", created_timestamp_column="known"),
    aggregations=[dt.Aggregation(function="sum", column="basket", over="3650d", name="total", default=0.0)],
)


@dt.on_demand_feature_view(
    sources=[spent, dt.RequestSource("cart", schema=[dt.Field("amount", float)])], schema=[dt.Field("share", float)],
)
def cart(row):
    return {"share": row["amount"] / row["total"] if row["total"] else None}


inputs = dt.FeatureService("inputs", features=[orders, last_click, spent, cart])
"""
WORKFLOW = """\
import drivetrain as dt


class Ask(dt.Record):
    who: str
    amount: float = 0.0


class Told(dt.Record):
    said: str


def tell(ask, features):
    return Told(" ".join(f"{name}={features[name]}" for name in sorted(features)))


told = dt.Workflow(
    "told", input=Ask, output=Told, owner="team@acme.example", team="support", use_case="tests",
    features="inputs", entity_keys={"customer": "who"}, outcome_key="who",
    route=[dt.Rule("tell", when=lambda ask: True, then=tell)],
)
strict = dt.Workflow(
    "strict", input=Ask, output=Told, owner="team@acme.example", team="support", use_case="tests",
    features="inputs", features_missing="refuse", entity_keys={"customer": "who"},
    route=[dt.Rule("tell", when=lambda ask: True, then=tell)],
)
"""
ROWS = (
    "customer,event_timestamp,known,orders,basket\n"
    "ada,2026-01-05T09:00:00Z,2026-01-05T09:00:00Z,3,41.5\n"
    "ada,2026-01-04T09:00:00Z,2026-01-04T09:00:00Z,2,41.5\n"
    "bob,2026-01-06T10:00:00Z,2026-01-06T10:00:00Z,1,8\n"
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    root = tmp_path_factory.mktemp("featured")
    made = Gateway(root, workers=2)
    made.write(
        {
            "drivetrain.toml": settings(tables=provider("up", "http://127.0.0.1:9/v1") + model("up/small")),
            "features/shop.py": CODE + MORE,
            "workflows/told.py": WORKFLOW,
            "data/orders.csv": ROWS,
        }
    )
    made.command("features", "materialize")
    made.start()
    yield made
    made.stop()


def ask(gateway: Gateway, workflow: str, body: dict[str, Any], path: str = "") -> tuple[int, dict[str, Any]]:
    url = f"http://127.0.0.1:{gateway.port}" + (path or f"/v1/workflows/{workflow}")
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode())) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def said(gateway: Gateway, **body: Any) -> str:
    status, answer = ask(gateway, "told", body)
    assert status == 200, answer
    text: str = answer["output"]["said"]
    return text


def test_rules_answer_from_vectors_windows_and_functions(gateway: Gateway) -> None:
    assert said(gateway, who="ada", amount=83) == "basket=41.5 orders=3 page= share=1.0 total=83.0"
    assert said(gateway, who="bob", amount=4) == "basket=8.0 orders=1 page= share=0.5 total=8.0"
    assert said(gateway, who="nobody") == "basket=None orders=0 page= share=None total=0.0"


def test_a_missing_entity_is_refused_where_the_workflow_says_so(gateway: Gateway) -> None:
    status, answer = ask(gateway, "strict", {"who": "nobody"})
    assert (status, answer["error"]["code"]) == (422, "features_missing")
    assert ask(gateway, "strict", {"who": "ada"})[0] == 200


def test_a_push_and_a_materialization_reach_running_workers(gateway: Gateway) -> None:
    folder: Path = gateway.root
    (folder / "click.jsonl").write_text('{"customer": "bob", "page": "prices"}\n')
    gateway.command("features", "push", "clicks", str(folder / "click.jsonl"))
    for _ in range(8):  # both workers
        assert "page=prices" in said(gateway, who="bob")
    (folder / "data/orders.csv").write_text(ROWS + "eve,2026-01-07T10:00:00Z,2026-01-07T10:00:00Z,9,1\n")
    gateway.command("features", "materialize")
    for _ in range(8):
        assert said(gateway, who="eve").startswith("basket=1.0 orders=9")
        assert "page=prices" in said(gateway, who="bob"), "what was pushed is folded in"


def test_what_calls_saw_is_what_training_computes(gateway: Gateway) -> None:
    said(gateway, who="ada", amount=1)
    said(gateway, who="nobody", amount=1)
    report = json.loads(gateway.command("features", "parity", "--json"))
    assert report["calls"] >= 2
    (features,) = report["features"].values()
    assert [one for one in features if one["mismatch"] or one["missing"] or one["extra"]] == []
    assert {one["feature"] for one in features} == {
        "orders:orders", "orders:basket", "last_click:page", "spent:total", "cart:share"
    }  # fmt: skip
    assert all(one["match"] == report["calls"] for one in features)


def test_a_call_shows_what_it_saw(gateway: Gateway) -> None:
    call_id = ask(gateway, "told", {"who": "nobody", "amount": 2})[1]["call_id"]
    shown = json.loads(gateway.command("calls", "show", call_id, "--json", "--payload"))
    assert shown["business_key"] == "nobody"
    assert (shown["features"]["service"], shown["features"]["missing"]) == ("inputs", ["customer"])
    seen = shown["seen"]
    assert seen["values"]["orders"] == 0, "the values are among the payloads, whatever the retention"
    assert seen["given"] == {"customer": "nobody", "amount": 2.0}
    text = gateway.command("calls", "show", call_id)
    assert "missing: customer" in text
    assert "key       nobody" in text


def test_an_outcome_reaches_its_call_by_business_key(gateway: Gateway) -> None:
    said(gateway, who="zoe")
    label = {"workflow": "told", "key": "zoe", "metric": "paid", "value": True, "source": "shop"}
    assert ask(gateway, "", label, "/v1/outcomes")[0] == 200
    found = gateway.command(
        "sql", "select c.workflow, o.metric, o.value from calls c join outcomes o using (call_id)", "--json"
    )
    assert [(one["workflow"], one["metric"]) for one in json.loads(found)] == [("told", "paid")]


def test_another_definition_is_an_error_until_it_is_materialized(gateway: Gateway) -> None:
    code = (CODE + MORE).replace('dt.Field("basket", float)', 'dt.Field("basket", float, default=-1.0)')
    gateway.write({"features/shop.py": code.replace('"total", default=0.0', '"total", default=7.0')})
    gateway.command("features", "materialize")
    assert said(gateway, who="ada").startswith("basket=41.5"), "workers serve the Snapshot that they began with"
