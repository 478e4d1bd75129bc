"""The service curve of one model, learned while it serves: how long a batch of n rows takes.

Pure: told of each batch, asked for a prediction. Two things are learned apart: the shape, one time per bucket of sizes
(1, 2, 3-4, 5-8 ...), slowly; and the pace, how much slower than usual the machine is now, from the last few batches of
whatever size. So a slow second moves all predictions at once and is forgotten at once, and one batch of one size never
decides what that size is worth. Called by `batching`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

PACE_BATCHES = 5
"""The pace is the median of so many: two stalls in a row change nothing, three slow batches are believed."""
NEAR_BATCHES = 8
"""Two sizes are compared where their batches came so close to each other: the pace was about the same."""
OTHERS = 3
"""So many of them must be of other sizes: else a batch tells of the pace, and nothing of its size."""
OWN = 0.1
"""Weight of the newest batch in its bucket, once the bucket has seen `1 / OWN`; before, each weighs the same."""
HOPE = 0.5
"""A size that was seen once may bring so much more than it seemed to; one that was seen k times a k-th of that. So it
is tried again where it might be the best, and a size that is far worse is not."""
FADE = 0.997
"""What is left of having seen a size, after each batch of another: what was true long ago is doubted again."""
OUTLIER = 1.5
"""A batch counts as so many times its prediction at most, or one so many times smaller: one stall is no news."""
GROWTH = 2
"""A batch is so many times the largest seen at most: what lies further out nobody knows."""
GAIN = 1.01
"""A larger size is better where it brings so many times the rows per second: else it only makes rows wait."""
NOISE_BATCHES = 128
"""Batches whose noise is remembered: the fewest that say something about one in a hundred."""
NOISE_FIRST, NOISE_LOOK = 16, 8
"""Noise is believed from so many batches on, and measured anew every so many."""
LOW, HIGH = 0.1, 0.99
"""Quantiles of what a batch takes: as short as one may hope, and as long as one must fear."""
SAFE = 0.9
"""The quantile that a row's deadline must allow for the row to be called safe."""


class ServiceCurve:
    """Batch size to time, in nanoseconds. Costs about 15 us per batch to teach at 64 rows, nothing to ask."""

    def __init__(self, rows_max: int) -> None:
        self.rows_max = rows_max
        self.batches = 0
        """That it learned from."""
        self.pace = 1.0
        """What batches take now, in times of the usual."""
        self.low_ratio, self.safe_ratio, self.high_ratio = 0.9, 1.2, 1.5
        """How many times its prediction a batch takes at `LOW`, `SAFE` and `HIGH`."""
        self._near: deque[tuple[int, float]] = deque(maxlen=NEAR_BATCHES)
        """Of the last batches: the bucket, and what it took in times of the usual."""
        self._noise: deque[float] = deque(maxlen=NOISE_BATCHES)
        self._buckets: list[_Bucket | None] = [None] * ((rows_max - 1).bit_length() + 1)
        self._usual: list[float] = [0.0] * (rows_max + 1)
        self._best: list[int] = [0, *[1] * rows_max]
        self._seen_rows_max = 0

    @property
    def rows_top(self) -> int:
        """The largest size that may be tried now."""
        return min(self.rows_max, max(1, self._seen_rows_max * GROWTH))

    @property
    def best_rows(self) -> int:
        """The size with the most rows per second among those that may be tried now."""
        return self._best[-1]

    def best_of(self, waiting: int) -> int:
        """The size with the most rows per second where so many rows wait."""
        return self._best[min(waiting, self.rows_max)]

    def mean_ns(self, rows: int) -> float:
        """What a batch takes now; 0 before the first one."""
        return self._usual[rows] * self.pace

    def learn(self, rows: int, took_ns: int) -> None:
        """One batch of `rows` took so long."""
        self.batches += 1
        self._seen_rows_max = max(self._seen_rows_max, rows)
        place = (rows - 1).bit_length()
        bucket = self._buckets[place]
        usual = self._usual[rows]
        if bucket is None:
            self._buckets[place] = _Bucket(rows, max(1, took_ns) / self.pace)
        else:
            ratio = max(1, took_ns) / usual
            self._noise.append(ratio / self.pace)
            if not self.batches % NOISE_LOOK:
                self._measure_noise()
            others = [one for of, one in self._near if of != place]
            first = bucket.batches < OTHERS
            if len(others) >= OTHERS or first:
                expected = _middle(others) if others and not first else self.pace
                news = min(max(ratio / expected, 1 / OUTLIER), OUTLIER)
                weight = max(OWN, 1 / (bucket.batches + 1))
                bucket.seen = min(bucket.seen + 1, 1 / OWN)
                moved = bucket.rows + weight * (rows - bucket.rows)
                bucket.time_ns *= news**weight * self._between_ns(moved) / self._between_ns(bucket.rows)
                bucket.rows = moved
            bucket.batches += 1
            self._near.append((place, ratio))
            self.pace = _middle([one for _, one in self._near][-PACE_BATCHES:])
        for one in self._buckets:
            if one is not None and one is not bucket:
                one.seen = max(1.0, one.seen * FADE)
        self._draw()

    def _between_ns(self, rows: float) -> float:
        below = int(rows)
        above = min(below + 1, self.rows_max)
        return self._usual[below] + (rows - below) * (self._usual[above] - self._usual[below])

    def _measure_noise(self) -> None:
        known = sorted(self._noise)
        if len(known) >= NOISE_FIRST:
            self.low_ratio, self.safe_ratio, self.high_ratio = (known[int(q * len(known))] for q in (LOW, SAFE, HIGH))

    def _draw(self) -> None:
        """Computes the prediction of every size anew, and which sizes pay."""
        points = [(bucket.rows, bucket.time_ns) for bucket in self._buckets if bucket is not None]
        if len(points) == 1:
            # Hopeful, so that more rows are tried, and the first try tells: nearly all of it as if fixed.
            rows, time_ns = points[0]
            points = [(0.0, time_ns * 0.9), (rows, time_ns)]
        usual, best, at = self._usual, self._best, 0
        last, top, ladder, rate = len(points) - 2, self.rows_top, 1, 0.0
        for size in range(1, self.rows_max + 1):
            while at < last and size > points[at + 1][0]:
                at += 1
            (rows_0, time_0), (rows_1, time_1) = points[at], points[at + 1]
            slope = max(0.0, (time_1 - time_0) / max(rows_1 - rows_0, 1e-9))
            usual[size] = took = max(time_0 + slope * (size - rows_0), time_0 / 4, 1.0)
            if size <= top:
                bucket = self._buckets[(size - 1).bit_length()]
                hoped = size / took * (1 + HOPE / bucket.seen if bucket is not None else 1 + HOPE)
                if (not size & (size - 1) or size == self.rows_max) and hoped > GAIN * rate:
                    ladder, rate = size, hoped
                # All who wait, unless fewer bring more: who is left behind needs a batch of its own.
                best[size] = size if GAIN * hoped >= rate else ladder
        best[ladder + 1 :] = [ladder] * (self.rows_max - ladder)


class _Bucket:
    __slots__ = ("batches", "rows", "seen", "time_ns")

    def __init__(self, rows: int, time_ns: float) -> None:
        self.rows = float(rows)
        """The mean of its sizes."""
        self.time_ns = time_ns
        """Of so many rows, at the usual pace."""
        self.batches = 1
        self.seen = 1.0
        """Batches that told something about its size, the older ones fading."""


def _middle(of: Sequence[float]) -> float:
    return sorted(of)[len(of) // 2]
