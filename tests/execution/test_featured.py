"""A workflow that names a FeatureService: who sees its features, what is recorded, and what a missing one means."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from execution_world import OPENED_NS, SETTINGS, World, chat, completion, load_plans, says, whole

from drivetrain.core.calls import Attribution
from drivetrain.core.declarations import Record, Rule
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.features import FeatureRecordV1, ViewSeen
from drivetrain.execution.plan import Plans
from drivetrain.routing.checks import RuleStep

CODE = """\
import drivetrain as dt

WHO = {"owner": "team@acme.example", "team": "support", "use_case": "tests"}

customer = dt.Entity("customer_id", value_type="string")
stats = dt.FeatureView(
    "stats", entities=[customer], source=dt.FileSource("data/stats.parquet"), schema=[dt.Field("orders", "int64")],
)
inputs = dt.FeatureService("inputs", features=[stats])


class Ticket(dt.Record):
    text: str
    who: str = ""
    order: int = 0


def enough(output, given, features):
    return len(output) > features["orders"] or f"shorter than {features['orders']}"


typed = dt.Workflow(
    "typed", **WHO, input=Ticket, features="inputs", entity_keys={"customer_id": "who"}, outcome_key="order",
    route=[
        dt.Rule("new", when=lambda ticket, features: features["orders"] == 0, then=lambda ticket, features: "welcome"),
        dt.Rule("loyal", when=lambda ticket, features: features["orders"] > 100, then="dear friend"),
        dt.Variant("small", model="up/small", prompt="ask.j2", accept=enough, max_output_tokens=100),
        dt.Variant("large", model="up/large", prompt="ask.j2", max_output_tokens=100),
    ],
)
strict = dt.Workflow(
    "strict", **WHO, input=Ticket, features=inputs, features_missing="refuse",
    route=[dt.Variant("small", model="up/small", max_output_tokens=100)],
)
talk = dt.Workflow(
    "talk", **WHO, features="inputs", entity_keys={"customer_id": "user", "plan": "tag:plan"},
    route=[dt.Variant("small", model="up/small", system="talk.j2", max_output_tokens=100)],
)
"""


class Seen(msgspec.Struct, frozen=True):
    values: Mapping[str, Any]
    fingerprint: str = "00000000000000f1"
    as_of_ns: int = OPENED_NS - 5
    stale: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    given: Mapping[str, Any] = msgspec.field(default_factory=lambda: {"customer_id": "c-7"})
    views: Mapping[str, ViewSeen] = msgspec.field(default_factory=lambda: {"stats": ViewSeen(5, 4)})


class Door:
    """Gives one vector and remembers what it was asked."""

    def __init__(self, answer: Seen | DrivetrainError) -> None:
        self.answer = answer
        self.asked: list[tuple[str, Mapping[str, Any], int]] = []

    def read(self, service: str, given: Mapping[str, Any], now_ns: int) -> Seen:
        self.asked.append((service, given, now_ns))
        if isinstance(self.answer, DrivetrainError):
            raise self.answer
        return self.answer


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    folder = tmp_path_factory.mktemp("featured")
    (folder / "workflows").mkdir()
    (folder / "workflows" / "ask.j2").write_text("{{ text }} ({{ features.orders }} orders)")
    (folder / "workflows" / "talk.j2").write_text("They ordered {{ features.orders }} times.")
    return load_plans(folder, SETTINGS, CODE)


def world(plans: Plans, door: Door, *scripts: Any) -> World:
    made = World(plans, *scripts)
    made.features = door
    return made


def ticket(**more: Any) -> dict[str, Any]:
    return {"text": "where is it?", "who": "c-7", "order": 42, **more}


def test_a_rule_sees_the_features_of_the_entity_that_the_input_names(plans: Plans) -> None:
    door = Door(Seen({"orders": 0}))
    ran = world(plans, door).call("typed", ticket(), door="workflow")
    assert (ran.result.variant, ran.result.output) == ("new", "welcome")
    ((service, given, now_ns),) = door.asked
    assert (service, given["customer_id"], now_ns) == ("inputs", "c-7", OPENED_NS)
    assert world(plans, Door(Seen({"orders": 101}))).call("typed", ticket(), door="workflow").result.variant == "loyal"


def test_prompts_and_checks_see_them_too(plans: Plans) -> None:
    ran = world(plans, Door(Seen({"orders": 5})), says("tiny"), says("long enough")).call(
        "typed", ticket(), door="workflow"
    )
    assert ran.exchanges[0].asked["messages"] == [{"role": "user", "content": "where is it? (5 orders)"}]
    assert [one.reason for one in ran.result.attempts] == ["shorter than 5", ""]
    assert ran.result.variant == "large"


def test_the_record_says_what_was_seen_and_a_replay_gives_it_back(plans: Plans) -> None:
    moment = datetime(2026, 5, 1, 12, 30, 0, 123456, tzinfo=UTC)
    seen = Seen({"orders": 5, "share": float("inf"), "since": moment, "none": None}, stale=("stats",))
    ran = world(plans, Door(seen), says("tiny"), says("long enough")).call("typed", ticket(), door="workflow")
    (opened,) = ran.opened
    assert opened.business_key == "42"
    kept = opened.features
    assert (kept.service, kept.fingerprint, kept.as_of_ns) == ("inputs", seen.fingerprint, seen.as_of_ns)
    assert (kept.stale, kept.missing) == (("stats",), ())
    record = msgspec.msgpack.decode(kept.sealed.removeprefix(b"sealed:"), type=FeatureRecordV1)
    assert (record.values, record.views) == (seen.values, seen.views)
    assert record.given == {"customer_id": "c-7"}, "the rest of the input is not kept with its features"
    again = ran.replayed()
    assert again.differences == ()
    assert again.result.attempts[0].reason == "shorter than 5"


def test_a_rule_or_check_that_raises_names_what_it_misses_and_no_text_of_the_input(plans: Plans) -> None:
    """The record's reason is not encrypted: a name stands there only where the user's code holds it."""
    ran = world(plans, Door(Seen({"order": 5})), says("long enough"), says("again")).call(
        "typed", ticket(), door="workflow"
    )
    assert [one.reason for one in ran.result.attempts][:3] == [
        "rule raised KeyError: 'orders'", "rule raised KeyError: 'orders'", "enough raised KeyError: 'orders'",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("raising", "reason"),
    [
        (lambda ticket: {"bob": 1}[ticket.who], "rule raised KeyError"),
        (lambda ticket: getattr(ticket, ticket.who), "rule raised AttributeError"),
        (lambda ticket: ticket.whom, "rule raised AttributeError: 'whom'"),
        (lambda ticket: int(ticket.who), "rule raised ValueError"),
        (lambda ticket: {}["two words"], "rule raised KeyError"),
        (lambda ticket: unheard_of, "rule raised NameError: 'unheard_of'"),  # type: ignore[name-defined]  # noqa: F821
    ],
)
def test_a_reason_holds_no_value_of_the_input(raising: Any, reason: str) -> None:
    class Ticket(Record):
        who: str

    step = RuleStep("typed", Rule("raises", when=raising, then="x"), {})
    assert step.try_on(Ticket(who="ada")).error == reason


def test_a_missing_entity_takes_defaults_or_is_refused_before_anything_is_spent(plans: Plans) -> None:
    missing = Seen({"orders": 7}, missing=("customer_id",))
    ran = world(plans, Door(missing), says("long enough for seven")).call("typed", ticket(), door="workflow")
    assert ran.result.status == "answered"
    assert ran.opened[0].features.missing == ("customer_id",)
    refused = world(plans, Door(missing)).call("strict", ticket(), door="workflow")
    error = refused.result.error
    assert error is not None
    assert (refused.result.status, error.status, error.code) == ("refused", 422, "features_missing")
    assert "c-7" not in str(error), "an error does not repeat a person's id"
    assert "materialize" not in str(error), "the vectors are there, of others"
    unmade = world(plans, Door(Seen({"orders": 7}, missing=("customer_id",), as_of_ns=0))).call(
        "strict", ticket(), door="workflow"
    )
    assert "run `drivetrain features materialize`" in str(unmade.result.error)
    assert not refused.exchanges
    assert refused.replayed().differences == ()


def test_features_that_cannot_be_read_fail_the_call_and_never_become_a_guess(plans: Plans) -> None:
    failed = world(plans, Door(DrivetrainError("the vectors are of another definition"))).call(
        "typed", ticket(), door="workflow"
    )
    error = failed.result.error
    assert error is not None
    assert (error.status, error.code) == (503, "features_unavailable")
    assert "another definition" in str(error)
    assert not failed.exchanges
    assert failed.replayed().differences == ()


def test_a_conversation_finds_its_entity_by_user_and_tag(plans: Plans) -> None:
    door = Door(Seen({"orders": 3}))
    made = world(plans, door, whole(completion("hello")))
    made.attribution = Attribution(team="support", user="ann", tags=("beta", "plan=gold"))
    made.call("talk", chat("hi"))
    assert door.asked[0][1] == {"customer_id": "ann", "plan": "gold"}
    assert made.exchanges[0].asked["messages"][0] == {"role": "system", "content": "They ordered 3 times."}


def test_a_workflow_without_features_asks_nobody(tmp_path: Path) -> None:
    door = Door(Seen({}))
    ran = world(load_plans(tmp_path), door, whole(completion("ok"))).call("plain", chat("hi"))
    assert door.asked == []
    assert ran.opened[0].features is None
    assert ran.opened[0].business_key == ""
