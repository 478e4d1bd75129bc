"""Means by Student's t and intervals by resampling: they cover the truth as often as they say, clusters and all."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from drivetrain.statistics.bootstrap import bootstrap, mean, ratio
from drivetrain.statistics.means import mean_interval, student_quantile
from support.seeds import SEED


def test_student_as_scipy_has_it() -> None:
    for freedom in (1, 2, 3, 5, 10, 30, 100, 1_000, 100_000):
        for chance in (0.5, 0.6, 0.75, 0.9, 0.975, 0.995, 0.9995):
            expected = stats.t.ppf(chance, freedom)
            assert student_quantile(chance, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_mean_without_clusters_is_students() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    expected = stats.t.interval(0.9, 3, loc=3.75, scale=np.std(values, ddof=1) / 2)
    assert mean_interval(values, 0.9) == pytest.approx(expected)
    assert mean_interval([1.0]) == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="nothing"):
        mean_interval([])


def test_values_that_are_copies_of_each_other_tell_no_more_than_one() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    names = [str(place) for place in range(4)]
    copies = mean_interval(values * 50, clusters=names * 50)
    assert copies == pytest.approx(mean_interval(values, clusters=names))
    alone = mean_interval(values * 50)
    assert alone[1] - alone[0] < 0.2 * (copies[1] - copies[0])


def test_the_same_seed_gives_the_same_interval_and_another_one_another() -> None:
    values = np.random.default_rng(1).normal(size=50).tolist()
    columns = [values, [1.0] * 50]
    first, again, other = (bootstrap(columns, [mean], seed=seed)[0] for seed in (7, 7, 8))
    assert first == again != other
    assert first.value == pytest.approx(np.mean(values))


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_a_ratio_of_skewed_sums_is_covered_about_as_often_as_it_says(method: str) -> None:
    dice = np.random.default_rng(SEED)
    covered = 0
    rounds = 300
    for _ in range(rounds):
        above, below = dice.exponential(2.0, 60).tolist(), (dice.exponential(1.0, 60) + 1).tolist()
        (found,) = bootstrap([above, below], [ratio(0, 1)], seed=3, level=0.9, resamples=400, method=method)
        covered += found.low <= 1.0 <= found.high
    assert 0.8 <= covered / rounds <= 0.97, f"seed {SEED}"


def test_bca_moves_with_the_skew_as_scipys_does() -> None:
    values = np.random.default_rng(5).exponential(1.0, 40).tolist()
    (mine,) = bootstrap([values, [1.0] * 40], [mean], seed=1, resamples=20_000, method="bca")
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(2))
    low, high = theirs.confidence_interval
    assert (mine.low, mine.high) == pytest.approx((low, high), abs=0.02)


def test_clusters_are_drawn_whole() -> None:
    dice = np.random.default_rng(4)
    effects = np.repeat(dice.normal(size=30), 20)
    columns = [effects.tolist(), [1.0] * 600]
    names = [str(place // 20) for place in range(600)]
    (alone,), (whole,) = (bootstrap(columns, [mean], seed=1, clusters=given) for given in (None, names))
    assert whole.high - whole.low > 3 * (alone.high - alone.low)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        bootstrap([[]], [mean], seed=1)
    with pytest.raises(ValueError, match="percentile, bca"):
        bootstrap([[1.0], [1.0]], [mean], seed=1, method="magic")
