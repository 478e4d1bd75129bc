"""Many questions at once, shares of clusters, and few labels with a judge: as published, and covering what they say."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import stats

from drivetrain.statistics.clustered import clustered_share
from drivetrain.statistics.intervals import wilson
from drivetrain.statistics.multiple import benjamini_hochberg, benjamini_hochberg_e, holm
from drivetrain.statistics.prediction_powered import LABELS_MIN, prediction_powered
from support.seeds import SEED

pytestmark = pytest.mark.slow

PUBLISHED = [
    0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0,
]  # fmt: skip
"""Benjamini and Hochberg, JRSS-B 57 (1995), section 3.2: fifteen tests of a medical study."""


def test_many_questions_as_published() -> None:
    assert sum(one <= 0.05 for one in holm(PUBLISHED)) == 3
    assert sum(one <= 0.05 for one in benjamini_hochberg(PUBLISHED)) == 4
    # As R's p.adjust has them.
    five = [0.01, 0.02, 0.03, 0.04, 0.05]
    assert holm(five) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert benjamini_hochberg(five) == pytest.approx([0.05] * 5)


def test_many_questions_as_scipy_has_them_in_any_order() -> None:
    dice = random.Random(SEED)
    for _ in range(50):
        chances = [dice.random() ** 3 for _ in range(dice.randint(1, 40))]
        chances += dice.choices(chances, k=3)
        for rule, any_dependence in (("bh", False), ("by", True)):
            found = benjamini_hochberg(chances, any_dependence=any_dependence)
            assert found == pytest.approx(stats.false_discovery_control(chances, method=rule)), f"seed {SEED}"
        order = dice.sample(range(len(chances)), len(chances))
        adjusted = holm(chances)
        assert holm([chances[place] for place in order]) == [adjusted[place] for place in order], f"seed {SEED}"
        assert all(one >= chance for one, chance in zip(adjusted, chances, strict=True))
    assert benjamini_hochberg_e([100.0, 0.5, 30.0]) == pytest.approx([0.03, 1.0, 0.05])
    assert benjamini_hochberg_e([0.0, 1e300]) == pytest.approx([1.0, 2e-300])
    assert (holm([]), benjamini_hochberg([]), benjamini_hochberg_e([])) == ([], [], [])
    for wrong in ([1.1], [-0.1], [float("nan")]):
        with pytest.raises(ValueError, match="between 0 and 1"):
            holm(wrong)
    with pytest.raises(ValueError, match="at least 0"):
        benjamini_hochberg_e([-1.0])


def test_holm_is_seldom_wrong_about_any_slice() -> None:
    dice = np.random.default_rng(SEED)
    rounds = 1_500
    wrong = plain = 0
    for _ in range(rounds):
        chances = dice.random(12)
        chances[:3] = 1e-6
        wrong += min(holm(chances.tolist())[3:]) <= 0.05
        plain += float(chances[3:].min()) <= 0.05
    assert wrong / rounds <= 0.05 + 4 * (0.05 * 0.95 / rounds) ** 0.5, f"seed {SEED}"
    assert plain / rounds > 0.25


def test_a_share_of_ones_that_stand_alone_is_wilsons() -> None:
    outcomes = [1] * 30 + [0] * 70
    found = clustered_share(outcomes, [str(place) for place in range(100)])
    assert found.effective == pytest.approx(99, abs=1.1)
    assert (found.low, found.high) == pytest.approx(wilson(30, 100), abs=2e-3)
    copies = clustered_share(outcomes * 20, [str(place) for place in range(100)] * 20)
    assert copies.value == pytest.approx(0.3)
    assert copies.clusters == 100
    assert copies.effective == pytest.approx(found.effective, abs=1)
    assert (copies.low, copies.high) == pytest.approx((found.low, found.high), abs=2e-3)


def test_a_share_of_clusters_at_its_ends() -> None:
    assert clustered_share([], []).high == 1
    one = clustered_share([1, 1, 0], ["a", "a", "a"])
    assert (one.low, one.high, one.clusters) == (0, 1, 1)
    whole = clustered_share([1] * 60, [str(place // 3) for place in range(60)])
    assert (whole.value, whole.high, whole.effective) == (1, 1, 20)
    assert wilson(60, 60)[0] - 0.15 < whole.low <= wilson(20, 20)[0]
    even = clustered_share([1, 0] * 10, [str(place // 2) for place in range(20)])
    assert even.effective == 20
    with pytest.raises(ValueError, match="named"):
        clustered_share([1], [])
    with pytest.raises(ValueError, match="level"):
        clustered_share([1], ["a"], 0.0)


@pytest.mark.parametrize(("many", "size"), [(10, 5), (40, 5), (20, 20)])
def test_a_share_of_clusters_is_covered_where_wilson_is_not(many: int, size: int) -> None:
    dice = np.random.default_rng(SEED)
    rounds, names = 400, [str(place // size) for place in range(many * size)]
    covered = plain = 0
    for _ in range(rounds):
        outcomes = (dice.random((many, size)) < dice.beta(1.5, 0.5, size=many)[:, None]).astype(int).ravel().tolist()
        found, alone = clustered_share(outcomes, names), wilson(sum(outcomes), len(outcomes))
        covered += found.low <= 0.75 <= found.high
        plain += alone[0] <= 0.75 <= alone[1]
    assert covered / rounds >= 0.91, f"seed {SEED}"
    assert plain / rounds < 0.9, f"seed {SEED}"


def judged(dice: np.random.Generator, count: int, right: float, noise: float) -> tuple[list[float], list[float]]:
    """What people say, and what a judge says that is wrong so often."""
    labels = dice.random(count) < right
    said = np.where(dice.random(count) < noise, ~labels, labels)
    return labels.astype(float).tolist(), said.astype(float).tolist()


@pytest.mark.parametrize(
    ("count", "right", "noise"), [(30, 0.7, 0.01), (30, 0.7, 0.15), (60, 0.9, 0.03), (100, 0.7, 0.1), (100, 0.6, 0.5)]
)
def test_a_judge_helps_without_a_wrong_claim(count: int, right: float, noise: float) -> None:
    dice = np.random.default_rng(SEED)
    rounds, covered = 300, 0
    widths, used = [], 0
    for _ in range(rounds):
        labels, said = judged(dice, count + 800, right, noise)
        found = prediction_powered(labels[:count], said[:count], said[count:])
        covered += found.low <= right <= found.high
        used += found.used
        widths.append((found.high - found.low) / (found.labels_high - found.labels_low))
        assert found.used == (found.high - found.low < found.labels_high - found.labels_low)
        assert found.worth_labels >= count
    assert covered / rounds >= 0.9, f"seed {SEED}"
    if noise == 0.5:
        assert used / rounds < 0.2, f"seed {SEED}"
    elif count == 100:
        assert np.mean(widths) < 0.85, f"seed {SEED}"


def test_a_judge_that_always_flatters_is_corrected() -> None:
    dice = np.random.default_rng(SEED)
    labels, said = judged(dice, 2_200, 0.5, 0.0)
    flattered = [1.0 if dice.random() < 0.4 else one for one in said]
    found = prediction_powered(labels[:200], flattered[:200], flattered[200:])
    assert found.used
    assert abs(found.value - 0.5) < 0.13, f"seed {SEED}"
    assert sum(flattered) / len(flattered) > 0.62


def test_where_a_judge_is_no_help_the_labels_speak() -> None:
    labels = [1.0, 0.0] * 20
    for said, others in (([1.0] * 40, [1.0] * 500), ([0.0, 1.0] * 20, [0.0, 1.0] * 200), (labels, []), (labels, [1.0])):
        found = prediction_powered(labels, said, others)
        assert (found.used, found.trust, found.value, found.worth_labels) == (False, 0, 0.5, 40)
        assert (found.low, found.high) == (found.labels_low, found.labels_high) == pytest.approx(wilson(20, 40))
    few = prediction_powered([1.0, 0.0] * (LABELS_MIN // 2 - 1), [1.0, 0.0] * (LABELS_MIN // 2 - 1), [1.0, 0.0] * 900)
    assert not few.used
    alike = prediction_powered([0.5] * 30, [0.4] * 30, [0.4] * 300)
    assert alike.low < 0.45 < 0.55 < alike.high
    perfect = prediction_powered([1.0] * 29 + [0.0], [1.0] * 29 + [0.0], [1.0] * 900 + [0.0] * 30)
    assert perfect.high - perfect.low > 0.05
    impossible: list[tuple[list[float], list[float]]] = [([], []), ([1.0], []), ([1.5], [1.0])]
    for labels, said in impossible:
        with pytest.raises(ValueError, match=r"no labels|judged of|between 0 and 1"):
            prediction_powered(labels, said, [])
