"""What decides the route: rules, checks, outputs and the budget of a call. The user's own code may do anything."""

from __future__ import annotations

import json
from typing import Any

import pytest
from execution_world import World, chat, completion, fails, message, refuses, says, whole

from drivetrain.execution.plan import Plans

SURE, UNSURE = '{"intent": "x", "confidence": 0.95}', '{"intent": "x", "confidence": 0.1}'


def content(world: World) -> str:
    text: str = json.loads(world.result.body)["choices"][0]["message"]["content"]
    return text


# Rules.


def test_a_rule_answers_for_nothing_and_nobody_is_asked(plans: Plans) -> None:
    world = World(plans).call("triage", {"text": "  "}, door="workflow")
    assert not world.exchanges
    assert (world.result.status, world.result.variant, world.result.cost_nano_usd) == ("answered", "empty", 0)
    assert world.result.output.intent == "spam"
    assert len(world.opened) == len(world.closed) == 1


def test_a_rule_may_compute_its_answer(plans: Plans) -> None:
    world = World(plans).call("triage", chat("HELP"))
    assert world.result.variant == "shout"
    assert json.loads(content(world))["intent"] == "help"


@pytest.mark.parametrize(("text", "rule"), [("a broken rule", "broken"), ("a broken then", "broken-then")])
def test_a_rule_that_raises_does_not_answer_and_says_so(plans: Plans, text: str, rule: str) -> None:
    world = World(plans, says(SURE)).call("triage", chat(text))
    first, second = world.result.attempts
    assert (first.variant, first.verdict, first.reason) == (rule, "failed", "rule raised LookupError")
    assert (second.variant, second.verdict) == ("small", "accepted")


def test_a_rule_answers_a_streaming_client_with_a_whole_stream(plans: Plans) -> None:
    world = World(plans).call("triage", chat("HELP", stream=True))
    assert world.client.heard.endswith(b"data: [DONE]\n\n")
    assert b"help" in world.client.heard


# Escalation.


def test_answers_escalate_in_the_routes_order_and_all_are_paid(plans: Plans) -> None:
    world = World(plans, says(UNSURE), says(UNSURE), whole(message('{"intent": "y"}'))).call("triage", chat("hm"))
    assert world.route == [
        ("small", "answer", "escalated"),
        ("large", "escalation", "escalated"),
        ("frontier", "escalation", "accepted"),
    ]
    assert [one.reason for one in world.result.attempts[:2]] == ["confidence 0.1 < 0.9", "confidence 0.1 < 0.5"]
    assert [one.cost_nano_usd for one in world.result.attempts] == [1_020_000, 10_200_000, 3_150_000]
    assert world.result.cost_nano_usd == 14_370_000


