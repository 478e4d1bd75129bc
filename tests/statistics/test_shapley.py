"""Shares by Shapley: the axioms, against the six orders written out, and bounds that hold whatever is unknown."""

from __future__ import annotations

import random
from itertools import permutations

import pytest

from drivetrain.statistics.shapley import shapley, shapley_bounds, subsets

SEED = random.SystemRandom().getrandbits(32)
NAMES = ("model", "policy", "traffic", "prices")


def by_orders(factors: tuple[str, ...], values: dict[frozenset[str], float]) -> dict[str, float]:
    orders = list(permutations(factors))
    shares = dict.fromkeys(factors, 0.0)
    for order in orders:
        for place, name in enumerate(order):
            before = frozenset(order[:place])
            shares[name] += (values[before | {name}] - values[before]) / len(orders)
    return shares


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_it_is_the_mean_over_all_orders(count: int) -> None:
    dice, factors = random.Random(SEED), NAMES[:count]
    values = {some: dice.gauss(0, 1) for some in subsets(factors)}
    asked: list[frozenset[str]] = []
    shares = shapley(factors, lambda some: asked.append(some) or values[some])  # type: ignore[func-returns-value]
    assert shares == pytest.approx(by_orders(factors, values)), f"seed {SEED}"
    assert sum(shares.values()) == pytest.approx(values[frozenset(factors)] - values[frozenset()])
    assert len(asked) == len(set(asked)) == 2**count


def test_a_factor_that_changes_nothing_has_no_share_and_equal_ones_have_equal_ones() -> None:
    shares = shapley(NAMES[:3], lambda some: float(bool(some & {"model", "policy"})))
    assert shares == pytest.approx({"model": 0.5, "policy": 0.5, "traffic": 0.0})


def test_bounds_hold_whatever_the_unknown_values_are() -> None:
    dice, factors = random.Random(SEED), NAMES[:3]
    values = {some: dice.random() for some in subsets(factors)}
    unknown = {some for some in values if dice.random() < 0.5}
    bounds = shapley_bounds(
        factors, {some: (0.0, 1.0) if some in unknown else (value, value) for some, value in values.items()}
    )
    for _ in range(200):
        filled = {some: dice.choice((0.0, 1.0)) if some in unknown else value for some, value in values.items()}
        for name, share in shapley(factors, filled.__getitem__).items():
            assert bounds[name][0] - 1e-12 <= share <= bounds[name][1] + 1e-12, f"seed {SEED}"


def test_too_many_factors_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 4"):
        shapley((*NAMES, "weather"), lambda _some: 0.0)
    with pytest.raises(ValueError, match="1 differ"):
        shapley(("model", "model"), lambda _some: 0.0)
