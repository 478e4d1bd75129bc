"""Which rows of one model are scored next, together, and which are refused: so that as many as can be are in time.

Pure: told of rows, of time and of how long batches took; it keeps no clock and starts nothing. Owns one model's queue
in a model worker. Every row has a deadline. The service curve tells when a batch would end, and

- who cannot be in time, given who waits before it, is refused at once, so that its Call goes elsewhere;
- a batch is as large as the earliest deadline in it allows; where that would be a small batch while many wait, the
  earliest are given up if that brings more rows in time than it costs;
- an idle worker waits for more rows only where a batch that began now would make those late who come while it runs.

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
RATE_FORGET = 0.05
"""Weight of the newest gap between two rows in the rate of arrivals."""
PLAYED_BATCHES_MAX = 16
"""Of one choice that is played through: so it costs at most about 0.3 ms."""
UNSAFE = 0.5
"""Of a row that is in time only if its batch takes no longer than usual: half of such batches take longer."""
HORIZON = 2
"""How far ahead a choice is played through, in the time that a row is given."""
_deadline = attrgetter("deadline_ns")


class Waiting(Protocol):
    """One row in the queue, as far as batching looks at it."""

    arrived_ns: int
    deadline_ns: int
    """When its answer is of no more use."""
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

    def __init__(self, curve: ServiceCurve, *, queue_rows_max: int = QUEUE_ROWS_MAX) -> None:
        self.curve = curve
        self._queue: list[Waiting] = []
        """Earliest deadline first."""
        self._queue_rows_max = queue_rows_max
        self._busy_until_ns = 0
        """When the running batch is expected to end; 0: none runs."""
        self._left = False
        """Whether the running batch left rows behind."""
        self._gap_ns = 0.0
        """Between two arrivals, newer ones weighing more."""
        self._last_ns = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def earliest_ns(self) -> int:
        """The earliest deadline of who waits; 0 where nobody does."""
        return self._queue[0].deadline_ns if self._queue else 0

    def add(self, row: Waiting, now_ns: int) -> bool:
        """Whether it may wait; else it cannot be in time, or too many wait."""
        if self._last_ns:
            self._gap_ns += RATE_FORGET * (max(0, now_ns - self._last_ns) - self._gap_ns)
        self._last_ns = now_ns
        queue = self._queue
        if len(queue) >= self._queue_rows_max:
            return False
        ahead = bisect_right(queue, row.deadline_ns, key=_deadline)
        # An idle worker takes whoever comes: that costs nobody anything, and it learns how fast it is now.
        if (queue or self._busy_until_ns) and now_ns + self.predicted_ns(ahead, now_ns) > row.deadline_ns:
            return False
        queue.insert(ahead, row)
        return True

    def predicted_ns(self, ahead: int, now_ns: int) -> float:
        """From now to the answer of a row with so many before it, as things usually go."""
        curve = self.curve
        best = curve.best_rows
        batches, rest = divmod(ahead, best)
        return max(0, self._busy_until_ns - now_ns) + batches * curve.mean_ns(best) + curve.mean_ns(rest + 1)

    def next(self, now_ns: int) -> Turn:
        """What to do at `now_ns`, while no batch runs."""
        refused = self._hopeless(now_ns)
        queue, curve = self._queue, self.curve
        if not queue:
            return Turn(refused=refused)
        size, skip = self._size(now_ns)
        if skip == 0 and size == len(queue):
            start_ns = self._start_ns(size)
            if start_ns > now_ns:
                return Turn(refused=refused, again_ns=start_ns)
        refused += queue[:skip]
        batch = queue[skip : skip + size]
        del queue[: skip + size]
        self._busy_until_ns = now_ns + int(curve.mean_ns(size))
        self._left = bool(queue)
        return Turn(batch=batch, refused=refused)

    def ended(self, rows: int, took_ns: int) -> None:
        """The running batch is scored."""
        self._busy_until_ns = 0
        self.curve.learn(rows, took_ns, left=self._left)

    def _hopeless(self, now_ns: int) -> list[Waiting]:
        """Takes out who is gone, and who would be late even alone: these are told."""
        queue = self._queue
        if any(row.over for row in queue):
            queue[:] = [row for row in queue if not row.over]
        late = bisect_left(queue, now_ns + self.curve.mean_ns(1), key=_deadline)
        if late and late == len(queue) and queue[-1].deadline_ns > now_ns:
            late -= 1  # nobody else wants the worker, and what it thinks it takes may be long past
        hopeless = queue[:late]
        del queue[:late]
        return hopeless

    def _size(self, now_ns: int) -> tuple[int, int]:
        """How many rows to score, and how many before them to give up."""
        queue, curve = self._queue, self.curve
        most = min(len(queue), curve.best_rows)  # more rows bring fewer per second
        fit = _fitting(queue, most, now_ns, curve)
        newest = queue[-1]
        allowed_ns = newest.deadline_ns - newest.arrived_ns
        if not curve.batches:
            return 1, 0
        if fit == most and 2 * curve.planned_ns(fit) <= allowed_ns:
            return fit, 0  # as many as pay, and who comes meanwhile is in time too
        # Else a larger batch makes others late, those behind it or those yet to come, and a smaller one takes more of
        # the worker's time per row. Each size is played through: with who waits, and with rows that come as they did.
        plans = {(fit or 1, most), (most, most)}
        size = 1
        while size < most:
            plans.add((size, size))
            plans.add((size, most))
            size *= 2
        rate = 1 / self._gap_ns if self._gap_ns else 0.0
        chosen, chosen_worth = (max(fit, 1), 0), 0.0
        for first, then in sorted(plans):
            skip, worth = self._played(first, then, now_ns, rate, allowed_ns)
            if worth > chosen_worth:
                chosen, chosen_worth = (min(first, len(queue) - skip), skip), worth
        return chosen

    def _played(self, size: int, then: int, now_ns: int, rate: float, allowed_ns: int) -> tuple[int, float]:
        """Rows given up first, and rows in time until the horizon, if a batch of `size` comes next and such of `then`.

        rate: rows per ns that come meanwhile, evenly. A row that is in time only if its batch takes no longer than
        usual counts half.
        """
        queue, curve = self._queue, self.curve
        count, at, come, skipped, worth = len(queue), 0, 0.0, -1, 0.0
        at_ns, until_ns = float(now_ns), now_ns + HORIZON * allowed_ns
        for _ in range(PLAYED_BATCHES_MAX):
            unsafe = 0
            took_ns = curve.mean_ns(min(size, count - at) or 1)
            if at < count:
                at = bisect_left(queue, at_ns + took_ns, at, key=_deadline)
                planned_ns = took_ns * curve.planned_ratio
                unsafe = bisect_left(queue, at_ns + planned_ns, at, min(at + size, count), key=_deadline) - at
            if skipped < 0:
                skipped = at
            # Of those who come, the first ones may be late by now as well.
            come = max(come, (at_ns + took_ns - allowed_ns - now_ns) * rate)
            waiting = min(size, count - at)
            joining = int(min(size - waiting, max(0.0, (at_ns - now_ns) * rate - come)))
            rows = waiting + joining
            if not rows:
                if not rate:
                    break
                at_ns = max(at_ns, now_ns + (come + 1) / rate)
                if at_ns >= until_ns:
                    break
                size = then
                continue
            took_ns = curve.mean_ns(rows)
            share = min(1.0, (until_ns - at_ns) / took_ns)
            worth += share * (rows - UNSAFE * unsafe)
            if share < 1:
                break
            at += waiting
            come += joining
            at_ns += took_ns
            size = then
        return skipped, worth

    def _start_ns(self, size: int) -> int:
        """When to begin with the few rows there are: at once, unless that would make the next ones late."""
        curve, queue = self.curve, self._queue
        if not curve.batches or size >= curve.best_rows:
            return 0
        first = queue[0]
        allowed_ns = first.deadline_ns - first.arrived_ns
        # Who comes right after the start waits for this batch and then for its own.
        if curve.planned_ns(size) + curve.planned_ns(1) <= allowed_ns:
            return 0
        return first.deadline_ns - int(curve.planned_ns(size + 1))


def _fitting(queue: Sequence[Waiting], most: int, now_ns: int, curve: ServiceCurve) -> int:
    """The largest batch that ends by the deadline of its first; 0 where none does."""
    room_ns = queue[0].deadline_ns - now_ns
    size = most
    while size and curve.planned_ns(size) > room_ns:
        size -= 1
    return size
