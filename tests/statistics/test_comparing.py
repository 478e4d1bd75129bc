"""Is the candidate better: right verdicts, seldom wrong ones, and "not enough evidence" where there is not."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from scipy import stats

from drivetrain.statistics.comparing import (
    BETTER,
    LOOK_EVERY,
    UNSETTLED,
    VERDICTS,
    WITHIN_MARGIN,
    WORSE,
    Comparison,
    compare,
    first_settled,
)
from drivetrain.statistics.evidence import log_evidence_of_counts
from support.seeds import SEED

pytestmark = pytest.mark.slow


def outcomes(wins: int, losses: int, ties: int) -> tuple[list[bool], list[bool]]:
    """Before and after."""
    return [False] * wins + [True] * losses + [True] * ties, [True] * wins + [False] * losses + [True] * ties


def swapped(found: Comparison) -> Comparison:
    """What would be said if the two changed places."""
    turned = {BETTER: WORSE, WORSE: BETTER}
    assert found.difference is not None
    return msgspec.structs.replace(
        found, before=found.after, after=found.before, wins=found.losses, losses=found.wins,
        difference=-found.difference, low=-found.high, high=-found.low, e_better=found.e_worse, e_worse=found.e_better,
        verdict=turned.get(found.verdict, found.verdict),
    )  # fmt: skip


def test_a_clear_difference_is_told_with_all_that_belongs_to_it() -> None:
    found = compare(*outcomes(38, 10, 1_271))
    assert (found.pairs, found.clusters, found.wins, found.losses, found.ties) == (1_319, 1_319, 38, 10, 1_271)
    assert (found.verdict, found.settled, found.more_needed) == (BETTER, True, 0)
    assert found.difference == pytest.approx(28 / 1_319)
    assert found.before == pytest.approx(1_281 / 1_319)
    assert found.after == pytest.approx(1_309 / 1_319)
    # The uniform mixture in closed form, by scipy's incomplete beta: 1756.47.
    assert found.e_better == pytest.approx(1_756.467, abs=0.01)
    assert found.p_value == pytest.approx(2 / 1_756.467, rel=1e-4)
    assert 0 < found.low < 28 / 1_319 < found.high < 0.05
    assert msgspec.json.decode(msgspec.json.encode(found), type=Comparison) == found


@pytest.mark.parametrize("mode", ["anytime", "fixed"])
@pytest.mark.parametrize("counts", [(38, 10, 300), (3, 2, 50), (0, 0, 30), (7, 7, 0), (0, 9, 91)])
def test_both_sides_are_treated_alike(mode: str, counts: tuple[int, int, int]) -> None:
    before, after = outcomes(*counts)
    there, back = compare(before, after, mode=mode), compare(after, before, mode=mode)
    assert there.verdict == swapped(back).verdict
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-9)
    assert there.p_value == pytest.approx(back.p_value)
    assert there.more_needed == back.more_needed


def test_one_look_is_mcnemars_exact_test() -> None:
    dice = random.Random(SEED)
    for _ in range(30):
        wins, losses, ties = dice.randint(0, 25), dice.randint(0, 25), dice.randint(0, 400)
        before, after = outcomes(wins, losses, ties)
        if wins + losses:
            p = stats.binomtest(wins, wins + losses).pvalue
            one = stats.binomtest(wins, wins + losses, alternative="greater").pvalue
        else:
            p = one = 1.0
        told = f"seed {SEED}: {wins}, {losses}, {ties}"
        found = compare(before, after, mode="fixed")
        assert found.p_value == pytest.approx(p), told
        assert found.verdict == (UNSETTLED if p > 0.05 else BETTER if wins > losses else WORSE), told
        assert found.settled == (found.low > 0 or found.high < 0), told
        sided = compare(before, after, mode="fixed", one_sided=True)
        assert sided.p_value == pytest.approx(one), told
        assert sided.settled == (one <= 0.05), told
        assert (found.e_better, found.e_worse) == (None, None)


def test_verdict_interval_and_chance_tell_the_same_in_every_mode() -> None:
    dice = random.Random(SEED)
    names = [str(place // 3) for place in range(240)]
    for _ in range(8):
        lean = dice.uniform(-0.2, 0.2)
        before = [dice.random() for _ in range(240)]
        after = [min(1.0, max(0.0, one + dice.gauss(lean, 0.6))) for one in before]
        for found in (
            compare(before, after, mode="fixed", seed=4),
            compare(before, after, mode="fixed", clusters=names, seed=4),
            compare(before[:120], after[:120]),
            compare(before, after, clusters=names),
        ):
            expected = BETTER if found.low > 0 else WORSE if found.high < 0 else UNSETTLED
            assert found.verdict == expected, f"seed {SEED}"
            assert found.difference is not None
            assert found.low <= found.difference <= found.high
            assert found.settled == (found.p_value <= 0.05), f"seed {SEED}"


def test_a_margin_takes_what_is_no_worse_and_not_what_is() -> None:
    same, lost = outcomes(6, 6, 1_000), outcomes(5, 60, 900)
    for mode in ("anytime", "fixed"):
        assert compare(*same, mode=mode).verdict == UNSETTLED
        found = compare(*same, margin=0.03, mode=mode)
        assert (found.verdict, found.more_needed) == (WITHIN_MARGIN, 0)
        assert found.low > -0.03
        assert found.p_margin is not None
        assert found.p_margin <= 0.025
        assert compare(*lost, margin=0.03, mode=mode).verdict == WORSE
        assert compare(*lost, margin=0.15, mode=mode).verdict == WITHIN_MARGIN
        assert compare(*outcomes(60, 5, 900), margin=0.03, mode=mode).verdict == BETTER
        assert compare(*same, mode=mode).p_margin is None
    scores = [0.5] * 200, [0.5, 0.49] * 100
    assert compare(*scores, margin=0.03, mode="fixed").verdict == WITHIN_MARGIN
    assert compare(*scores, margin=0.03, clusters=[str(one % 50) for one in range(200)], mode="fixed").verdict == (
        WITHIN_MARGIN
    )


def test_one_sided_needs_less_and_never_says_worse() -> None:
    before, after = outcomes(12, 2, 300)
    two, one = compare(before, after), compare(before, after, one_sided=True)
    assert (two.verdict, one.verdict) == (UNSETTLED, BETTER)
    assert one.low > two.low
    assert one.high == 1
    lost = compare(after * 5, before * 5, one_sided=True)
    assert (lost.verdict, lost.high) == (UNSETTLED, 1)
    assert compare(after * 5, before * 5).verdict == WORSE


@pytest.mark.parametrize("mode", ["anytime", "fixed"])
def test_nothing_one_example_and_all_alike_are_not_enough_evidence(mode: str) -> None:
    nothing = compare([], [], mode=mode)
    assert (nothing.verdict, nothing.before, nothing.after, nothing.difference) == (UNSETTLED, None, None, None)
    assert (nothing.low, nothing.high, nothing.p_value, nothing.more_needed) == (-1, 1, 1, None)
    for before, after in (([0], [1]), ([1], [0]), ([1], [1]), ([0.5], [0.75])):
        one = compare(before, after, mode=mode)
        assert one.verdict == UNSETTLED
        assert one.low < -0.5 < 0.5 < one.high or one.difference != 0
    alike = compare([1] * 400, [1] * 400, mode=mode)
    assert (alike.verdict, alike.difference, alike.p_value) == (UNSETTLED, 0, 1)
    assert alike.low == pytest.approx(-alike.high)
    assert 0 < alike.high < 0.05
    assert alike.more_needed is None
    assert compare([1] * 400, [1] * 400, mode=mode, margin=0.03).verdict == WITHIN_MARGIN
    assert compare([0.3] * 400, [0.3] * 400, mode=mode).verdict == UNSETTLED


def test_very_many_examples_are_no_trouble() -> None:
    found = compare(*outcomes(60_000, 20_000, 20_000))
    assert found.verdict == BETTER
    assert found.e_better is not None
    assert math.isfinite(found.e_better)
    assert found.p_value == 0
    assert compare(*outcomes(60_000, 20_000, 20_000), mode="fixed").verdict == BETTER


def test_copies_of_an_answer_are_no_more_evidence_than_one() -> None:
    before, after = outcomes(6, 1, 30)
    names = [str(place) for place in range(len(before))]
    for mode in ("anytime", "fixed"):
        single = compare(before, after, mode=mode)
        copies = compare(before * 8, after * 8, clusters=names * 8, mode=mode)
        assert (single.verdict, copies.verdict) == (UNSETTLED, UNSETTLED)
        assert compare(before * 8, after * 8, mode=mode).verdict == BETTER
        assert (copies.pairs, copies.clusters) == (len(before) * 8, len(before))
    anytime = compare(before * 8, after * 8, clusters=names * 8)
    assert (anytime.low, anytime.high) == pytest.approx((compare(before, after).low, compare(before, after).high))


def test_the_first_look_that_settles_it_is_where_it_stops() -> None:
    dice = random.Random(SEED)
    before, after = outcomes(80, 20, 400)
    order = dice.sample(range(500), 500)
    before, after = [before[place] for place in order], [after[place] for place in order]
    found = first_settled(before, after)
    ends = range(LOOK_EVERY, 501, LOOK_EVERY)
    settled = next(end for end in ends if compare(before[:end], after[:end]).settled)
    assert (found.pairs, found.verdict) == (settled, BETTER), f"seed {SEED}"
    assert found == compare(before[:settled], after[:settled]), f"seed {SEED}"
    undecided = first_settled(*outcomes(3, 2, 118))
    assert (undecided.pairs, undecided.verdict) == (123, UNSETTLED)
    assert undecided.more_needed
    assert first_settled([], []).verdict == UNSETTLED


def test_looks_wait_for_the_end_of_a_cluster() -> None:
    names = [f"customer {place % 40}" for place in range(400)]
    before, after = [0.0] * 400, [float(place % 40 < 38) for place in range(400)]
    found = first_settled(before, after, clusters=names, every=7)
    assert found.verdict == BETTER
    assert found.pairs % 10 == 0
    assert (found.pairs, found.clusters) == (found.clusters * 10, found.clusters)
    assert found.pairs < 120
    uneven = ["big"] * 60 + [str(place) for place in range(40)]
    assert first_settled([0] * 100, [1] * 100, clusters=uneven).pairs == 100


def test_looking_at_every_example_is_seldom_wrong_where_there_is_no_difference() -> None:
    dice = random.Random(SEED)
    rounds = 100
    wrong = 0
    for _ in range(rounds):
        flips = [dice.random() < 0.5 for _ in range(30)]
        wrong += first_settled([not one for one in flips], flips, every=1).settled
    assert wrong / rounds <= 0.05 + 3.1 * math.sqrt(0.05 * 0.95 / rounds), f"seed {SEED}"


@pytest.mark.parametrize(("wins", "losses", "examples"), [(12, 6, 300), (10, 5, 150), (2, 8, 100)])
def test_so_many_more_settle_it_four_times_of_five(wins: int, losses: int, examples: int) -> None:
    dice = np.random.default_rng(SEED)
    before, after = outcomes(wins, losses, examples - wins - losses)
    pilot = compare(before, after)
    assert pilot.more_needed

    def settled(more: int) -> float:
        """How often they do, drawn again and again as the first ones were."""
        drawn = dice.multinomial(more, [wins / examples, losses / examples, 1 - (wins + losses) / examples], 2_000)
        won, lost = wins + drawn[:, 0], losses + drawn[:, 1]
        evidence = np.maximum(log_evidence_of_counts(won, lost), log_evidence_of_counts(lost, won))
        return float((evidence >= math.log(2 / 0.05)).mean())

    assert settled(pilot.more_needed) >= 0.77, f"seed {SEED}"
    # Nor are so many asked for that nobody would begin.
    assert settled(pilot.more_needed // 3) <= 0.75, f"seed {SEED}"


def test_more_needed_grows_as_the_difference_shrinks() -> None:
    needed = [compare(*outcomes(wins, 10, 500), margin=margin).more_needed for wins, margin in
              ((19, 0.0), (16, 0.0), (13, 0.0))]  # fmt: skip
    assert all(needed)
    assert needed == sorted(needed, key=lambda one: one or 0)
    margin = compare(*outcomes(10, 11, 300), margin=0.02).more_needed
    assert margin is not None
    assert margin < (compare(*outcomes(10, 11, 300)).more_needed or math.inf)
    for mode in ("anytime", "fixed"):
        assert compare(*outcomes(10, 10, 300), mode=mode).more_needed is None
        assert compare(*outcomes(10, 14, 300), mode=mode, one_sided=True).more_needed is None
    scores = compare([0.5] * 30, [0.5, 0.6, 0.43] * 10, mode="fixed")
    assert (scores.verdict, bool(scores.more_needed)) == (UNSETTLED, True)


def test_right_and_wrong_need_no_numpy() -> None:
    script = (
        "import sys\n"
        "sys.modules['numpy'] = None\n"
        "from drivetrain.statistics.comparing import compare, first_settled\n"
        "before, after = [0] * 40 + [1] * 60, [1] * 100\n"
        "print(compare(before, after).verdict, compare(before, after, mode='fixed').verdict)\n"
        "print(first_settled(before, after, every=10).verdict)\n"
        "compare(before, after, clusters=['a'] * 100, mode='fixed')\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout.split() == [BETTER] * 3
    assert 'pip install "drivetrain[models]"' in ran.stderr


def test_what_cannot_be_is_refused() -> None:
    for before, after in (([1], [1, 0]), ([math.nan], [1]), ([1], [2]), ([-0.1], [1])):
        with pytest.raises(ValueError, match=r"pairs|between 0 and 1"):
            compare(before, after)
    for wrong in ({"mode": "sometimes"}, {"level": 1.0}, {"margin": -0.1}, {"margin": 1.0}, {"clusters": ["a", "b"]}):
        with pytest.raises(ValueError, match=r"none of|level|margin|clusters"):
            compare([1], [1], **wrong)
    with pytest.raises(ValueError, match="at least one"):
        first_settled([1], [1], every=0)
    assert len(set(VERDICTS)) == 4
