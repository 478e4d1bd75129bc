"""Two arms side by side, looked at as often as one likes: is the candidate's mean higher than the live one's?

Pure Python, one pass, constant time per observation. Observations belong to units (users), which are not independent
within; a unit is in one arm for good. The evidence is capital of bets against "no harm beyond the margin": it starts at
1, and reaches 1 / a with a chance of at most a where there is no harm, however often one looks (Ville, 1939). Two bets
are made side by side:

Means. The difference of the arms' means with a standard error from the units (Liang and Zeger, Biometrika 73 (1986),
13-22), and the normal mixture over half-normal effects as capital: valid at every look for many units, by the
time-uniform central limit theorem of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (Annals of Statistics 52 (2024),
2613-2640); the one-sided mixture is eq. 3.7 of Howard, Ramdas, McAuliffe and Sekhon (Annals of Statistics 49 (2021),
1055-1080). For few units it is made careful: the ratio is taken for a Student's t whose degrees of freedom are
Satterthwaite's for the effective units, and an arm's error is never below what the other arm's spread gives it, so that
an arm in which nothing happened yet is not taken for one in which nothing can happen.

Coins. Of what happens or not, where a coin put each unit into its arm and no margin is accepted: `coins.py` bets on
each unit's arm with its whole history. It needs no normal approximation, so a handful of new failures suffices, and it
has most of the capital.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from zlib import crc32

import msgspec

from drivetrain.statistics.arms import Arm
from drivetrain.statistics.coins import UNITS_MAX, Coins

BUCKETS = 4_096
"""Enough that what shares one is nearly as good as one unit."""
EXPECTED_CALLS = 20.0
"""Where the mixture over effects is sharpest: some twelve times as many effective observations (Howard et al., 3.6)."""
EFFECTIVE_UNITS_MIN = 4.0
"""Of each arm; below it nothing is known of how units differ."""
MEANS_PART = 0.1
"""Of the capital where there is a coin; the rest is bet on units' arms, which sees the same harm earlier."""
_NORMAL = NormalDist()
_LOG_MAX = 690.0


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What two arms show at one look."""

    units_live: int
    units_candidate: int
    calls_live: int
    calls_candidate: int
    hit_live: int
    """Units with any observation that is not 0."""
    hit_candidate: int
    live: float
    """Mean, in which a unit counts for at most `arms.CALLS_MOST` observations; 0 where there is none."""
    candidate: float
    difference: float
    """Of the candidate to the live arm."""
    low: float | None
    high: float | None
    """Hold the difference at every look at once, with the level that was asked for; None where too little was seen."""
    log_evidence: float
    """Logarithm of the capital against "no harm beyond the margin"."""

    @property
    def is_seen(self) -> bool:
        """Whether both arms have anything."""
        return self.calls_live > 0 and self.calls_candidate > 0


class TwoArms:
    """A comparison that grows with each observation. Higher values are the harm."""

    def __init__(self, *, share: float = 0.0) -> None:
        """share: of the units that a coin gives to the candidate; 0 where there is no coin, or values are no yes (1)
        or no (0): then only means are compared."""
        self.live = Arm()
        self.candidate = Arm()
        self._coins = Coins(share) if 0 < share < 1 else None

    def add(self, *, candidate: bool, place: int, value: float) -> None:
        """One observation. place: of the unit within its arm, as `Units` tells it."""
        arm = self._left(candidate, place)
        arm.add(place, value)

    def replace(self, *, candidate: bool, place: int, before: float, value: float) -> None:
        """An observation turned out to be another, such as an Outcome that was corrected."""
        self._left(candidate, place).replace(place, before, value)

    def look(self, *, margin: float = 0.0, relative: bool = False, tail: float = 0.05) -> Comparison:
        """What is seen now. margin: the harm that is accepted; relative: as a share of the live arm's mean.

        tail: the chance that the evidence may err with; the interval errs on either side with it.
        """
        live, candidate = self.live, self.candidate
        live.settle()
        candidate.settle()
        scale = 1 + margin if relative else 1.0
        beyond = candidate.mean - scale * live.mean - (0.0 if relative else margin)
        error, freedom = self._error(scale)
        plain_error, plain_freedom = self._error(1.0)
        units = min(live.units_effective, candidate.units_effective)
        difference, evidence = candidate.mean - live.mean, 0.0
        low = high = None
        if units >= EFFECTIVE_UNITS_MIN and plain_error > 0:
            calls = 1 / (1 / live.calls_effective + 1 / candidate.calls_effective)
            half = plain_error * _as_t(boundary(calls, tail), plain_freedom)
            low, high = difference - half, difference + half
            evidence = log_capital(_as_normal(beyond / error, freedom), calls)
        if self._coins is not None and margin == 0:
            self._coins.settle(live, candidate)
            evidence = _log_sum(math.log(MEANS_PART) + evidence, math.log1p(-MEANS_PART) + self._coins.log_capital)
        return Comparison(
            units_live=live.units, units_candidate=candidate.units, calls_live=live.calls,
            calls_candidate=candidate.calls, hit_live=live.hits, hit_candidate=candidate.hits, live=live.mean,
            candidate=candidate.mean, difference=difference, low=low, high=high, log_evidence=evidence,
        )  # fmt: skip

    def _left(self, candidate: bool, place: int) -> Arm:
        arm = self.candidate if candidate else self.live
        if self._coins is not None and place < UNITS_MAX:
            calls, hits = arm.history(place)
            self._coins.leave(candidate=candidate, place=place, calls=calls, hits=hits)
        return arm

    def _error(self, scale: float) -> tuple[float, float]:
        """Standard error of candidate - scale x live, and its degrees of freedom (Satterthwaite, 1946)."""
        live, candidate = self.live, self.candidate
        if not live.weights or not candidate.weights:
            return 0.0, 1.0
        within = live.spread(live.mean) + candidate.spread(candidate.mean)
        between = (candidate.mean - live.mean) ** 2
        pooled = within / (live.weights_sq + candidate.weights_sq)
        # As if one unit of each arm had been like the other arm's: where nothing varies, one more could still differ.
        pooled += 2 * between / (live.units_effective + candidate.units_effective)
        parts = []
        for arm, factor in ((live, scale), (candidate, 1.0)):
            units = max(arm.units_effective, 1.0)
            own = arm.spread(arm.mean) / arm.weights**2 * units / max(units - 1, 1.0)
            parts.append((factor * factor * max(own, pooled / units), max(units - 1, 1.0)))
        variance = sum(one for one, _ in parts)
        below = sum(one * one / freedom for one, freedom in parts)
        return math.sqrt(variance), variance * variance / below if below > 0 else 1.0


class Units:
    """The places of an arm's units: 0, 1, 2 ... as they come, and buckets behind the last one that is told apart."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def place(self, unit: str) -> int:
        """Where a unit stands, the same each time."""
        found = self._places.get(unit)
        if found is not None:
            return found
        if len(self._places) < UNITS_MAX:
            return self._places.setdefault(unit, len(self._places))
        return UNITS_MAX + _bucket(unit)

    def __len__(self) -> int:
        return len(self._places)


