"""Small trained models in the gateway worker's own process: rows of one tick of its loop are scored as one batch.

Owns rows between `send` and their answers. A tick spends at most `TICK_MS` here, so that a busy model delays nobody
else for longer; what is left waits for the next tick. Loads nothing itself: `scorers` does. Called by `door`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Pinned
from drivetrain.inference.answering import ROW_BYTES_MAX, Broken, encoded, fail, give, give_fault, score_rows
from drivetrain.ports.inference import ModelRequest, Scorer
from drivetrain.ports.transport import UpstreamSink

TICK_MS = 5
"""What a tick may spend on scoring: the limit that the project's own functions have too."""
WAITING_MAX = 4096
"""Rows that may wait, over all models; more are refused at once, as each holds a Call's memory."""
BATCH_ROWS_MAX = 64
"""Of one batch: measured gains end before, and a row that breaks its batch costs at most so many again."""
FORGET = 0.2
"""Weight of the newest batch in what a row is expected to take."""


class LocalCounts(msgspec.Struct):
    """What one model did in this process."""

    rows: int = 0
    batches: int = 0
    queue_us: int = 0
    """Sum over rows, from `send` to the start of their batch."""
    busy_us: int = 0
    row_us: float = 0.0
    """What a row takes now, within its batch."""


class LocalModels:
    """Implements `ports.inference.Models` in this process. Costs about 6 us per row beside the scorer."""

    def __init__(
        self,
        scorers: Callable[[Pinned], Scorer],
        call_soon: Callable[[Callable[[], Any]], Any],
        monotonic_ns: Callable[[], int],
        slow_note: Callable[[str, float], None] | None = None,
        *,
        tick_ms: float = TICK_MS,
    ) -> None:
        """scorers: loads a model, or gives the loaded one; raises DrivetrainError.

        slow_note: told a model's id and the seconds of a batch that alone took longer than a tick may.
        """
        self._scorers = scorers
        self._call_soon = call_soon
        self._monotonic_ns = monotonic_ns
        self._slow_note = slow_note
        self._tick_ns = int(tick_ms * 1_000_000)
        self._lanes: dict[str, _Lane] = {}
        self._turns: deque[_Lane] = deque()
        """Lanes with rows, the next one first."""
        self._waiting = 0
        self._scheduled = False

    def prepare(self, model: Pinned) -> Scorer:
        """Load it now, so that no Call waits for that. Raises: DrivetrainError."""
        lane = self._lane(model)
        if lane.scorer is None:
            lane.scorer = self._scorers(model)
        return lane.scorer

    def send(self, request: ModelRequest, sink: UpstreamSink) -> LocalRow:
        row = LocalRow(self, request, sink, self._monotonic_ns())
        if self._waiting >= WAITING_MAX or len(request.row) > ROW_BYTES_MAX:
            self._call_soon(row.refuse)
            return row
        lane = self._lane(request.model)
        if not lane.rows:
            self._turns.append(lane)
        lane.rows.append(row)
        row.queued = True
        self._waiting += 1
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self._tick)
        return row

    def counts(self) -> dict[str, LocalCounts]:
        """By model id."""
        return {lane.model.id: lane.counts for lane in self._lanes.values()}

    def forget(self, keep: frozenset[str]) -> None:
        """Let go of models whose digests are not in `keep` and that nobody waits for."""
        for digest in [one for one, lane in self._lanes.items() if one not in keep and not lane.rows]:
            del self._lanes[digest]

    def left(self) -> None:
        """A waiting row was cancelled."""
        self._waiting -= 1

    def _lane(self, model: Pinned) -> _Lane:
        lane = self._lanes.get(model.digest)
        if lane is None:
            lane = self._lanes[model.digest] = _Lane(model)
        return lane

    def _tick(self) -> None:
        self._scheduled = False
        began_ns = now_ns = self._monotonic_ns()
        turns = self._turns
        while turns:
            lane = turns[0]
            left_ns = self._tick_ns - (now_ns - began_ns)
            rows_max = min(BATCH_ROWS_MAX, int(left_ns / lane.row_ns)) if lane.row_ns else BATCH_ROWS_MAX
            if rows_max < 1:
                if now_ns != began_ns:
                    break  # enough for this tick
                rows_max = 1  # no row of this model fits into a tick, and yet somebody has to score it
            batch = lane.take(rows_max)
            self._waiting -= len(batch)
            # At the end of those who wait, before any sink is told: a sink may send at once.
            turns.popleft()
            if lane.rows:
                turns.append(lane)
            if batch:
                now_ns = self._score(lane, batch, now_ns)
        if turns and not self._scheduled:
            self._scheduled = True
            self._call_soon(self._tick)

    def _score(self, lane: _Lane, batch: list[LocalRow], began_ns: int) -> int:
        """The time when it was done."""
        due: list[LocalRow] = []
        for row in batch:
            if began_ns >= row.until_ns:
                row.over = True
                fail(row.sink, "timeout", f"not scored within {row.request.timeout_ms} ms", sent=False)
            else:
                row.sent = True
                due.append(row)
        if not due:
            return self._monotonic_ns()
        if lane.scorer is None:
            try:
                lane.scorer = self._scorers(lane.model)
            except DrivetrainError as error:
                for row in due:
                    row.over = True
                    fail(row.sink, "worker_lost", str(error), sent=False)
                return self._monotonic_ns()
            began_ns = self._monotonic_ns()
        results = score_rows(lane.scorer, [row.request.row for row in due])
        ended_ns = self._monotonic_ns()
        took_ns = ended_ns - began_ns
        lane.note(len(due), took_ns, sum(began_ns - row.sent_ns for row in due))
        if took_ns > self._tick_ns and self._slow_note is not None:
            self._slow_note(lane.model.id, took_ns / 1_000_000_000)
        for row, result in zip(due, results, strict=True):
            if row.over:
                continue  # cancelled by the sink of a row before it
            row.over = True
            if isinstance(result, Broken):
                fail(row.sink, "protocol", result.detail, sent=True)
            elif result.fault:
                give_fault(row.sink, result.fault)
            else:
                give(row.sink, encoded(result))
        return ended_ns


