"""Two arms side by side, looked at as often as one likes: is the candidate's mean higher than the live one's?

Pure Python, one pass, constant time per observation and per look. Observations belong to units (users), which are not
independent within; a unit is in one arm for good. The evidence is capital of bets against "no harm beyond the margin":
it starts at 1, and reaches 1 / a with a chance of at most a where there is no harm, however often one looks (Ville,
1939). Two bets are made side by side, and their capital is averaged:

Means. The difference of the arms' means with a standard error from the units (Liang and Zeger, Biometrika 73 (1986),
13-22), and the normal mixture over half-normal effects as capital: valid at every look for many units, by the
time-uniform central limit theorem of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (Annals of Statistics 52 (2024),
2613-2640); the one-sided mixture is eq. 3.7 of Howard, Ramdas, McAuliffe and Sekhon (Annals of Statistics 49 (2021),
1055-1080). For few units it is made careful: the ratio is taken for a Student's t whose degrees of freedom are
Satterthwaite's for the effective units, and an arm's error is never below what the other arm's spread gives it, so that
an arm in which nothing happened yet is not taken for one in which nothing can happen.

Coins. Of something that is rare (yes or no), each unit to which it happens at least once is one toss of the coin that
put it into its arm: where the arm makes no difference it shows the candidate with the chance `share`, exactly, whatever
units do otherwise. The capital is the mean of likelihood ratios over fixed rate ratios (Robbins, 1970). It needs no
approximation, so a handful of new failures suffices; once most units are hit it says nothing more. No margin fits it.

A unit's weight grows with its observations n as n / (1 + (n - 1) / CALLS_MOST), so that nobody counts for more than
`CALLS_MOST` of them: with a few heavy users the mean of all observations would be theirs alone. That is the weight of
least variance where observations of one unit correlate by 1 / CALLS_MOST (Donner and Klar, Design and Analysis of
Cluster Randomization Trials (2000), ch. 6).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from statistics import NormalDist
from zlib import crc32

import msgspec

CALLS_MOST = 20
"""Observations that a unit counts for at most."""
UNITS_MAX = 50_000
"""Units of an arm that are told apart; later ones share `BUCKETS` buckets. With all of them an arm takes 17 bytes a
unit and comparison."""
BUCKETS = 4_096
"""Enough that what shares one is nearly as good as one unit."""
EXPECTED_CALLS = 20.0
"""Where the mixture over effects is sharpest: some twelve times as many effective observations (Howard et al., 3.6)."""
EFFECTIVE_UNITS_MIN = 4.0
"""Of each arm; below it nothing is known of how units differ."""
RATE_RATIOS = (1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
"""How many times as often something may happen to the candidate's units; each has the same weight."""
RENEWED_AFTER = 200_000
"""Observations after which an arm's sums are made anew from its units, so that rounding does not add up."""
LOST_BEYOND = 1e6
"""An observation that is taken back, and was so many times what the others are, took their last digits with it."""
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
    """Mean, in which a unit counts for at most `CALLS_MOST` observations; 0 where there is none."""
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


