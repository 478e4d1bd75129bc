"""Bets on which arm a unit is in: exact at one look, careful over many, and sharp where something rare is harm."""

from __future__ import annotations

import math
import random
from itertools import accumulate, product

import pytest

from drivetrain.statistics import coins as coins_module
from drivetrain.statistics.arms import Arm
from drivetrain.statistics.coins import Coins
from drivetrain.statistics.intervals import clopper_pearson
from drivetrain.statistics.two_arms import TwoArms
from support.seeds import SEED

pytestmark = pytest.mark.slow

SHARE = 0.2
TAIL = 0.05
NEEDED = -math.log(TAIL)
LOOK_EVERY = 40
RUNS, CALLS = 50, 1_500


@pytest.fixture(autouse=True)
def _seed() -> None:
    print(f"seed {SEED}")


def fed(histories: list[tuple[bool, int, int]], share: float) -> Coins:
    """Units that have had so many Calls and hits, as (candidate, calls, hits), without a look between."""
    coins, arms, places = Coins(share), {True: Arm(), False: Arm()}, {True: 0, False: 0}
    for candidate, calls, hits in histories:
        place = places[candidate]
        places[candidate] += 1
        for number in range(calls):
            one = arms[candidate].history(place)
            coins.leave(candidate=candidate, place=place, calls=one[0], hits=one[1])
            arms[candidate].add(place, float(number < hits))
    coins.settle(arms[False], arms[True])
    return coins


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_capital_at_one_look_is_fair_whatever_units_do(share: float) -> None:
    """Its mean over all ways in which the coins may have fallen is 1: exact, for any histories."""
    draw = random.Random(SEED)
    histories = [(calls, draw.randint(0, calls)) for calls in (1, 1, 2, 5, 9, 40, 400)] + [(300, 300)]
    total = 0.0
    for sides in product((True, False), repeat=len(histories)):
        chance = math.prod(share if side else 1 - share for side in sides)
        given = [(side, calls, hits) for side, (calls, hits) in zip(sides, histories, strict=True)]
        total += chance * math.exp(fed(given, share).log_capital)
    assert total == pytest.approx(1.0)


def test_capital_kept_up_is_that_of_all_units_at_once() -> None:
    draw = random.Random(SEED)
    kept, arms = Coins(SHARE), {True: Arm(), False: Arm()}
    for number in range(4_000):
        candidate, place = draw.random() < 0.3, int(draw.expovariate(0.05))
        calls, hits = arms[candidate].history(place)
        kept.leave(candidate=candidate, place=place, calls=calls, hits=hits)
        arms[candidate].add(place, float(draw.random() < (0.1 if candidate else 0.03)))
        if number % 7 == 0:
            kept.settle(arms[False], arms[True])
    kept.settle(arms[False], arms[True])
    anew = Coins(SHARE)
    anew._renew(kept._rate, arms[False], arms[True])
    assert kept.log_capital == pytest.approx(anew.log_capital, abs=1e-6)
    assert kept.log_capital > 3


def test_who_always_fails_does_not_decide_alone() -> None:
    quiet = [(number % 5 == 0, 20, 0) for number in range(200)]
    worse = [(True, 20, 2)] * 12
    assert fed([*quiet, (True, 400, 400)], SHARE).log_capital < NEEDED
    assert fed([*quiet, *worse], SHARE).log_capital > NEEDED
    assert fed([*quiet, *worse, (False, 400, 400)], SHARE).log_capital > NEEDED  # nor does one of live hide harm


def test_units_in_buckets_are_not_bet_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def capital(most: int) -> float:
        monkeypatch.setattr(coins_module, "UNITS_MAX", most)
        return fed([(number % 2 == 0, 10, number % 2 == 0) for number in range(40)], SHARE).log_capital

    assert capital(50) > NEEDED
    assert capital(0) == 0


class Crowd:
    """Users with Calls, errors and a side of the coin of their own."""

    def __init__(self, seed: int, *, rate: float, users: int = 500, unequal: float = 1.0, failing: float = 1.0) -> None:
        self.draw = random.Random(SEED * 10_007 + seed)
        self.edges = list(accumulate(1 / rank**unequal for rank in range(1, users + 1)))
        self.candidate = [self.draw.random() < SHARE for _ in range(users)]
        self.rate = [min(rate * self.draw.gammavariate(failing, 1 / failing), 0.95) for _ in range(users)]

    def is_claimed(self, *, harm: float = 0.0, incident: float = 0.0, mixed: bool = False, calls: int = CALLS) -> bool:
        """Whether harm is ever claimed. mixed: half of the candidate's users fail twice as often, half never."""
        arms, users = TwoArms(share=SHARE), range(len(self.rate))
        for number in range(1, calls + 1):
            user = self.draw.choices(users, cum_weights=self.edges)[0]
            candidate, rate = self.candidate[user], self.rate[user]
            if candidate and mixed:
                rate *= 2 * (user % 2)
            if number % 400 < 40:
                rate += incident
            happens = self.draw.random() < rate + (harm if candidate else 0.0)
            arms.add(candidate=candidate, place=user, value=float(happens))
            if number % LOOK_EVERY == 0 and arms.look(tail=TAIL).log_evidence >= NEEDED:
                return True
        return False


@pytest.mark.parametrize(
    ("crowd", "played"),
    [
        ({"rate": 0.005}, {}),
        ({"rate": 0.05}, {}),
        ({"rate": 0.3}, {}),
        ({"rate": 0.03, "failing": 0.05}, {}),  # a few users have nearly all the errors
        ({"rate": 0.03, "unequal": 1.6}, {}),
        ({"rate": 0.03, "unequal": 0.0}, {}),
        ({"rate": 0.03, "users": 20}, {}),
        ({"rate": 0.01}, {"incident": 0.3}),
        ({"rate": 0.05}, {"mixed": True}),
        ({"rate": 0.05, "failing": 50.0}, {"harm": -0.03}),
    ],
)
def test_a_candidate_that_is_no_worse_is_seldom_called_worse(crowd: dict[str, float], played: dict[str, float]) -> None:
    wrong = sum(Crowd(seed, **crowd).is_claimed(**played) for seed in range(RUNS))  # type: ignore[arg-type]
    low, _ = clopper_pearson(wrong, RUNS, 0.999)
    assert low <= TAIL, f"{wrong} of {RUNS} err"


def test_harm_on_top_of_errors_is_seen_in_a_minute() -> None:
    """Ten points more where live fails at 5 %, at 50 requests a second; means alone need about twice as long."""
    seen = sum(Crowd(seed, rate=0.05).is_claimed(harm=0.1, calls=2_000) for seed in range(15))
    assert seen >= 12
