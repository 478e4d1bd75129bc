"""Two compared in one look: as the literature has it, as scipy has it, and covering what they promise."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from scipy import optimize, stats

from drivetrain.statistics.binomial import at_least, exactly
from drivetrain.statistics.noninferiority import noninferiority, paired_interval, score
from drivetrain.statistics.paired import mcnemar, paired_bootstrap, sign_flips

SEED = random.SystemRandom().getrandbits(32)


def test_binomial_chances_as_scipy_has_them() -> None:
    dice = random.Random(SEED)
    for _ in range(300):
        trials = dice.choice([dice.randint(0, 12), dice.randint(0, 3_000)])
        successes, share = dice.randint(-1, trials + 1), dice.choice([0.5, dice.random(), 0.001])
        told = f"seed {SEED}: {successes} of {trials} at {share}"
        assert at_least(successes, trials, share) == pytest.approx(
            stats.binom.sf(successes - 1, trials, share), rel=1e-9, abs=1e-14
        ), told
        assert exactly(successes, trials, share) == pytest.approx(
            stats.binom.pmf(successes, trials, share), rel=1e-9, abs=1e-300
        ), told
    assert (exactly(0, 3, 0.0), exactly(3, 3, 1.0), exactly(1, 3, 1.0)) == (1, 1, 0)


def test_mcnemar_as_published() -> None:
    # Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91 (2013): airway hyper-responsiveness.
    airway = mcnemar(1, 7)
    assert airway.two_sided == pytest.approx(0.0703, abs=5e-5)
    assert airway.mid_p == pytest.approx(0.0391, abs=5e-5)
    # Agresti, Categorical Data Analysis (1990), p. 350, approval of the president; the statistic as R prints it.
    assert score(86, 150, 794 + 570, 0.0) ** 2 == pytest.approx(17.3559, abs=5e-5)


def test_mcnemar_as_scipy_has_the_binomial_test() -> None:
    dice = random.Random(SEED)
    counts = [*itertools.product(range(6), repeat=2), (0, 500), (10**6, 10**6 - 4_000)]
    counts += [(dice.randint(0, 200), dice.randint(0, 200)) for _ in range(50)]
    for wins, losses in counts:
        found, pairs = mcnemar(wins, losses), wins + losses
        told = f"seed {SEED}: {wins}, {losses}"
        if not pairs:
            assert (found.two_sided, found.better, found.worse, found.mid_p) == (1, 1, 1, 1)
            continue
        assert found.two_sided == pytest.approx(stats.binomtest(wins, pairs).pvalue, rel=1e-7), told
        assert found.better == pytest.approx(stats.binom.sf(wins - 1, pairs, 0.5), rel=1e-7), told
        assert found.worse == pytest.approx(stats.binom.cdf(wins, pairs, 0.5), rel=1e-7), told
        assert 0 < found.mid_p <= found.two_sided or wins == losses
    with pytest.raises(ValueError, match="cannot be"):
        mcnemar(-1, 2)


def test_the_score_interval_as_published() -> None:
    # Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014), 2850-2875: Tango's interval, airway.
    assert paired_interval(1, 7, 13) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_the_score_is_that_of_the_likeliest_shares() -> None:
    dice = random.Random(SEED)
    for _ in range(60):
        wins, losses, ties = (dice.randint(0, 30) for _ in range(3))
        difference = dice.uniform(-0.6, 0.6)
        pairs = wins + losses + ties
        if not pairs:
            continue

        def against(
            share: float, wins: int = wins, losses: int = losses, ties: int = ties, difference: float = difference
        ) -> float:
            shares = share + difference, share, 1 - 2 * share - difference
            return -sum(
                count * math.log(max(one, 1e-300)) for count, one in zip((wins, losses, ties), shares, strict=True)
            )

        bounds = max(0.0, -difference), (1 - difference) / 2
        share = optimize.minimize_scalar(against, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        variance = pairs * (2 * share + difference - difference**2)
        expected = (wins - losses - pairs * difference) / math.sqrt(variance)
        assert score(wins, losses, ties, difference) == pytest.approx(expected, abs=1e-3), f"seed {SEED}"


@pytest.mark.parametrize(("better", "worse", "pairs"), [(0.05, 0.03, 300), (0.02, 0.005, 500), (0.3, 0.1, 40)])
def test_the_score_interval_covers_and_the_margin_is_kept(better: float, worse: float, pairs: int) -> None:
    dice = np.random.default_rng(SEED)
    drawn = [tuple(map(int, one)) for one in dice.multinomial(pairs, [better, worse, 1 - better - worse], size=500)]
    covered = sum(low <= better - worse <= high for low, high in (paired_interval(*one) for one in drawn))
    assert 0.91 <= covered / len(drawn) <= 0.99, f"seed {SEED}"
    lost = [(losses, wins, ties) for wins, losses, ties in drawn]
    wrong = sum(noninferiority(*one, better - worse) <= 0.05 for one in lost)
    assert wrong / len(lost) <= 0.09, f"seed {SEED}"


def test_the_margin_test_and_the_interval_tell_the_same() -> None:
    for wins, losses, ties in ((10, 12, 178), (0, 0, 60), (0, 3, 97), (3, 0, 97), (5, 30, 65)):
        for margin in (0.0, 0.02, 0.05, 0.2):
            refused = noninferiority(wins, losses, ties, margin) < 0.025
            assert refused == (paired_interval(wins, losses, ties)[0] > -margin), (wins, losses, ties, margin)


def test_the_score_interval_at_its_ends() -> None:
    assert paired_interval(0, 0, 0) == (-1, 1)
    assert noninferiority(0, 0, 0, 0.1) == 1
    low, high = paired_interval(0, 0, 100)
    assert low == pytest.approx(-high)
    assert 0.01 < high < 0.05
    assert paired_interval(50, 0, 0)[0] > 0.8
    assert paired_interval(50, 0, 0)[1] == pytest.approx(1)
    assert paired_interval(10**9, 10**9, 10**9) == pytest.approx((0, 0), abs=1e-4)
    for margin in (-0.1, 1.0):
        with pytest.raises(ValueError, match="margin"):
            noninferiority(1, 1, 1, margin)
    with pytest.raises(ValueError, match="cannot be"):
        paired_interval(1, -1, 1)


def test_flipped_signs_of_right_and_wrong_are_mcnemars_test() -> None:
    for wins, losses in ((9, 2), (38, 10), (4, 4), (0, 5)):
        pairs = [1.0] * wins + [-1.0] * losses + [0.0] * 20
        found, exact = sign_flips(pairs, seed=SEED), mcnemar(wins, losses)
        for drawn, expected in ((found.better, exact.better), (found.worse, exact.worse)):
            assert drawn == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / 9_999) + 2e-4), SEED


def test_flipped_signs_of_a_few_scores_as_by_all_of_them() -> None:
    scores = [0.5, 0.25, -0.125, 0.75, 0.0625, -0.3, 0.9]
    sums = [sum(sign * one for sign, one in zip(signs, scores, strict=True)) for signs in
            itertools.product((1, -1), repeat=len(scores))]  # fmt: skip
    expected = sum(one >= sum(scores) - 1e-9 for one in sums) / len(sums)
    assert sign_flips(scores, seed=SEED).better == pytest.approx(expected, abs=0.02), f"seed {SEED}"
    assert sign_flips([0.0] * 9, seed=1).better == sign_flips([], seed=1).worse == 1


def test_flipped_signs_and_the_bootstrap_take_clusters_for_what_they_are() -> None:
    scores = [0.5, 0.25, -0.125, 0.75, 0.0625, -0.3, 0.9, 0.1]
    names = [str(place) for place in range(len(scores))]
    assert sign_flips(scores * 30, seed=3, clusters=names * 30).better == pytest.approx(
        sign_flips(scores, seed=3).better, abs=0.02
    )
    assert sign_flips(scores * 30, seed=3).better < 0.001
    together, alone = (paired_bootstrap(scores * 30, seed=3, clusters=one) for one in (names * 30, None))
    assert together.error == pytest.approx(paired_bootstrap(scores, seed=3).error)
    assert alone.high - alone.low < 0.3 * (together.high - together.low)


@pytest.mark.slow
@pytest.mark.parametrize("together", [1, 4])
def test_the_bootstrap_covers_skewed_scores(together: int) -> None:
    dice = np.random.default_rng(SEED)
    rounds, covered, truth = 300, 0, 0.5 / 2.5 - 0.5 / 3.5
    for _ in range(rounds):
        # Scores of one cluster share most of what they are.
        own = np.repeat(dice.beta(0.5, 2.0, 60) - dice.beta(0.5, 3.0, 60), together)
        names = [str(place // together) for place in range(60 * together)]
        found = paired_bootstrap(own.tolist(), seed=5, clusters=names, resamples=800)
        covered += found.low <= truth <= found.high
        assert (found.low > 0) == (found.better < 0.025) or abs(found.better - 0.025) < 0.005
    assert 0.91 <= covered / rounds <= 0.985, f"seed {SEED}"


def test_where_all_are_alike_the_bootstrap_does_not_claim_to_know() -> None:
    found = paired_bootstrap([0.0] * 100, seed=1, beyond=-0.05)
    assert (found.low, found.high) == pytest.approx((-0.0362, 0.0362), abs=1e-4)
    assert found.better == pytest.approx(0.95**100)
    one = paired_bootstrap([1.0], seed=1)
    assert (one.low, one.high) == pytest.approx((1 - 2 * 0.975, 1.0))
    assert one.two_sided == 1 or one.better == 0
    with pytest.raises(ValueError, match="nothing"):
        paired_bootstrap([], seed=1)
