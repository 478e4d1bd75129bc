"""Two arms compared at every look: how often that errs where units are heavy and values wild, and what it sees."""

from __future__ import annotations

import math
import random
from itertools import accumulate

import pytest

from drivetrain.statistics import arms as arms_module
from drivetrain.statistics import two_arms
from drivetrain.statistics.arms import CALLS_MOST
from drivetrain.statistics.intervals import clopper_pearson
from drivetrain.statistics.two_arms import TwoArms, Units, boundary, log_capital
from support.seeds import SEED

SHARE = 0.2
TAIL = 0.05
NEEDED = -math.log(TAIL)
LOOK_EVERY = 40
RUNS, CALLS = 50, 1_500


@pytest.fixture(autouse=True)
def _seed() -> None:
    print(f"seed {SEED}")


class People:
    """Users by Zipf's law with rates and sizes of their own; a coin gives each to an arm."""

    def __init__(self, seed: int, count: int = 400) -> None:
        self.draw = random.Random(SEED * 10_007 + seed)
        self.edges = list(accumulate(1 / rank for rank in range(1, count + 1)))
        self.candidate = [self.draw.random() < SHARE for _ in range(count)]
        self.often = [self.draw.gammavariate(1.0, 1.0) for _ in range(count)]
        self.size = [math.exp(self.draw.gauss(0.0, 0.5)) for _ in range(count)]

    def next(self) -> int:
        return self.draw.choices(range(len(self.edges)), cum_weights=self.edges)[0]

    def value(self, user: int, kind: str, harm: float) -> float:
        worse = harm if self.candidate[user] else 0.0
        if kind == "cost":
            return self.size[user] * self.draw.paretovariate(1.8) * (1 + worse)
        happens = float(self.draw.random() < min(float(kind.lstrip("-")) * self.often[user], 0.95) + worse)
        return -happens if kind[0] == "-" else happens


def claimed(seed: int, kind: str, *, coin: bool, harm: float = 0.0, calls: int = CALLS) -> bool:
    """Whether harm is ever claimed, looked at after every `LOOK_EVERY` Calls."""
    people = People(seed)
    arms = TwoArms(share=SHARE if coin else 0.0)
    for number in range(1, calls + 1):
        user = people.next()
        arms.add(candidate=people.candidate[user], place=user, value=people.value(user, kind, harm))
        if number % LOOK_EVERY == 0 and arms.look(tail=TAIL).log_evidence >= NEEDED:
            return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "coin"),
    [
        ("0.005", True),
        ("0.05", True),
        ("0.5", True),
        ("0.05", False),
        ("-0.02", False),
        ("-0.3", False),
        ("cost", False),
    ],
)
def test_a_candidate_that_is_no_worse_is_seldom_called_worse(kind: str, coin: bool) -> None:
    wrong = sum(claimed(seed, kind, coin=coin) for seed in range(RUNS))
    low, _ = clopper_pearson(wrong, RUNS, 0.999)
    assert low <= TAIL, f"{wrong} of {RUNS} err"


@pytest.mark.parametrize(("kind", "coin", "harm"), [("0.01", True, 0.1), ("0.05", False, 0.2), ("cost", False, 2.0)])
def test_harm_is_seen(kind: str, coin: bool, harm: float) -> None:
    seen = sum(claimed(seed, kind, coin=coin, harm=harm) for seed in range(10))
    assert seen >= 7


def test_a_handful_of_new_failures_suffices() -> None:
    arms = TwoArms(share=SHARE)
    for user in range(200):
        for other in range(4):
            arms.add(candidate=False, place=4 * user + other, value=0.0)
        arms.add(candidate=True, place=user, value=float(user < 6))
    assert arms.look(tail=TAIL).log_evidence >= NEEDED
    one = TwoArms(share=SHARE)
    for _ in range(20):
        for user in range(200):
            for other in range(4):
                one.add(candidate=False, place=4 * user + other, value=0.0)
            one.add(candidate=True, place=user, value=float(user == 0))
    assert one.look(tail=TAIL).log_evidence < NEEDED  # one user who fails all the time is one user


def test_the_mixture_is_the_integral_over_half_normal_effects() -> None:
    for z, calls in ((0.0, 10.0), (2.5, 40.0), (4.0, 500.0), (-1.0, 100.0)):
        spread = 1 / math.sqrt(two_arms.EXPECTED_CALLS)
        steps = [(number + 0.5) * spread * 10 / 5_000 for number in range(5_000)]
        size = math.sqrt(2 / math.pi) / spread
        mixed = (steps[1] - steps[0]) * sum(
            size * math.exp(-0.5 * (effect / spread) ** 2 + effect * z * math.sqrt(calls) - effect**2 * calls / 2)
            for effect in steps
        )
        assert log_capital(z, calls) == pytest.approx(math.log(mixed), abs=1e-4)


