"""Evidence at any time: seldom wrong however often one looks, and as its formula has it."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from drivetrain.statistics.evidence import (
    PRIOR,
    confidence_sequence,
    counted,
    log_evidence,
    log_evidence_of_counts,
    merged,
    mirrored,
    tallied,
    told,
)
from support.seeds import SEED

pytestmark = pytest.mark.slow

LOOK = 25
REPLAYS = 2_000
WRONG_MAX = 0.05
NOISE = 3.1 * math.sqrt(WRONG_MAX * (1 - WRONG_MAX) / REPLAYS)
"""Of a share of `REPLAYS` that is just allowed: a seed in a thousand is further off."""


def by_hand(wins: int, losses: int) -> float:
    """The uniform mixture over a half to 1 in closed form, by the incomplete beta function."""
    a, b = 1 + wins, 1 + losses
    tail = stats.beta.logsf(0.5, a, b)
    return float((wins + losses) * math.log(2) + special.betaln(a, b) + tail - math.log(0.5))


Counts = NDArray[np.int64]


def looks(dice: np.random.Generator, chances: list[float], examples: int) -> tuple[Counts, Counts, Counts]:
    """Wins, losses and ties at each look, shape (replays, looks)."""
    drawn = dice.choice(np.array([1, -1, 0], dtype=np.int8), p=chances, size=(REPLAYS, examples))
    wins, losses = ((drawn == side).cumsum(axis=1)[:, LOOK - 1 :: LOOK] for side in (1, -1))
    return wins, losses, np.arange(LOOK, examples + 1, LOOK)[None, :] - wins - losses


def test_the_prior_is_one_and_uniform() -> None:
    assert math.fsum(weight for _, weight in PRIOR) == pytest.approx(1, abs=1e-15)
    assert all(weight > 0 and 0 <= stake < 1 for stake, weight in PRIOR)
    for power in (1, 2, 5, 10):
        assert math.fsum(weight * stake**power for stake, weight in PRIOR) == pytest.approx(1 / (power + 1), rel=1e-12)


def test_of_right_and_wrong_it_is_the_closed_form() -> None:
    dice = random.Random(SEED)
    counts = [(0, 0), (1, 0), (0, 1), (38, 10), (0, 90), (5_000, 4_800)]
    counts += [(dice.randint(0, 60), dice.randint(0, 60)) for _ in range(40)]
    for wins, losses in counts:
        found = log_evidence(counted(wins, losses, 1_000))
        assert found == pytest.approx(by_hand(wins, losses), abs=2e-3), f"seed {SEED}: {wins}, {losses}"
        assert log_evidence_of_counts([wins], [losses])[0] == pytest.approx(found, abs=1e-9)
    assert math.exp(log_evidence(counted(1, 0))) == pytest.approx(1.5)
    assert math.exp(log_evidence(counted(0, 1))) == pytest.approx(0.5)


@pytest.mark.parametrize("discordance", [0.02, 0.1, 0.6])
def test_where_there_is_no_difference_it_seldom_says_so_at_any_look(discordance: float) -> None:
    dice = np.random.default_rng(SEED)
    wins, losses, _ = looks(dice, [discordance / 2, discordance / 2, 1 - discordance], 1_000)
    wrong = float((log_evidence_of_counts(wins, losses) >= math.log(20)).any(axis=1).mean())
    assert wrong <= WRONG_MAX + NOISE, f"seed {SEED}"
    z = (wins - losses) / np.sqrt(np.maximum(wins + losses, 1))
    assert float((z > stats.norm.isf(WRONG_MAX)).any(axis=1).mean()) > 2 * WRONG_MAX, "looking costs what it is said to"


def test_where_the_margin_is_just_lost_it_seldom_says_that_it_is_not() -> None:
    dice = np.random.default_rng(SEED)
    for chances, margin in (([0.03, 0.05, 0.92], 0.02), ([0.0, 0.1, 0.9], 0.1), ([0.3, 0.35, 0.35], 0.05)):
        seen = looks(dice, chances, 500)
        wrong = float((log_evidence_of_counts(*seen, beyond=-margin) >= math.log(20)).any(axis=1).mean())
        assert wrong <= WRONG_MAX + NOISE, f"seed {SEED}"
    better = looks(dice, [0.06, 0.03, 0.91], 500)
    assert float((log_evidence_of_counts(*better, beyond=-0.02) >= math.log(20)).any(axis=1).mean()) > 0.8


def test_scores_and_clusters_of_no_difference_seldom_become_evidence() -> None:
    dice = np.random.default_rng(SEED)
    replays, wrong_scores, wrong_clusters = 300, 0, 0
    for _ in range(replays):
        scores = dice.beta(0.5, 2.0, 60) - dice.beta(0.5, 2.0, 60)
        wrong_scores += any(log_evidence(tallied(scores[:end].tolist())) >= math.log(10) for end in range(10, 61, 10))
        # Whole customers lean one way: as single pairs they would be twenty times what they are worth.
        lean = np.repeat(dice.choice([-1.0, 1.0], 30), 20)
        names = np.repeat([f"customer {place}" for place in range(30)], 20).tolist()
        wrong_clusters += any(
            log_evidence(tallied(lean[:end].tolist(), names[:end], largest=20)) >= math.log(10)
            for end in range(60, 601, 60)
        )
    allowed = 0.1 + 3.1 * math.sqrt(0.09 / replays)
    assert wrong_scores / replays <= allowed, f"seed {SEED}"
    assert wrong_clusters / replays <= allowed, f"seed {SEED}"


def test_the_interval_holds_at_all_looks_together() -> None:
    dice = np.random.default_rng(SEED)
    needed = math.log(2 / WRONG_MAX)
    for chances in ([0.04, 0.02, 0.94], [0.25, 0.4, 0.35]):
        wins, losses, ties = looks(dice, chances, 500)
        difference = chances[0] - chances[1]
        below = log_evidence_of_counts(wins, losses, ties, beyond=difference) >= needed
        above = log_evidence_of_counts(losses, wins, ties, beyond=-difference) >= needed
        assert float((below | above).any(axis=1).mean()) <= WRONG_MAX + NOISE, f"seed {SEED}"
        for replay in range(5):
            seen = counted(int(wins[replay, -1]), int(losses[replay, -1]), int(ties[replay, -1]))
            low, high = confidence_sequence(seen)
            outside = bool(below[replay, -1] or above[replay, -1])
            assert (low <= difference <= high) != outside, f"seed {SEED}"


def test_the_interval_leaves_out_0_just_when_the_evidence_says_so() -> None:
    for wins in range(31):
        low, high = confidence_sequence(counted(wins, 4, 100))
        assert (low > 0) == (log_evidence(counted(wins, 4, 100)) >= math.log(40))
        assert low <= (wins - 4) / (wins + 104) <= high


def test_it_narrows_and_has_two_sides_that_mirror_each_other() -> None:
    widths = []
    for times in (1, 4, 16, 64):
        low, high = confidence_sequence(counted(4 * times, times, 95 * times))
        widths.append(high - low)
        assert confidence_sequence(mirrored(counted(4 * times, times, 95 * times))) == pytest.approx((-high, -low))
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.04


def test_nothing_little_and_very_much_is_no_trouble() -> None:
    assert log_evidence({}) == pytest.approx(0, abs=1e-12)
    assert confidence_sequence({}) == pytest.approx((-1, 1))
    assert confidence_sequence(counted(0, 0, 1))[0] < -0.9
    assert log_evidence(counted(0, 0, 10**6)) == pytest.approx(0, abs=1e-12)
    low, high = confidence_sequence(counted(0, 0, 10**6))
    assert -1e-4 < low < 0 < high < 1e-4
    huge = log_evidence(counted(10**12, 10**11))
    assert huge > 10**11
    assert told(huge) == told(10**13) < math.inf
    assert told(log_evidence(counted(0, 10**12))) < 1e-6
    # A difference of one in ten thousand is seen where there is enough to see it in.
    assert log_evidence(counted(5.001e9, 5.0e9)) > 30
    assert confidence_sequence(counted(10**12, 10**11))[0] == pytest.approx(9 / 11, abs=1e-4)


def test_scores_count_by_their_size_with_numpy_and_without() -> None:
    dice = random.Random(SEED)
    few = [dice.choice([-0.5, -0.25, 0.0, 0.25, 0.5]) for _ in range(300)]
    many = [one + dice.uniform(-1e-9, 1e-9) for one in few]
    assert log_evidence(tallied(few), -0.1) == pytest.approx(log_evidence(tallied(many), -0.1), abs=1e-3)
    assert confidence_sequence(tallied(few)) == pytest.approx(confidence_sequence(tallied(many)), abs=1e-6)
    assert log_evidence(tallied([0.5] * 40)) < log_evidence(tallied([1.0] * 40))


def test_a_cluster_is_one_bet_and_those_of_one_pair_change_nothing() -> None:
    pairs = [1.0, 1.0, 0.0, -1.0, 1.0, 0.0]
    names = ["a", "b", "c", "d", "e", "f"]
    assert tallied(pairs, names) == tallied(pairs)
    assert log_evidence(tallied(pairs * 50, names * 50)) == pytest.approx(log_evidence(tallied(pairs)))
    parts = merged(tallied(pairs[:2], names[:2], largest=1), tallied(pairs[2:], names[2:], largest=1))
    assert log_evidence(parts) == pytest.approx(log_evidence(tallied(pairs)))


def test_what_cannot_be_is_refused() -> None:
    for wrong in ([1.5], [-1.01], [math.nan], [math.inf]):
        with pytest.raises(ValueError, match="between -1 and 1"):
            tallied(wrong)
    with pytest.raises(ValueError, match="announced"):
        tallied([1.0, 1.0, 0.0], ["a", "a", "b"], largest=1)
    with pytest.raises(ValueError, match="level"):
        confidence_sequence({}, 1.0)