@pytest.mark.parametrize(
    ("text", "repair"),
    [
        (SURE, ""),
        (f"```json\n{SURE}\n```", "repaired: fence"),
        (SURE.replace("}", ",}"), "repaired: trailing comma"),
        (f"Here you are: {SURE}", "repaired: surrounding text"),
        (f"```\n{SURE.replace('}', ',}')}\n```", "repaired: fence + trailing comma"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_can_be_mended_is_mended(plans: Plans, text: str, repair: str, stream: bool) -> None:
    world = World(plans, says(text)).call("triage", chat("hm", stream=stream))
    (attempt,) = world.result.attempts
    assert (attempt.verdict, attempt.reason, attempt.repaired) == ("accepted", repair, bool(repair))
    assert json.loads(content(world)) == json.loads(SURE)
    if stream:
        assert SURE.replace('"', '\\"').replace(" ", "").encode() in world.client.heard.replace(b" ", b"")


@pytest.mark.parametrize(
    "answer",
    [
        says("no JSON"),
        says('{"intent": 7}'),
        says(""),
        says(SURE[:-5]),
        whole(completion(None)),
        whole(completion(None, refusal="I cannot")),
        whole(completion(None, tool_calls=[{"id": "1", "type": "function", "function": {"name": "f"}}])),
        says('{"intent": "x"}'),
        says('{"intent": "x", "confidence": true}'),
    ],
)
def test_an_answer_that_is_no_output_escalates_and_is_paid(plans: Plans, answer: Any) -> None:
    world = World(plans, answer, says(SURE)).call("triage", chat("hm"))
    assert world.route[:2] == [("small", "answer", "escalated"), ("large", "escalation", "accepted")]
    assert world.result.attempts[0].cost_nano_usd == 1_020_000


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("none", None),
        ("fine", None),
        ("hm?", None),
        ("a raise", "judged raised ValueError"),
        ("a reject", "not like this"),
        ("a bare one", "judged rejected it"),
        ("a reason", "because it says so"),
        ("a false one", "judged said no"),
        ("same", "judged said no"),
        ("x", "too short"),
    ],
)
def test_the_users_checks_decide_and_what_they_raise_is_only_a_reason(
    plans: Plans, answer: str, reason: str | None
) -> None:
    world = World(plans, says(answer), says("a good one")).call("checked", chat("same"))
    first = world.result.attempts[0]
    assert first.reason == (reason or "")
    assert world.result.variant == ("small" if reason is None else "large")
    assert "a secret of the answer" not in str(world.result)


def test_where_no_answer_passes_the_call_fails_with_the_reason(plans: Plans) -> None:
    world = World(plans, says("reject"), says("x")).call("checked", chat())
    assert world.result.status == "failed"
    assert world.result.error is not None
    assert world.result.error.code == "no_acceptable_answer"
    assert "too short" in str(world.result.error)
    assert world.result.cost_nano_usd == 1_020_000 + 10_200_000
    assert b"reject" not in world.result.body


def test_a_failure_before_an_escalation_is_a_fallback(plans: Plans) -> None:
    world = World(plans, fails("connect"), says(UNSURE), whole(message('{"intent": "y"}'))).call("triage", chat("hm"))
    assert world.route == [
        ("small", "answer", "failed"),
        ("large", "fallback", "escalated"),
        ("frontier", "escalation", "accepted"),
    ]


# The budget of a call.


def test_what_may_cost_too_much_goes_to_a_cheaper_variant(plans: Plans) -> None:
    world = World(plans, says("fine")).call("frugal", chat())
    assert len(world.exchanges) == 1
    assert world.result.variant == "small"
    first = world.result.attempts[0]
    assert (first.variant, first.verdict, first.status, first.cost_nano_usd) == ("large", "failed", 0, 0)


def test_what_may_cost_too_much_everywhere_is_refused_before_anybody_is_asked(plans: Plans) -> None:
    world = World(plans).call("frugal", chat("x" * 20_000))
    assert not world.exchanges
    assert world.result.status == "refused"
    assert world.result.http_status == 400
    assert world.result.error is not None
    assert world.result.error.code == "budget_per_call_exceeded"
    assert world.result.cost_nano_usd == 0
    assert len(world.opened) == len(world.closed) == 1


def test_a_lower_limit_of_the_client_makes_a_call_affordable(plans: Plans) -> None:
    world = World(plans, says("fine")).call("frugal", chat(max_tokens=10))
    assert world.result.variant == "large"


def test_what_was_charged_already_counts_against_the_budget_of_a_call(plans: Plans) -> None:
    # The first attempt costs 1,020,000 of 3,500,000; another could cost about 2,500,000 more.
    billed = whole(completion("x").replace(b'"choices": [', b'"choices": 7, "others": ['))
    world = World(plans, billed).call("frugal-retries", chat("x" * 300))
    assert len(world.exchanges) == 1
    assert world.result.status == "failed"
    assert world.result.cost_nano_usd <= 3_500_000


def test_answers_that_a_variant_asks_for_several_times_are_bounded_too(plans: Plans) -> None:
    # 4 x 1000 output tokens cost up to 8,000,000 nano-USD; 4,000,000 are allowed.
    world = World(plans, says("fine")).call("choices", chat())
    assert not world.exchanges
    assert world.result.error is not None
    assert world.result.error.code == "budget_per_call_exceeded"


@pytest.mark.parametrize("status", [400, 429, 500])
def test_a_call_that_was_charged_has_failed_and_was_not_refused(plans: Plans, status: int) -> None:
    world = World(plans, says("reject"), *[refuses(status)] * 3).call("checked", chat())
    assert world.result.status == "failed"
    assert world.result.cost_nano_usd == 1_020_000
