"""Thresholds: the stated risk holds as often as was promised, and nothing is claimed that was not shown."""

from __future__ import annotations

import random

import numpy as np
import pytest

from drivetrain.statistics.intervals import clopper_pearson_upper
from drivetrain.training.thresholds import abstention_curve, rows_min, threshold_for

pytestmark = pytest.mark.slow

RISK = 0.05


def dice() -> np.random.Generator:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def sample(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidence c is uniform and wrong with the chance (1 - c) / 4: above t a share of (1 - t) / 8 is wrong."""
    confidence = rng.random(rows)
    return confidence, rng.random(rows) >= (1 - confidence) / 4


def true_risk(threshold: float) -> float:
    return (1 - threshold) / 8


def test_the_risk_is_broken_in_no_more_samples_than_stated_where_reading_it_off_breaks_half() -> None:
    rng, samples = dice(), 200
    broken = read_off = 0
    for _ in range(samples):
        confidence, right = sample(rng, 2_000)
        found = threshold_for(confidence, right, RISK)
        if found.threshold is not None:
            broken += true_risk(found.threshold) > RISK
        order = np.argsort(-confidence)
        accuracy = right[order].cumsum() / np.arange(1, 2_001)
        lucky = confidence[order][np.flatnonzero(accuracy >= 1 - RISK)[-1]]
        read_off += true_risk(lucky) > RISK
    # 5 % and four standard deviations of the count.
    assert broken <= 0.05 * samples + 4 * (samples * 0.05 * 0.95) ** 0.5
    assert read_off > 0.25 * samples


def test_with_many_rows_nearly_all_that_may_be_answered_is() -> None:
    found = threshold_for(*sample(dice(), 400_000), RISK)
    assert found.threshold is not None
    assert 0.6 - 0.02 < found.threshold < 0.65  # 0.6 has the risk exactly
    assert found.share == pytest.approx(1 - found.threshold, abs=0.02)


def test_what_is_told_of_a_threshold_is_what_it_answers() -> None:
    confidence, right = sample(dice(), 30_000)
    confidence = confidence.round(2)  # many rows on one threshold
    found = threshold_for(confidence, right, RISK, 0.9)
    assert found.threshold is not None
    answered = confidence >= found.threshold
    assert (found.rows, found.answered, found.share) == (30_000, answered.sum(), answered.mean())
    assert found.errors == (~right[answered]).sum()
    assert found.error_bound == clopper_pearson_upper(found.errors, found.answered, 0.9) <= RISK
    assert found.threshold == float(f"{found.threshold:.6f}")


def test_testing_ends_where_it_fails_even_if_all_rows_together_would_pass() -> None:
    confidence = np.linspace(1, 0, 10_000)
    right = np.ones(10_000, dtype=bool)
    right[2_000:2_200] = False  # 200 of the first 2,200 are wrong, and of all only 2 %
    assert clopper_pearson_upper(200, 10_000, 0.95) <= RISK
    found = threshold_for(confidence, right, RISK)
    assert found.threshold is not None
    assert 2_000 <= found.answered < 2_200


def test_none_reaches_a_risk_below_the_error_of_the_surest() -> None:
    rng = dice()
    found = threshold_for(rng.random(2_000), rng.random(2_000) < 0.7, RISK)
    assert (found.threshold, found.answered) == (None, 0)
    assert found.error_bound > RISK
    assert "surest rows are wrong" in found.reason


def test_too_few_rows_show_nothing_however_right() -> None:
    fewest = rows_min(0.02)
    assert clopper_pearson_upper(0, fewest, 0.95) <= 0.02 < clopper_pearson_upper(0, fewest - 1, 0.95)
    confidence = np.linspace(0.5, 0.9, fewest)
    assert threshold_for(confidence, [True] * fewest, 0.02).answered == fewest
    few = threshold_for(confidence[1:], [True] * (fewest - 1), 0.02)
    assert few.threshold is None
    assert few.reason.startswith(f"{fewest - 1} rows cannot show an error of 2 %: ")
    assert threshold_for([], [], 0.02).threshold is None


def test_the_curve_goes_from_the_safest_rows_to_all() -> None:
    confidence, right = sample(dice(), 1_234)
    curve = abstention_curve(confidence, right, points=50)
    assert len(curve) == 50
    assert [one.threshold for one in curve] == sorted((one.threshold for one in curve), reverse=True)
    assert (curve[-1].answered, curve[-1].share, curve[-1].accuracy) == (1_234, 1.0, pytest.approx(right.mean()))
    for one in curve:
        answered = confidence >= one.threshold
        assert (one.answered, one.errors) == (answered.sum(), (~right[answered]).sum())
        assert one.accuracy_low <= one.accuracy <= one.accuracy_high
    assert len(abstention_curve([0.5] * 10, [True] * 10)) == 1
    assert abstention_curve([], []) == []


def test_what_is_no_confidence_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        threshold_for([0.5, float("nan")], [True, True], RISK)
    with pytest.raises(ValueError, match="do not belong together"):
        threshold_for([0.5, 0.6], [True], RISK)
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold_for([0.5], [True], 1.5)
