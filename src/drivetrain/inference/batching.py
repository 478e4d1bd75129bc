"""Which rows of one model are scored next, together, and which are refused: so that as many as can be are in time.

Pure: told of rows, of time and of how long batches took; it keeps no clock and starts nothing. Owns one model's queue
in a model worker. Every row has a deadline; the service curve tells when a batch would end.

- The worker never idles while a row waits, and the earliest deadline goes first.
- A batch is of the size that brings the most rows per second among those that wait.
- Only where that makes a row late, other plans are compared over the present queue: a smaller batch first, that saves
  it, or a batch without it. The plan that brings more rows in time is taken; who is left out of it is refused.
- Else only those are refused who would be late even if they were served next, alone; and those who come to a queue
  that cannot reach them in time even at its best.

Called by `worker`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import attrgetter
from typing import Protocol

import msgspec

from drivetrain.inference.curve import ServiceCurve

QUEUE_ROWS_MAX = 4096
"""Rows of one model that may wait: more are refused at once, whatever their deadlines."""
QUEUE_BYTES_MAX = 64 * 1024 * 1024
"""Of all rows of one model that wait: a few thousand large ones would be gigabytes."""
PLAYED_BATCHES_MAX = 12
"""Of one plan that is played through, beside those in which nobody is in time: so it costs at most about 50 us."""
TIME_PRICE = 0.5
"""What the worker's time is worth, in rows in time that its best size brings meanwhile: half of it is of use to rows
that are yet to come. Higher, and rows are given up that could be saved; lower, and saving a few makes many late."""
ROOM = 3
"""Where so many batches end before a row's deadline, the row is in no danger: one runs, and two come before its own."""
ARRIVAL_MARGIN = 1.25
"""A row is refused on arrival where the queue before it takes so many times what is left to it, at the least."""
SILENCE = 4
"""Where no batch ran for so many times what a row was given, what was learned may be long past: a row is tried."""
_deadline = attrgetter("deadline_ns")


class Waiting(Protocol):
    """One row in the queue, as far as batching looks at it."""

    arrived_ns: int
    deadline_ns: int
    """When its answer is of no more use."""
    size_bytes: int
    over: bool
    """Nobody waits for it any more."""


class Turn(msgspec.Struct):
    """What to do now."""

    batch: Sequence[Waiting] = ()
    """Score these; empty: nothing now."""
    refused: Sequence[Waiting] = ()
    """These cannot be in time."""
    again_ns: int = 0
    """Ask again then, or when a row comes; 0: only when a row comes."""


