"""Off-policy estimates: right on average, honest about what was never tried, and about weights that cannot be."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from drivetrain.statistics.off_policy import Logged, OffPolicy, off_policy, tries_needed
from support.seeds import SEED

EXPLORED = 0.2


def gain_of(action: str, x: float) -> float:
    return 1 - x if action == "a" else 0.8 * x


def log(dice: random.Random, calls: int, *, wrong: float = 1.0, explores: bool = True) -> tuple[list[Logged], float]:
    """Calls decided by x < 0.5, some explored, and what the candidate (x < 0.7) is truly worth beyond that."""
    rows, gap = [], 0.0
    for _ in range(calls):
        x = dice.random()
        before, candidate = ("a" if x < 0.5 else "b"), ("a" if x < 0.7 else "b")
        explored = explores and dice.random() < EXPLORED
        action = ("b" if before == "a" else "a") if explored else before
        chance = (EXPLORED if explored else 1 - EXPLORED) if explores else 1.0
        gap += gain_of(candidate, x) - gain_of(before, x)
        rows.append(
            Logged(
                action=action, propensity=chance * wrong, gain=gain_of(action, x) + dice.gauss(0, 0.3),
                candidate={candidate: 1.0}, before={before: 1.0},
                possible=frozenset("ab") if explores else frozenset({before}), cell=str(int(x * 10)),
            )
        )  # fmt: skip
    return rows, gap / calls


def test_each_estimator_finds_the_truth_about_as_often_as_its_interval_says() -> None:
    dice = random.Random(SEED)
    rounds, hits = 60, dict.fromkeys(("ips", "snips", "doubly_robust"), 0)
    widths: dict[str, list[float]] = {name: [] for name in hits}
    for _ in range(rounds):
        rows, truth = log(dice, 500)
        found = off_policy(rows, seed=1, resamples=300)
        for name in hits:
            gap = getattr(found, name).difference
            hits[name] += gap.low <= truth <= gap.high
            widths[name].append(gap.high - gap.low)
    assert all(count >= 0.8 * rounds for count in hits.values()), f"seed {SEED}: {hits}"
    assert fmean(widths["doubly_robust"]) < 0.8 * fmean(widths["ips"])


def test_weights_and_overlap_are_told() -> None:
    rows, _ = log(random.Random(2), 2_000)
    found = off_policy(rows, seed=1, resamples=200)
    assert found.weight_max == pytest.approx(1 / EXPLORED)
    assert abs(found.weight_mean - 1) < 4 * found.weight_mean_error
    assert found.effective < found.known == found.calls == 2_000
    assert found.unknown_share == 0
    doubted = off_policy(log(random.Random(2), 2_000, wrong=0.5)[0], seed=1, resamples=200)
    assert doubted.weight_mean == pytest.approx(2 * found.weight_mean)


def test_without_exploration_only_what_stays_the_same_is_known() -> None:
    rows, _ = log(random.Random(3), 2_000, explores=False)
    found = off_policy(rows, seed=1, resamples=200)
    changed = sum(row.candidate != row.before for row in rows)
    assert found.unknown_share == pytest.approx(changed / 2_000)
    assert found.known == 2_000 - changed
    assert found.ips is not None
    assert found.ips.difference.value == 0
    never: OffPolicy = off_policy([row for row in rows if row.candidate != row.before], seed=1)
    assert (never.known, never.ips, never.unknown_share) == (0, None, 1.0)


def test_a_chance_of_nothing_is_refused() -> None:
    rows, _ = log(random.Random(1), 1, wrong=0.0)
    with pytest.raises(ValueError, match="chance"):
        off_policy(rows, seed=1)


def test_how_many_tries_a_mean_needs() -> None:
    assert tries_needed(1.0, 0.1) == 385
    assert tries_needed(10.0, 1.0) == 385
    with pytest.raises(ValueError, match="no width"):
        tries_needed(1.0, 0.0)
