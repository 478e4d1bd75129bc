"""The service curve of one model, learned while it serves: how long a batch of n rows takes, usually and at worst.

Pure: told of each batch, asked for a prediction. Sizes fall into buckets (1, 2, 3-4, 5-8 ...); each knows the mean of
its sizes and times, newer batches weighing more. Between buckets the curve is a straight line, and beyond them an
affine one. A batch moves all buckets a little by how much slower or faster it was than predicted, so that a machine
which slows down is noticed for sizes that were not seen since. Called by `batching`.
"""

from __future__ import annotations

from collections import deque

OWN = 0.15
"""Weight of the newest batch in its own bucket: half of what is known is about five batches old."""
OTHERS = 0.03
"""How far it moves the others: enough to follow a slower machine within some thirty batches."""
HOPE = 0.0003
"""Larger sizes are thought that much faster after each batch that left rows behind: none is ruled out for good."""
OUTLIER, FAST = 1.5, 4.0
"""A batch counts as so many times its prediction at most, and as one `FAST`-th of it at least: one stall is no news,
and the next such batch of that size is believed; nothing is faster by chance."""
BELIEVED = 0.5
"""Weight of a batch that is the second one in a row to take so much longer."""
PLANNED = 0.8
"""The quantile of times that a batch is planned with."""
HIGH = 0.99
"""The quantile that is told as the worst."""
RATIOS = 128
"""Batches whose noise is remembered: the fewest that say something about one in a hundred."""
FIRST, LOOK = 16, 8
"""Noise is believed from so many batches on, and measured anew every so many."""
GROWTH = 2
"""A batch is so many times the largest seen at most: what lies further out nobody knows."""


class ServiceCurve:
    """Batch size to time, in nanoseconds. Costs about 40 us per batch to teach at 64 rows, nothing to ask."""

    def __init__(self, rows_max: int) -> None:
        self.rows_max = rows_max
        self.batches = 0
        """That it learned from."""
        self.planned_ratio = self.high_ratio = 1.2
        """How many times its mean a batch takes at `PLANNED` and at `HIGH`."""
        self._ratios: deque[float] = deque(maxlen=RATIOS)
        self._buckets: list[_Bucket | None] = [None] * ((rows_max - 1).bit_length() + 1)
        self._seen_rows_max = 0
        self._means: list[float] = [0.0] * (rows_max + 1)
        self.best_rows = 1
        """The size with the most rows per second among those that may be tried now."""

    @property
    def rows_top(self) -> int:
        """The largest size that may be tried now."""
        return min(self.rows_max, max(1, self._seen_rows_max * GROWTH))

    def mean_ns(self, rows: int) -> float:
        """What a batch usually takes; 0 before the first one."""
        return self._means[rows]

    def planned_ns(self, rows: int) -> float:
        """What a batch takes where things go badly, at `PLANNED`."""
        return self._means[rows] * self.planned_ratio

    def high_ns(self, rows: int) -> float:
        """What a batch takes at worst, at `HIGH`."""
        return self._means[rows] * self.high_ratio

    def learn(self, rows: int, took_ns: int, *, left: bool = False) -> None:
        """One batch of `rows` took so long. left: more rows waited than it took, so a larger one was not dared."""
        self.batches += 1
        self._seen_rows_max = max(self._seen_rows_max, rows)
        at = (rows - 1).bit_length()
        bucket = self._buckets[at]
        predicted = self._means[rows]
        believed = False
        if predicted:
            ratio = took_ns / predicted
            self._ratios.append(ratio)
            if not self.batches % LOOK:
                self._measure_noise()
            believed = bucket is not None and bucket.surprised and ratio > OUTLIER
            if bucket is not None:
                bucket.surprised = ratio > OUTLIER
            ratio = max(ratio, 1 / FAST) if believed else min(max(ratio, 1 / FAST), OUTLIER)
            for place, other in enumerate(self._buckets):
                if other is not None and place != at:
                    other.time_ns *= 1 + OTHERS * (min(ratio, OUTLIER) - 1) - (HOPE if left and place > at else 0.0)
            took_ns = int(predicted * ratio)
        if bucket is None:
            # Half of its surprise: were the first batch of a size a stall, that size would not be tried again.
            self._buckets[at] = _Bucket(rows, int((took_ns + predicted) / 2) if predicted else took_ns)
        else:
            bucket.learn(rows, took_ns, BELIEVED if believed else OWN)
        self._draw()

    def _measure_noise(self) -> None:
        known = sorted(self._ratios)
        if len(known) >= FIRST:
            self.planned_ratio = known[int(PLANNED * len(known))]
            self.high_ratio = known[int(HIGH * len(known))]

    def _draw(self) -> None:
        """Computes the prediction of every size anew."""
        known = [bucket for bucket in self._buckets if bucket is not None]
        points = [(bucket.rows, bucket.time_ns) for bucket in known]
        if len(points) == 1:
            # Hopeful, so that more rows are tried, and the first try tells: nearly all of it as if fixed.
            (rows, time_ns) = points[0]
            points = [(0.0, time_ns * 0.9), (rows, time_ns)]
        means, at = self._means, 0
        highest = 0.0
        for size in range(1, self.rows_max + 1):
            while at < len(points) - 2 and size > points[at + 1][0]:
                at += 1
            (rows_0, time_0), (rows_1, time_1) = points[at], points[at + 1]
            slope = max(0.0, (time_1 - time_0) / max(rows_1 - rows_0, 1e-9))
            # No size takes less than a smaller one: what looks like that is noise.
            highest = max(highest, time_0 + slope * (size - rows_0), time_0 / 4)
            means[size] = highest
        self.best_rows = max(range(1, self.rows_top + 1), key=lambda size: size / means[size])


class _Bucket:
    __slots__ = ("rows", "surprised", "time_ns")

    def __init__(self, rows: int, time_ns: int) -> None:
        self.rows = float(rows)
        self.time_ns = float(time_ns)
        self.surprised = False
        """Whether its last batch took far longer than predicted."""

    def learn(self, rows: int, time_ns: int, weight: float) -> None:
        self.rows += weight * (rows - self.rows)
        self.time_ns += weight * (time_ns - self.time_ns)