def test_the_boundary_is_where_the_two_sided_mixture_has_enough() -> None:
    for calls in (5.0, 300.0):
        z = boundary(calls, TAIL)
        shrunk = calls / (calls + two_arms.EXPECTED_CALLS)
        assert 0.5 * math.log(1 - shrunk) + 0.5 * z * z * shrunk == pytest.approx(-math.log(2 * TAIL))


def test_sums_kept_in_one_pass_are_those_of_all_units() -> None:
    draw = random.Random(SEED)
    arms, units = TwoArms(), [{}, {}]  # type: ignore[var-annotated]
    for _ in range(3_000):
        candidate, place, value = draw.random() < 0.3, int(draw.expovariate(0.05)), draw.lognormvariate(0.0, 1.0)
        arms.add(candidate=candidate, place=place, value=value)
        units[candidate].setdefault(place, []).append(value)
    for arm, own in ((arms.live, units[0]), (arms.candidate, units[1])):
        weighed = {place: len(found) / (1 + (len(found) - 1) / CALLS_MOST) for place, found in own.items()}
        total = sum(weighed.values())
        mean = sum(weighed[place] * sum(found) / len(found) for place, found in own.items()) / total
        spread = sum((weighed[place] * (sum(found) / len(found) - mean)) ** 2 for place, found in own.items())
        assert arm.mean == pytest.approx(mean)
        assert arm.spread(mean) == pytest.approx(spread, rel=1e-6)
        assert arm.units == len(own)
        assert arm.units_effective == pytest.approx(total**2 / sum(one * one for one in weighed.values()))
        assert max(weighed.values()) < CALLS_MOST


def test_a_correction_is_as_if_the_value_had_come_so() -> None:
    draw = random.Random(SEED)
    first, second = TwoArms(), TwoArms()
    for place in range(200):
        wrong, right = draw.random(), draw.random()
        first.add(candidate=place % 2 == 0, place=place // 4, value=wrong)
        first.replace(candidate=place % 2 == 0, place=place // 4, before=wrong, value=right)
        second.add(candidate=place % 2 == 0, place=place // 4, value=right)
    one, other = first.look(), second.look()
    assert (one.live, one.candidate, one.low) == pytest.approx((other.live, other.candidate, other.low))


def test_rounding_does_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arms_module, "RENEWED_AFTER", 1_000)
    arms = TwoArms()
    for number in range(5_000):
        arms.add(candidate=False, place=number % 50, value=1e12 if number == 7 else 1.0)
        if number == 7:
            arms.replace(candidate=False, place=7, before=1e12, value=1.0)
    assert arms.live.spread(arms.live.mean) == pytest.approx(0.0, abs=1e-6)


def test_units_beyond_the_limit_share_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_arms, "UNITS_MAX", 10)
    units = Units()
    places = [units.place(f"user-{number}") for number in range(100_000)]
    assert places[:10] == list(range(10))
    assert len(units) == 10
    assert max(places) < 10 + two_arms.BUCKETS
    assert units.place("user-77777") == places[77_777]


def test_too_little_tells_nothing() -> None:
    arms = TwoArms(share=SHARE)
    assert not arms.look().is_seen
    arms.add(candidate=True, place=0, value=1.0)
    found = arms.look()
    assert (found.low, found.high) == (None, None)
    assert found.log_evidence < NEEDED
    same = TwoArms()
    for place in range(100):
        same.add(candidate=True, place=place, value=3.0)
        same.add(candidate=False, place=place, value=3.0)
    assert same.look().log_evidence < NEEDED


def test_a_relative_margin_is_of_the_live_mean() -> None:
    arms = TwoArms()
    for place in range(400):
        arms.add(candidate=True, place=place, value=115.0 + place % 7)
        arms.add(candidate=False, place=place, value=100.0 + place % 7)
    assert arms.look(margin=0.1, relative=True, tail=TAIL).log_evidence >= NEEDED
    assert arms.look(margin=0.2, relative=True, tail=TAIL).log_evidence < NEEDED
    assert arms.look(margin=14.0, tail=TAIL).log_evidence >= NEEDED
    assert arms.look(margin=16.0, tail=TAIL).log_evidence < NEEDED