class _Lane:
    """One model's rows, oldest first."""

    __slots__ = ("counts", "model", "row_ns", "rows", "scorer")

    def __init__(self, model: Pinned) -> None:
        self.model = model
        self.scorer: Scorer | None = None
        self.rows: deque[LocalRow] = deque()
        self.row_ns = 0.0
        """What a row of a batch takes; 0 before it is known."""
        self.counts = LocalCounts()

    def take(self, rows_max: int) -> list[LocalRow]:
        """The oldest ones that nobody cancelled."""
        taken: list[LocalRow] = []
        rows = self.rows
        while rows and len(taken) < rows_max:
            row = rows.popleft()
            if not row.over:
                row.queued = False
                taken.append(row)
        return taken

    def note(self, rows: int, took_ns: int, queued_ns: int) -> None:
        """One batch was scored."""
        row_ns = max(1.0, took_ns / rows)
        # One stall must not make every later batch tiny: it counts as ten times the usual at most.
        self.row_ns += FORGET * (min(row_ns, 10 * self.row_ns) - self.row_ns) if self.row_ns else row_ns
        counts = self.counts
        counts.rows += rows
        counts.batches += 1
        counts.queue_us += queued_ns // 1000
        counts.busy_us += took_ns // 1000
        counts.row_us = self.row_ns / 1000


class LocalRow:
    """Implements `ports.transport.Attempt`: one row that waits or was answered."""

    __slots__ = ("_models", "over", "queued", "request", "sent", "sent_ns", "sink", "until_ns")

    def __init__(self, models: LocalModels, request: ModelRequest, sink: UpstreamSink, now_ns: int) -> None:
        self._models = models
        self.request = request
        self.sink = sink
        self.sent_ns = now_ns
        self.until_ns = now_ns + request.timeout_ms * 1_000_000
        self.queued = False
        self.sent = False
        """Whether the model was asked."""
        self.over = False

    def answering(self) -> None:
        """The whole answer comes at once."""

    def cancel(self) -> None:
        if not self.over:
            self.over = True
            if self.queued:
                self._models.left()

    def pause(self) -> None:
        """The whole answer comes at once."""

    def resume(self) -> None:
        """The whole answer comes at once."""

    def refuse(self) -> None:
        """Told on the next turn of the loop, never within `send`."""
        if self.over:
            return
        self.over = True
        if len(self.request.row) > ROW_BYTES_MAX:
            fail(self.sink, "oversized", f"the row is larger than {ROW_BYTES_MAX:,} bytes", sent=False)
        else:
            fail(self.sink, "overload", f"{WAITING_MAX} rows wait in this worker already", sent=False)
