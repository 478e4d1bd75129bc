"""One arm of a comparison: what is needed of its units for a mean and its error, kept up to date.

Pure Python, one pass, constant time per observation. A unit's weight grows with its observations n as
n / (1 + (n - 1) / CALLS_MOST), so that nobody counts for more than `CALLS_MOST` of them: with a few heavy users the
mean of all observations would be theirs alone. That is the weight of least variance where observations of one unit
correlate by 1 / CALLS_MOST (Donner and Klar, Design and Analysis of Cluster Randomization Trials (2000), ch. 6).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

CALLS_MOST = 20
"""Observations that a unit counts for at most."""
RENEWED_AFTER = 200_000
"""Observations after which an arm's sums are made anew from its units, so that rounding does not add up."""
LOST_BEYOND = 1e6
"""An observation that is taken back, and was so many times what the others are, took their last digits with it."""


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

    def add(self, place: int, value: float) -> None:
        """One observation of the unit at `place`."""
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

    def history(self, place: int) -> tuple[int, float]:
        """How many observations a unit has, and their sum."""
        return (self._counts[place], self._sums[place]) if place < len(self._counts) else (0, 0.0)

    def histories(self, most: int) -> Iterator[tuple[int, float]]:
        """Of the units at the first so many places that have any."""
        return (one for one in zip(self._counts[:most], self._sums[:most], strict=True) if one[0])

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
