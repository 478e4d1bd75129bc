"""Which attempts a Call makes: retries, fallbacks and their pauses, counted where the provider is."""

from __future__ import annotations

import pytest
from execution_world import World, chat, completion, fails, message, refuses, says, whole

from drivetrain.execution.call import RETRY_AFTER_MAX_MS, RETRY_BASE_S, RETRY_MAX_S
from drivetrain.execution.plan import Plans

FAULTS = {
    "500": refuses(500),
    "503": refuses(503),
    "529": refuses(529),
    "429": refuses(429),
    "408": refuses(408),
    "connect": fails("connect"),
    "first byte": fails("first_byte_timeout"),
    "cut": fails("cut", lambda one: one.head(200, {}), lambda one: one.chunk(b'{"cho')),
    "no JSON": whole(b"<html>"),
    "no choices": whole(b'{"choices": []}'),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_only_variant_is_retried_until_the_attempts_are_used_up(plans: Plans, fault: str) -> None:
    world = World(plans, *[FAULTS[fault]] * 4).call("plain", chat())
    assert len(world.exchanges) == 4
    assert [purpose for _, purpose, _ in world.route] == ["answer", "retry", "retry", "retry"]
    assert world.result.status == "failed" if world.result.cost_nano_usd else world.result.error is not None
    assert len(world.closed) == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_retry_that_succeeds_answers(plans: Plans, fault: str) -> None:
    world = World(plans, FAULTS[fault], says("Fine.")).call("plain", chat())
    assert world.result.status == "answered"
    assert world.result.body == completion("Fine.")
    assert world.route == [("only", "answer", "failed"), ("only", "retry", "accepted")]
    assert world.result.cost_nano_usd == sum(one.cost_nano_usd for one in world.result.attempts)


@pytest.mark.parametrize("status", [400, 404, 405, 413, 415, 422])
@pytest.mark.parametrize("workflow", ["plain", "fallback", "stubborn"])
def test_a_refusal_that_would_be_repeated_is_final(plans: Plans, workflow: str, status: int) -> None:
    world = World(plans, refuses(status)).call(workflow, chat())
    assert len(world.exchanges) == 1
    assert world.result.http_status == (502 if status == 404 else status)
    assert world.result.status == ("failed" if status == 404 else "refused")


def test_an_input_too_long_for_one_model_may_fit_the_next(plans: Plans) -> None:
    world = World(plans, refuses(400, "context_length_exceeded"), says("Fine.")).call("fallback", chat())
    assert world.route == [("first", "answer", "failed"), ("second", "fallback", "accepted")]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_not_tried_again_but_the_next_variant_is(plans: Plans, status: int) -> None:
    alone = World(plans, refuses(status)).call("plain", chat())
    assert len(alone.exchanges) == 1
    assert alone.result.error is not None
    assert alone.result.error.code == "upstream_auth"
    assert World(plans, refuses(status), says("Fine.")).call("fallback", chat()).result.variant == "second"


@pytest.mark.parametrize("fault", FAULTS)
def test_variants_are_tried_in_their_order_without_pauses_and_the_last_is_retried(plans: Plans, fault: str) -> None:
    one = FAULTS[fault]
    world = World(plans, one, one, one, whole(message("Fine."))).call("fallback", chat())
    assert [(variant, purpose) for variant, purpose, _ in world.route] == [
        ("first", "answer"),
        ("second", "fallback"),
        ("third", "fallback"),
        ("third", "retry"),
    ]
    assert world.result.status == "answered"
    assert len(world.pauses) == 1


def test_one_budget_of_attempts_holds_over_fallbacks_and_retries(plans: Plans) -> None:
    world = World(plans, *[refuses(500)] * 6).call("stubborn", chat())
    assert len(world.exchanges) == 6
    assert [one.variant for one in world.result.attempts] == ["small", *["large"] * 5]
    assert world.result.http_status == 502


def test_escalations_use_the_same_budget(plans: Plans) -> None:
    unsure, down = says('{"intent": "x", "confidence": 0.1}'), refuses(529)
    world = World(plans, unsure, unsure, down, down).call("triage", chat("a question"))
    assert len(world.exchanges) == 4
    assert world.route == [
        ("small", "answer", "escalated"),
        ("large", "escalation", "escalated"),
        ("frontier", "escalation", "failed"),
        ("frontier", "retry", "failed"),
    ]
    assert world.result.status == "failed"  # something was charged


@pytest.mark.parametrize("drawn", [0.0, 0.25, 0.999999])
def test_pauses_have_full_jitter_below_a_doubling_ceiling(plans: Plans, drawn: float) -> None:
    world = World(plans, *[refuses(500)] * 6, dice=lambda: drawn).call("stubborn", chat())
    ceilings = [min(RETRY_MAX_S, RETRY_BASE_S * 2**attempts) for attempts in range(2, 6)]
    assert world.pauses == pytest.approx([drawn * ceiling for ceiling in ceilings])
    assert max(world.pauses) <= RETRY_MAX_S


@pytest.mark.parametrize(
    ("headers", "pause_s"),
    [
        ({"retry_after": "3"}, 3.0),
        ({"retry_after": "0.5"}, 0.5),
        ({"retry_after_ms": "1500"}, 1.5),
        ({"retry_after_ms": "20", "retry_after": "4"}, 0.1),
        ({"retry_after": str(RETRY_AFTER_MAX_MS // 1000)}, 5.0),
        ({"retry_after": "-1"}, 0.1),
        ({"retry_after": "nan"}, 0.1),
        ({"retry_after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0.1),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_the_pause_that_a_provider_asks_for_is_kept(
    plans: Plans, status: int, headers: dict[str, str], pause_s: float
) -> None:
    world = World(plans, refuses(status, **headers), says("Fine.")).call("plain", chat())
    assert world.pauses == pytest.approx([pause_s])
    assert world.result.status == "answered"


@pytest.mark.parametrize("asked", ["5.001", "60", "1e300", "inf"])
def test_a_provider_that_asks_for_too_long_a_pause_is_not_asked_again(plans: Plans, asked: str) -> None:
    world = World(plans, refuses(429, retry_after=asked)).call("plain", chat())
    assert len(world.exchanges) == 1
    assert not world.pauses
    assert world.result.http_status == 429
    assert world.result.error is not None
    assert world.result.error.retry_after_s is not None
    assert world.result.error.retry_after_s >= 5


def test_a_long_pause_does_not_delay_the_next_variant(plans: Plans) -> None:
    world = World(plans, refuses(429, retry_after="60"), says("Fine.")).call("fallback", chat())
    assert not world.pauses
    assert world.result.variant == "second"


def test_each_attempt_asks_for_its_own_variant_and_limit(plans: Plans) -> None:
    world = World(plans, refuses(500), refuses(500), whole(message("Fine."))).call("fallback", chat(max_tokens=7))
    assert [one.asked["model"] for one in world.exchanges] == ["small", "large", "claude"]
    limits = [one.asked.get("max_tokens") or one.asked.get("max_completion_tokens") for one in world.exchanges]
    assert limits == [7, 7, 7]
    assert [one.request.timeout_ms for one in world.exchanges] == [60_000] * 3
