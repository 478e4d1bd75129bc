"""How many examples it takes: exact where it says so, and enough when somebody takes them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from drivetrain.statistics.evidence import counted, log_evidence_of_counts
from drivetrain.statistics.paired import mcnemar
from drivetrain.statistics.power import (
    EXAMPLES_MAX,
    PAIRS_EXACT_MAX,
    examples_needed,
    mcnemar_power,
    mean_needed,
    more_until,
)
from support.seeds import SEED

pytestmark = pytest.mark.slow


def test_power_is_the_sum_over_all_tables() -> None:
    for examples, discordance, difference, level in ((30, 0.3, 0.2, 0.95), (45, 0.5, -0.25, 0.9), (12, 1.0, 0.6, 0.95)):
        share = (1 + abs(difference) / discordance) / 2
        for one_sided in (False, True):
            expected = 0.0
            for pairs in range(examples + 1):
                for wins in range(pairs + 1):
                    found = mcnemar(wins, pairs - wins)
                    seen = found.better <= 1 - level if one_sided else found.two_sided <= 1 - level and 2 * wins > pairs
                    expected += seen * float(
                        stats.binom.pmf(pairs, examples, discordance) * stats.binom.pmf(wins, pairs, share)
                    )
            power = mcnemar_power(
                examples, discordance=discordance, difference=difference, level=level, one_sided=one_sided
            )
            assert power == pytest.approx(expected, abs=1e-9)


def test_the_power_of_one_look_at_real_shares() -> None:
    # Measured by drawing 20,000 samples of 500 from 38 wins and 10 losses among 1,319: .653, one-sided .768.
    for one_sided, seen in ((False, 0.653), (True, 0.768)):
        found = mcnemar_power(500, discordance=48 / 1_319, difference=28 / 1_319, one_sided=one_sided)
        assert found == pytest.approx(seen, abs=0.012)


def test_two_points_take_about_as_many_as_the_formula_says_and_not_one_less_than_needed() -> None:
    for discordance in (0.03, 0.05, 0.1, 0.3):
        needed = examples_needed(discordance=discordance, difference=0.02)
        assert needed is not None
        # Connor (1987), eq. 3, with 1.96 and 0.8416.
        formula = ((1.959964 * math.sqrt(discordance) + 0.841621 * math.sqrt(discordance - 0.0004)) / 0.02) ** 2
        assert formula < needed < 1.25 * formula + 100
        power = mcnemar_power(needed, discordance=discordance, difference=0.02)
        if needed * discordance <= PAIRS_EXACT_MAX:
            assert power >= 0.8 > mcnemar_power(needed - 1, discordance=discordance, difference=0.02)
        assert power == pytest.approx(0.8, abs=0.01)
        assert examples_needed(discordance=discordance, difference=-0.02) == needed
        sided = examples_needed(discordance=discordance, difference=0.02, one_sided=True)
        assert sided is not None
        assert sided < needed


def test_so_many_evidence_needs_from_nothing() -> None:
    dice = np.random.default_rng(SEED)
    wins, losses = 0.06, 0.03
    more = more_until(counted(60, 30, 910), math.log(40))
    assert more is not None
    drawn = dice.multinomial(more, [wins, losses, 1 - wins - losses], size=2_000)
    reached = log_evidence_of_counts(60 + drawn[:, 0], 30 + drawn[:, 1]) >= math.log(40)
    assert 0.77 <= float(reached.mean()) <= 0.92, f"seed {SEED}"


def test_means_as_the_normal_formula_has_them() -> None:
    # ((1.96 + 0.8416) * 0.5 / 0.05)^2 = 784.9, as in any table of sample sizes.
    assert mean_needed(deviation=0.5, difference=0.05) == 785
    assert mean_needed(deviation=0.0, difference=0.05) == 1
    assert mean_needed(deviation=0.5, difference=0.0) is None
    assert mean_needed(deviation=0.5, difference=1e-9) is None


def test_what_no_number_settles_is_none_and_what_cannot_be_is_refused() -> None:
    assert examples_needed(discordance=0.1, difference=0.0) is None
    assert examples_needed(discordance=0.5, difference=1e-6) is None
    assert more_until(counted(10, 20, 100), math.log(20)) is None
    assert more_until({}, math.log(20)) is None
    assert more_until(counted(50_001, 50_000), math.log(20)) is None
    assert EXAMPLES_MAX >= 10**6
    assert mcnemar_power(0, discordance=0.1, difference=0.05) == 0
    assert mcnemar_power(200_000, discordance=0.2, difference=0.01) == pytest.approx(1)
    for discordance, difference in ((0.1, 0.2), (0.0, 0.0)):
        with pytest.raises(ValueError, match="cannot come from"):
            mcnemar_power(100, discordance=discordance, difference=difference)
    with pytest.raises(ValueError, match="power"):
        examples_needed(discordance=0.1, difference=0.05, power=1.0)
