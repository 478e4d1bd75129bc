"""What guards count, and what they do not."""

from __future__ import annotations

import random

import pytest

from drivetrain.core.calls import AttemptV1, Attribution, Call
from drivetrain.core.releases import GuardV1
from drivetrain.promotion.guards import THRESHOLD_CALLS, Seen, Watcher, answered_ms, failed, is_refused_by_candidate
from drivetrain.statistics.intervals import clopper_pearson
from support.seeds import SEED

EQUAL_RUNS = 60


def call(**fields: object) -> Call:
    given = {
        "call_id": "call_1", "opened_ns": 0, "closed_ns": 250_000_000, "snapshot": "a" * 16, "workflow": "triage",
        "door": "chat", "stream": False, "attribution": Attribution(user="u"), "status": "answered", **fields,
    }  # fmt: skip
    return Call(**given)  # type: ignore[arg-type]


ASKED = (AttemptV1(variant="small", model="openai/a", purpose="answer", verdict="failed", status=400),)
CACHED = (AttemptV1(variant="small", model="openai/a", purpose="answer", verdict="accepted", cached=True),)


@pytest.mark.parametrize(
    ("fields", "counts_as"),
    [
        ({}, False),
        ({"degraded": "static"}, True),
        ({"status": "failed"}, True),
        ({"status": "interrupted"}, True),
        ({"status": "refused", "attempts": ASKED}, True),  # what the candidate sent, its provider does not take
        ({"status": "refused", "error": "budget_exceeded"}, None),
        ({"status": "aborted"}, None),
        ({"status": "failed", "error": "shutting_down"}, None),
    ],
)
def test_what_counts_as_failed(fields: dict[str, object], counts_as: bool | None) -> None:
    assert failed(call(**fields)) is counts_as


def test_times_are_of_what_was_answered_by_a_variant() -> None:
    assert answered_ms(call()) == 250
    for fields in ({"status": "failed"}, {"degraded": "stale"}, {"attempts": CACHED}):
        assert answered_ms(call(**fields)) is None


def test_a_note_tells_what_the_candidate_did_not_admit() -> None:
    assert is_refused_by_candidate(call(notes=("canary refused: invalid_input",)))
    assert not is_refused_by_candidate(call(notes=("dropped 2 turns",)))


def seen(number: int, *, candidate: bool, latency_ms: float = 100.0, is_failed: bool = False, cost: int = 0) -> Seen:
    return Seen(candidate, number, is_failed, latency_ms, cost)


def test_what_was_measured_before_the_thresholds_counts_once_they_are_known() -> None:
    guard = Watcher(GuardV1(watch="latency"), share=0.2, tail=0.05)
    assert guard.look().part == "slow Calls (which are slow is known after 200)"
    for number in range(THRESHOLD_CALLS - 1):
        worse = number % 5 == 0
        guard.see(seen(number, candidate=worse, latency_ms=9_000.0 + number if worse else 100.0 + number))
    assert not guard.has_seen_both
    assert not guard.look().is_broken
    guard.see(seen(THRESHOLD_CALLS, candidate=False, latency_ms=100.0))
    found = guard.look()
    assert found.is_broken
    assert found.part.startswith("Calls slower than")
    assert found.comparison.calls_candidate + found.comparison.calls_live == THRESHOLD_CALLS


def test_thresholds_that_are_learned_from_few_calls_seldom_call_an_equal_candidate_slower() -> None:
    """Counting what they were learned from favours no arm: users differ, and none is slower for its arm."""
    print(f"seed {SEED}")
    wrong = 0
    for run in range(EQUAL_RUNS):
        draw = random.Random(SEED * 10_007 + run)
        users = [(draw.random() < 0.2, draw.gauss(0.0, 0.5)) for _ in range(60)]
        guard = Watcher(GuardV1(watch="latency"), share=0.2, tail=0.05)
        broken = False
        for number in range(500):
            place = int(60 * draw.random() ** 2)
            candidate, slow = users[place]
            guard.see(seen(place, candidate=candidate, latency_ms=draw.lognormvariate(6.0 + slow, 0.6)))
            broken = broken or (number % 50 == 49 and guard.look().is_broken)
        wrong += broken
    low, _ = clopper_pearson(wrong, EQUAL_RUNS, 0.999)
    assert low <= 0.05, f"{wrong} of {EQUAL_RUNS} err"


def test_a_tail_that_is_slower_is_seen_by_a_handful_of_users() -> None:
    guard = Watcher(GuardV1(watch="latency"), share=0.2, tail=0.01)
    for number in range(1_200):
        worse = number % 5 == 0
        slow = worse and number % 100 == 0
        guard.see(seen(number // 2, candidate=worse, latency_ms=900.0 if slow else 100.0 + number * 7_919 % 200))
    found = guard.look()
    assert found.is_broken
    assert found.comparison.hit_candidate == 12
    assert found.comparison.hit_live == 0


def test_a_margin_is_harm_that_is_accepted() -> None:
    def watched(margin: float) -> Watcher:
        guard = Watcher(GuardV1(watch="errors", margin=margin), share=0.0, tail=0.05)
        for number in range(2_000):
            chance = number * 7_919 % 1_000
            guard.see(seen(number % 400, candidate=True, is_failed=chance < 60))
            guard.see(seen(number % 400, candidate=False, is_failed=chance < 10))
        return guard

    assert watched(0.01).look().is_broken
    assert not watched(0.05).look().is_broken


def test_a_margin_of_cost_is_of_the_live_mean() -> None:
    def watched(margin: float) -> Watcher:
        guard = Watcher(GuardV1(watch="cost", margin=margin), share=0.2, tail=0.05)
        for number in range(2_000):
            wobble = number * 7_919 % 1_000
            guard.see(seen(number % 300, candidate=True, cost=120_000 + 100 * wobble))
            guard.see(seen(number % 300, candidate=False, cost=100_000 + 100 * wobble))
        return guard

    assert watched(0.05).look().is_broken
    assert not watched(0.2).look().is_broken


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_an_outcome_may_be_harm_upwards_or_downwards(higher_is_better: bool) -> None:
    guard = Watcher(GuardV1(watch="outcome", metric="solved", higher_is_better=higher_is_better), share=0.2, tail=0.05)
    for number in range(600):
        guard.outcome(candidate=True, place=number, value=float(number % 2), before=None)
        guard.outcome(candidate=False, place=number, value=float(number % 10 != 0), before=None)
    found = guard.look()
    assert found.is_broken is higher_is_better
    assert (found.comparison.candidate, found.comparison.live) == pytest.approx((0.5, 0.9))
    assert found.comparison.low is not None
    assert found.comparison.high is not None
    assert found.comparison.low < -0.4 < found.comparison.high


def test_a_verdict_says_which_guard_on_which_evidence() -> None:
    guard = Watcher(GuardV1(watch="errors"), share=0.2, tail=0.01, workflow="triage")
    for number in range(200):
        guard.see(seen(number, candidate=True, is_failed=number % 4 == 0))
        guard.see(seen(number, candidate=False))
    found = guard.look()
    said = found.sentence(0.95)
    for part in ("`errors` of `triage`", "25.00 % (200 Calls of 200 units)", "live 0.00 %", "+25.00 %", "0.05"):
        assert part in said
    assert found.facts()["calls_candidate"] == 200
    assert found.facts()["log_evidence"] >= found.facts()["log_evidence_needed"]
