"""Calibration: the error as it is defined, and a temperature that finds again what was planted."""

from __future__ import annotations

import random

import numpy as np
import pytest

from drivetrain.training.calibration import (
    BINS,
    TEMPERATURE_MAX,
    TEMPERATURE_MIN,
    ece,
    ece_of,
    fit_temperature,
    log_loss,
    reliability,
    softmax,
)


def dice() -> np.random.Generator:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def drawn(rng: np.random.Generator, scores: np.ndarray) -> np.ndarray:
    """One class per row, with the chances that softmax says."""
    return (softmax(scores).cumsum(axis=1) < rng.random((len(scores), 1))).sum(axis=1)


def test_the_error_is_the_mean_gap_of_the_bins_by_their_rows() -> None:
    # Bin (0.6, 0.8]: 4 rows, confidence 0.7, half right. Bin (0.8, 1]: 6 rows, confidence 0.9, all right.
    confidence, right = [0.7] * 4 + [0.9] * 6, [1, 1, 0, 0] + [1] * 6
    assert ece(confidence, right, bins=5) == pytest.approx(0.4 * 0.2 + 0.6 * 0.1)


def test_an_edge_belongs_to_the_bin_below_and_nothing_is_lost_at_the_ends() -> None:
    table = reliability([0.0, 0.2, 0.2000001, 1.0], [0, 0, 1, 1], bins=5)
    assert [one.rows for one in table] == [2, 1, 0, 0, 1]
    assert (table[0].low, table[0].high, table[-1].high) == (0.0, 0.2, 1.0)
    assert sum(one.weight for one in table) == pytest.approx(1)
    assert ece([1.0, 1.0], [True, True]) == 0
    assert ece([1.0], [False]) == 1
    assert (ece([], []), len(reliability([], []))) == (0, BINS)


def test_a_weight_counts_as_so_many_rows() -> None:
    rng = dice()
    confidence, right, weights = rng.random(200), rng.random(200) < 0.5, rng.integers(1, 5, 200)
    repeated = reliability(confidence.repeat(weights), right.repeat(weights))
    weighted = reliability(confidence, right, weights=weights)
    assert ece_of(weighted) == pytest.approx(ece_of(repeated))
    scores, truth = rng.normal(size=(200, 3)), rng.integers(0, 3, 200)
    assert log_loss(scores, truth, weights=weights) == pytest.approx(
        log_loss(scores.repeat(weights, axis=0), truth.repeat(weights))
    )


@pytest.mark.parametrize("planted", [0.2, 1.0, 5.0])
def test_the_temperature_that_was_planted_is_found_and_calibrates(planted: float) -> None:
    rng = dice()
    honest = rng.normal(size=(32_000, 5)) * 2  # so many that chance comes nowhere near the limits
    truth, scores = drawn(rng, honest), honest * planted
    found = fit_temperature(scores, truth)
    assert found == pytest.approx(planted, rel=0.12)
    before, after = softmax(scores), softmax(scores / found)
    errors = [ece(one.max(axis=1), one.argmax(axis=1) == truth) for one in (before, after)]
    assert errors[1] < 0.025
    assert planted == 1.0 or errors[0] > 2 * errors[1]
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    for other in (found * 0.9, found * 1.1):
        assert log_loss(scores / found, truth) < log_loss(scores / other, truth)


def test_rows_that_are_all_right_or_all_noise_have_a_temperature_within_its_limits() -> None:
    rng = dice()
    truth = rng.integers(0, 3, 500)
    for scores in (np.eye(3)[truth], np.eye(3)[(truth + 1) % 3], np.zeros((500, 3))):
        assert TEMPERATURE_MIN <= fit_temperature(scores, truth) <= TEMPERATURE_MAX


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="3 confidences and 2 truths"):
        reliability([0.1, 0.2, 0.3], [True, False])
