"""Outcomes that name Calls by their workflow's business key, through the public door."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from support import wire
from support.projects import provider, settings
from support.served import Served, served

KEY = "client-key-abcdefghij-very-secret"
NARROW_KEY = "narrow-key-klmnopqrst-very-secret"
CODE = """\
import drivetrain as dt


class Order(dt.Record):
    number: str
    text: str = ""


class Count(dt.Record):
    number: int


refund = dt.Workflow(
    "refund", input=Order, owner="shop@acme.example", team="shop", use_case="refunds", outcome_key="number",
    route=[dt.Rule("all", when=lambda order: len(order.text) >= 0, then="ok")],
)
counted = dt.Workflow(
    "counted", input=Count, owner="shop@acme.example", team="shop", use_case="refunds", outcome_key="number",
    route=[dt.Rule("all", when=lambda order: order.number >= 0, then="ok")],
)
plain = dt.Workflow(
    "plain", owner="shop@acme.example", team="shop", use_case="refunds",
    route=[dt.Rule("all", when=lambda talk: len(talk.text) >= 0, then="ok")],
)
"""


@pytest.fixture(scope="module")
def gateway() -> Iterator[Served]:
    keys = (
        '[keys.app]\nsecret = "env:CLIENT_KEY"\n'
        '[keys.narrow]\nsecret = "env:NARROW_KEY"\nworkflows = ["plain", "counted"]\n'
    )
    toml = settings(tables=provider("none", "http://127.0.0.1:9/v1") + keys)
    files = {"drivetrain.toml": toml, "workflows/shop.py": CODE}
    with served(files, {"CLIENT_KEY": KEY, "NARROW_KEY": NARROW_KEY}) as running:
        yield running
        assert running.alive
        assert not running.faults, "\n".join(running.faults)


def called(gateway: Served, workflow: str, **given: Any) -> str:
    """The id of a fresh Call."""
    answer = wire.one(gateway.port, wire.request(given, path=f"/v1/workflows/{workflow}", key=KEY))
    assert answer.status == 200, answer
    return answer.headers["x-request-id"]


def sent(gateway: Served, body: Any, key: str = KEY) -> wire.Answered:
    return wire.one(gateway.port, wire.request(json.dumps(body).encode(), path="/v1/outcomes", key=key))


def good(**more: Any) -> dict[str, Any]:
    return {"workflow": "refund", "key": "A-1", "metric": "ok", "value": True, **more}


def values(gateway: Served, call_id: str) -> dict[tuple[str, str], Any]:
    return {(one.metric, one.source): one.value for one in gateway.call(call_id).outcomes}


def test_it_is_the_truth_about_every_call_with_that_key(gateway: Served) -> None:
    first, second = (called(gateway, "refund", number="A-1", text=text) for text in ("first", "second"))
    other = called(gateway, "refund", number="A-2")
    assert sent(gateway, [good(), good(key="A-2", value=False), good(metric="stars", value=4)]).status == 200
    later = called(gateway, "refund", number="A-1")
    for call_id in (first, second, later):
        assert values(gateway, call_id) == {("ok", "api"): True, ("stars", "api"): 4.0}
    assert values(gateway, other) == {("ok", "api"): False}


def test_of_a_call_and_a_key_the_last_arrival_holds(gateway: Served) -> None:
    call_id = called(gateway, "refund", number="B-1")
    named = {"call_id": call_id, "metric": "ok", "value": "by id"}
    for one, value in ((good(key="B-1", value="by key"), "by key"), (named, "by id"), (good(key="B-1", value=1), 1.0)):
        assert sent(gateway, one).status == 200
        assert values(gateway, call_id) == {("ok", "api"): value}


def test_a_number_is_the_same_key_in_call_and_outcome_however_it_is_written(gateway: Served) -> None:
    call_id = called(gateway, "counted", number=4711)
    assert sent(gateway, good(workflow="counted", key=4711, source="a")).status == 200
    assert sent(gateway, good(workflow="counted", key="4711", source="b")).status == 200
    assert values(gateway, call_id) == {("ok", "a"): True, ("ok", "b"): True}
    assert sent(gateway, good(key=4711)).status == 200
    assert len(values(gateway, call_id)) == 2, "a key of another workflow"


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown": ({"workflow": "refnd"}, "workflow", "Did you mean `refund`?"),
    "no-outcome-key": ({"workflow": "plain"}, "workflow", "declares no `outcome_key`; name its Calls by `call_id`"),
    "workflow-number": ({"workflow": 5}, "workflow", "must be the name"),
    "workflow-missing": ({"workflow": None}, "workflow", "must be the name"),
    "workflow-huge": ({"workflow": "x" * 100_000}, "workflow", "names no workflow"),
    "key-missing": ({"key": None}, "key", "must be what `number` held"),
    "key-empty": ({"key": ""}, "key", "must be what `number` held"),
    "key-true": ({"key": True}, "key", "must be what `number` held"),
    "key-float": ({"key": 1.5}, "key", "must be what `number` held"),
    "key-list": ({"key": ["A-1"]}, "key", "must be what `number` held"),
    "key-long": ({"key": "k" * 257}, "key", "must be what `number` held"),
    "key-control": ({"key": "A\x1b[2J"}, "key", "must be what `number` held"),
    "beside-call": ({"call_id": "call_0123456789abcdef0123456789abcd"}, "call_id", "stands beside"),
}


@pytest.mark.parametrize(("change", "field", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_one_is_a_400_that_names_it_and_nothing_is_recorded(
    gateway: Served, change: dict[str, Any], field: str, said: str
) -> None:
    call_id = called(gateway, "refund", number="C-1")
    answer = sent(gateway, [good(key="C-1"), good(**change)])
    assert answer.status == 400, answer
    assert answer.error["param"] == f"outcomes[1].{field}"
    assert said in answer.error["message"]
    assert len(answer.body) < 2_000
    assert values(gateway, call_id) == {}


def test_a_key_speaks_only_about_workflows_that_it_may_call(gateway: Served) -> None:
    """Business keys can be guessed, where ids of Calls cannot."""
    call_id = called(gateway, "refund", number="D-1")
    answer = sent(gateway, good(key="D-1"), NARROW_KEY)
    assert answer.status == 400
    assert "names no workflow: `refund`" in answer.error["message"]
    assert "Known: `counted`, `plain`." in answer.error["message"]
    assert values(gateway, call_id) == {}
    assert sent(gateway, good(workflow="counted", key=1), NARROW_KEY).status == 200