class Batcher:
    """One model's queue. At most one batch runs at a time."""

    def __init__(
        self, curve: ServiceCurve, *, queue_rows_max: int = QUEUE_ROWS_MAX, queue_bytes_max: int = QUEUE_BYTES_MAX
    ) -> None:
        self.curve = curve
        self._queue: list[Waiting] = []
        """Earliest deadline first."""
        self._queue_rows_max = queue_rows_max
        self._queue_bytes_max = queue_bytes_max
        self._bytes = 0
        """Of the rows in the queue."""
        self._busy_until_ns = 0
        """When the running batch is expected to end; 0: none runs."""
        self._began_ns = self._ended_ns = 0
        """When the last batch did; 0: there was none."""

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def earliest_ns(self) -> int:
        """The earliest deadline of who waits; 0 where nobody does."""
        return self._queue[0].deadline_ns if self._queue else 0

    def add(self, row: Waiting, now_ns: int) -> bool:
        """Whether it may wait; else it cannot be in time, or too many wait, or too large ones."""
        queue = self._queue
        if len(queue) >= self._queue_rows_max or self._bytes + row.size_bytes > self._queue_bytes_max:
            return False
        ahead = bisect_right(queue, row.deadline_ns, key=_deadline)
        if ahead > self.curve.best_rows:
            hoped_ns = self.predicted_ns(ahead, now_ns) * self.curve.low_ratio / max(1.0, self.curve.pace)
            if hoped_ns > ARRIVAL_MARGIN * (row.deadline_ns - now_ns):
                return False
        queue.insert(ahead, row)
        self._bytes += row.size_bytes
        return True

    def predicted_ns(self, ahead: int, now_ns: int) -> float:
        """From now to the answer of a row with so many before it, as things go now."""
        curve = self.curve
        batches, rest = divmod(ahead, curve.best_rows)
        left_ns = max(0, self._busy_until_ns - now_ns)
        return left_ns + batches * curve.mean_ns(curve.best_rows) + curve.mean_ns(rest + 1)

    def next(self, now_ns: int) -> Turn:
        """What to do at `now_ns`, while no batch runs."""
        refused = self._hopeless(now_ns)
        queue, curve = self._queue, self.curve
        if not queue:
            return Turn(refused=refused)
        size, skip = self._plan(now_ns)
        refused += queue[:skip]
        batch = queue[skip : skip + size]
        del queue[: skip + size]
        self._bytes = sum(row.size_bytes for row in queue)
        self._began_ns = now_ns
        self._busy_until_ns = now_ns + int(curve.mean_ns(size))
        return Turn(batch=batch, refused=refused)

    def ended(self, rows: int, took_ns: int) -> None:
        """The running batch is scored."""
        self._busy_until_ns = 0
        self._ended_ns = self._began_ns + took_ns
        self.curve.learn(rows, took_ns)

    def _hopeless(self, now_ns: int) -> list[Waiting]:
        """Takes out who is gone, and who would be late even alone: these are told."""
        queue = self._queue
        if any(row.over for row in queue):
            queue[:] = [row for row in queue if not row.over]
        late = bisect_left(queue, now_ns + self.curve.mean_ns(1), key=_deadline)
        if late and late == len(queue):
            newest = queue[-1]
            given_ns = newest.deadline_ns - newest.arrived_ns
            if newest.deadline_ns > now_ns and (not self._ended_ns or now_ns - self._ended_ns > SILENCE * given_ns):
                late -= 1
        hopeless = queue[:late]
        del queue[:late]
        if not queue:
            self._bytes = 0
        return hopeless

    def _plan(self, now_ns: int) -> tuple[int, int]:
        """How many rows to score, and how many before them to give up."""
        queue, curve = self._queue, self.curve
        count = len(queue)
        size = curve.best_of(count)
        took_ns = curve.mean_ns(size)
        if queue[0].deadline_ns >= now_ns + took_ns * curve.safe_ratio and (
            size == count or queue[size].deadline_ns >= now_ns + ROOM * took_ns
        ):
            return size, 0
        best, best_worth = (size, 0), self._worth(size, 0, now_ns)
        sizes = [size, *(1 << power for power in reversed(range((size - 1).bit_length())))]
        if size < count <= curve.rows_top:
            sizes.insert(0, count)
        for one in sizes:
            took_ns = curve.mean_ns(one)
            for late_ns in (took_ns, took_ns * curve.safe_ratio):
                skip = bisect_left(queue, now_ns + late_ns, key=_deadline)
                if skip < count:
                    plan = min(one, count - skip), skip
                    worth = self._worth(*plan, now_ns)
                    if worth > best_worth:
                        best, best_worth = plan, worth
        return best

    def _worth(self, size: int, skip: int, now_ns: int) -> float:
        """Rows in time if `skip` are given up and `size` are scored next, less what all the time for it is worth.

        The batch itself is looked at closely: a row that is in time by the mean alone counts less than a safe one. Who
        waits behind it is scored at the best rate, in at most `PLAYED_BATCHES_MAX` steps.
        """
        queue, curve = self._queue, self.curve
        count, at = len(queue), skip + size
        row_ns = curve.mean_ns(curve.best_rows) / curve.best_rows
        took_ns = curve.mean_ns(size)
        at_ns = now_ns + took_ns
        spread_ns = took_ns * (curve.safe_ratio - 1)
        limits_ns = (at_ns - spread_ns, at_ns, at_ns + spread_ns)
        worth = sum(at - bisect_left(queue, limit_ns, skip, at, key=_deadline) for limit_ns in limits_ns) / 3
        step = max(curve.best_rows, (count - at) // PLAYED_BATCHES_MAX + 1)
        while at < count:
            rows = min(step, count - at)
            ends_ns = at_ns + max(rows * row_ns, curve.mean_ns(min(rows, curve.best_rows)))
            late = bisect_left(queue, ends_ns, at, key=_deadline) - at
            if late:
                at += late
            else:
                at, at_ns, worth = at + rows, ends_ns, worth + rows
        return worth - TIME_PRICE * (at_ns - now_ns) / row_ns
