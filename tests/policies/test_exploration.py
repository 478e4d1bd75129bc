"""The coin: the same for ever, as often as declared, and with the chance that is recorded."""

from __future__ import annotations

from collections import Counter

import pytest
from policy_world import case, compiled

import drivetrain as dt

CALLS = 20_000
EXPLORE = dt.Explore(0.2, ("refund", "deny", "review", "deny"))


def test_a_replay_decides_the_same() -> None:
    one, other = compiled(explore=EXPLORE), compiled(explore=EXPLORE)
    ids = [f"call_{number}" for number in range(500)]
    assert [one.decide(case(), id) for id in ids] == [other.decide(case(), id) for id in ids]
    assert len({one.decide(case(), id).action for id in ids}) == 3


def test_actions_are_taken_as_often_as_their_propensity_says() -> None:
    policy = compiled(explore=EXPLORE)
    said = [policy.decide(case(), f"call_{number}") for number in range(CALLS)]
    expected = {"refund": 0.8 + 0.05, "deny": 0.1, "review": 0.05}
    assert policy.action_chances(case()) == pytest.approx(expected)
    taken = Counter(one.action for one in said)
    for action, chance in expected.items():
        assert abs(taken[action] / CALLS - chance) < 4 * (chance * (1 - chance) / CALLS) ** 0.5
    assert all(one.propensity == pytest.approx(expected[one.action]) for one in said)
    assert abs(sum(one.explored for one in said) / CALLS - 0.2) < 4 * (0.2 * 0.8 / CALLS) ** 0.5


def test_an_explored_action_says_what_the_policy_would_have_done() -> None:
    policy = compiled(explore=EXPLORE)
    every = (policy.decide(case(), f"call_{number}") for number in range(1_000))
    said = next(one for one in every if one.explored and one.action == "deny")
    assert (said.chosen, said.rule, said.reason, said.values) == ("refund", "small", "explored", {})
    assert policy.chosen(case()).action == "refund"
    assert policy.chosen(case()).propensity == pytest.approx(0.85)


def test_another_version_tosses_another_coin() -> None:
    one, other = compiled(explore=EXPLORE), compiled(explore=EXPLORE, limit_ms=51)
    ids = [f"call_{number}" for number in range(2_000)]
    explored = [{id for id in ids if policy.decide(case(), id).explored} for policy in (one, other)]
    assert explored[0] != explored[1]
    assert len(explored[0] & explored[1]) < 200  # 80 by chance, 400 were it the same coin


def test_what_failed_is_not_explored() -> None:
    policy = compiled(explore=dt.Explore(0.5, ("deny",)), actions=("deny", "review"), otherwise=dt.act("review"))
    assert policy.action_chances(case()) == {"review": 1.0}
    assert {policy.decide(case(), f"call_{number}").action for number in range(100)} == {"review"}