class Arm:
    """One arm's units: what is needed of them for a mean and its error, kept up to date."""

    __slots__ = (
        "_counts",
        "_hits",
        "_since",
        "_sums",
        "calls",
        "hits",
        "units",
        "weights",
        "weights_each",
        "weights_mean",
        "weights_sq",
        "weights_sq_mean",
        "weights_sq_mean_sq",
    )  # fmt: skip

    def __init__(self) -> None:
        self._counts = array("q")
        self._sums = array("d")
        self._hits = bytearray()
        self.units = self.calls = self.hits = 0
        self._zero()

    def add(self, place: int, value: float) -> bool:
        """One observation of the unit at `place`; whether it is the unit's first that is not 0."""
        if place >= len(self._counts):
            more = place + 1 - len(self._counts)
            self._counts.extend([0] * more)
            self._sums.extend([0.0] * more)
            self._hits.extend(bytes(more))
        count, total = self._counts[place], self._sums[place]
        if count:
            self._weigh(count, total, -1.0)
        else:
            self.units += 1
        self._counts[place], self._sums[place] = count + 1, total + value
        self._weigh(count + 1, total + value, 1.0)
        self.calls += 1
        self._since += 1
        if self._since >= RENEWED_AFTER:
            self._renew()
        if value and not self._hits[place]:
            self._hits[place] = 1
            self.hits += 1
            return True
        return False

    def replace(self, place: int, before: float, value: float) -> None:
        """An observation turned out to be another."""
        count, total = self._counts[place], self._sums[place]
        most = self.weights_sq_mean_sq
        self._weigh(count, total, -1.0)
        self._sums[place] = total + value - before
        self._weigh(count, total + value - before, 1.0)
        if most > LOST_BEYOND * abs(self.weights_sq_mean_sq):
            self._since = RENEWED_AFTER

    def settle(self) -> None:
        """Before it is looked at: sums that lost their digits are made anew, at about 0.5 us a unit."""
        if self._since >= RENEWED_AFTER:
            self._renew()

    @property
    def mean(self) -> float:
        """Of all units, weighted."""
        return self.weights_mean / self.weights if self.weights else 0.0

    @property
    def units_effective(self) -> float:
        """How many units of the same weight would tell as much."""
        return self.weights**2 / self.weights_sq if self.weights_sq > 0 else 0.0

    @property
    def calls_effective(self) -> float:
        """How many independent observations would tell as much, if those of a unit were independent too."""
        return self.weights**2 / self.weights_each if self.weights_each > 0 else 0.0

    def spread(self, mean: float) -> float:
        """Sum of (weight x distance of the unit's own mean from `mean`), squared."""
        found = self.weights_sq_mean_sq - 2 * mean * self.weights_sq_mean + mean * mean * self.weights_sq
        return max(found, 0.0)

    def _weigh(self, count: int, total: float, sign: float) -> None:
        weight = count / (1 + (count - 1) / CALLS_MOST)
        mean, square = total / count, sign * weight * weight
        self.weights += sign * weight
        self.weights_mean += sign * weight * mean
        self.weights_sq += square
        self.weights_sq_mean += square * mean
        self.weights_sq_mean_sq += square * mean * mean
        self.weights_each += square / count

    def _zero(self) -> None:
        self.weights = self.weights_mean = self.weights_each = 0.0
        self.weights_sq = self.weights_sq_mean = self.weights_sq_mean_sq = 0.0
        self._since = 0

    def _renew(self) -> None:
        self._zero()
        for count, total in zip(self._counts, self._sums, strict=True):
            if count:
                self._weigh(count, total, 1.0)


class TwoArms:
    """A comparison that grows with each observation. Higher values are the harm."""

    def __init__(self, *, share: float = 0.0) -> None:
        """share: of the units that a coin gives to the candidate; 0 where there is no coin, or values are no yes or
        no: then only means are compared."""
        self.live = Arm()
        self.candidate = Arm()
        self._coins = Coins(share) if 0 < share < 1 else None

    def add(self, *, candidate: bool, place: int, value: float) -> None:
        """One observation. place: of the unit within its arm, as `Units` tells it."""
        arm = self.candidate if candidate else self.live
        if arm.add(place, value) and self._coins is not None and place < UNITS_MAX:
            self._coins.toss(candidate=candidate)

    def replace(self, *, candidate: bool, place: int, before: float, value: float) -> None:
        """An observation turned out to be another, such as an Outcome that was corrected."""
        (self.candidate if candidate else self.live).replace(place, before, value)

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
            evidence = log_mean((evidence, self._coins.log_capital))
        return Comparison(
            units_live=live.units, units_candidate=candidate.units, calls_live=live.calls,
            calls_candidate=candidate.calls, hit_live=live.hits, hit_candidate=candidate.hits, live=live.mean,
            candidate=candidate.mean, difference=difference, low=low, high=high, log_evidence=evidence,
        )  # fmt: skip

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


class Coins:
    """Capital against "each toss shows the candidate with the chance `share`, or a smaller one"."""

    __slots__ = ("_candidate", "_live", "_logs")

    def __init__(self, share: float) -> None:
        chances = [share * ratio / (share * ratio + 1 - share) for ratio in RATE_RATIOS]
        self._candidate = [math.log(chance / share) for chance in chances]
        self._live = [math.log((1 - chance) / (1 - share)) for chance in chances]
        self._logs = [0.0] * len(chances)

    def toss(self, *, candidate: bool) -> None:
        steps = self._candidate if candidate else self._live
        self._logs = [log + step for log, step in zip(self._logs, steps, strict=True)]

    @property
    def log_capital(self) -> float:
        return log_mean(self._logs)


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


def log_mean(logs: Sequence[float]) -> float:
    """Logarithm of the mean of capitals that are given by their logarithms."""
    most = max(logs)
    return most + math.log(math.fsum(math.exp(one - most) for one in logs) / len(logs))


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