def log_capital(z: float, calls: float) -> float:
    """Logarithm of the one-sided normal mixture at a standardised difference after so many effective observations."""
    if calls <= 0:
        return 0.0
    shrunk = calls / (calls + EXPECTED_CALLS)
    chance = _NORMAL.cdf(z * math.sqrt(shrunk))
    if chance <= 0:
        return -_LOG_MAX
    return max(math.log(2 * chance) + 0.5 * math.log(1 - shrunk) + 0.5 * z * z * shrunk, -_LOG_MAX)


def boundary(calls: float, tail: float) -> float:
    """How many standard errors to each side hold the truth at every look, erring with `tail` on either.

    Source: the two-sided normal mixture, Waudby-Smith et al. (2024), eq. 13.
    """
    above = (calls + EXPECTED_CALLS) / EXPECTED_CALLS
    return math.sqrt((1 + EXPECTED_CALLS / calls) * (math.log(above) - 2 * math.log(min(2 * tail, 1.0))))


def _log_sum(one: float, other: float) -> float:
    return max(one, other) + math.log1p(math.exp(-abs(one - other)))


def _as_normal(t: float, freedom: float) -> float:
    """The normal value that is as rare as a Student's t.

    Source: Wallace, Bounds on normal approximations to Student's and the chi-square distributions, Annals of
    Mathematical Statistics 30 (1959), 1121-1130.
    """
    size = math.sqrt(freedom * math.log1p(t * t / freedom)) * (8 * freedom + 1) / (8 * freedom + 3)
    return math.copysign(size, t)


def _as_t(z: float, freedom: float) -> float:
    """The inverse of `_as_normal`."""
    scaled = (z * (8 * freedom + 3) / (8 * freedom + 1)) ** 2 / freedom
    return math.sqrt(freedom * math.expm1(min(scaled, _LOG_MAX)))


def _bucket(unit: str) -> int:
    return crc32(unit.encode()) % BUCKETS
