"""Larger models where there is no model worker, as in plain Python calls: scored in a thread of this process.

The same queue, batches and refusals as in a model worker, without a socket between. Called by `door`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Pinned
from drivetrain.inference.answering import ROW_BYTES_MAX, fail, give, give_fault
from drivetrain.inference.batching import Batcher
from drivetrain.inference.curve import ServiceCurve
from drivetrain.inference.frames import Done, Failed, FromWorker, Opened, Score
from drivetrain.inference.worker import BATCH_ROWS_MAX, Lane, ModelCounts, ModelWorker, WorkerRow
from drivetrain.ports.inference import ModelRequest, Scorer
from drivetrain.ports.transport import UpstreamSink


class ThreadModels:
    """Implements `ports.inference.Models` and `worker.Client`. Its thread starts with the first model."""

    def __init__(self, loop: asyncio.AbstractEventLoop, load: Callable[[Pinned], Scorer]) -> None:
        self.rows: dict[int, WorkerRow] = {}
        self.lanes: dict[int, Lane] = {}
        self._loop = loop
        self._load = load
        self._worker: ModelWorker | None = None
        self._handles: dict[str, int] = {}
        self._attempts: dict[int, ThreadAttempt] = {}
        self._opening: dict[int, asyncio.Future[str]] = {}
        self._next = 0

    def send(self, request: ModelRequest, sink: UpstreamSink) -> ThreadAttempt:
        self._next += 1
        attempt = ThreadAttempt(self, self._next, request, sink)
        self._attempts[attempt.id] = attempt
        attempt.timer = self._loop.call_later(request.timeout_ms / 1000, attempt.late)
        if len(request.row) > ROW_BYTES_MAX:
            detail = f"the row is larger than {ROW_BYTES_MAX:,} bytes"
            self._loop.call_soon(self._answer, attempt.id, Failed(attempt.id, "oversized", detail))
            return attempt
        handle = self._open(request.model)
        asked = Score(attempt.id, handle, request.row, request.timeout_ms, request.slo_ms)
        lane = self.lanes[handle]
        self._started().add(lane, WorkerRow(self, lane, asked, time.monotonic_ns()))
        return attempt

    async def prepare(self, models: Sequence[Pinned]) -> None:
        """These are loaded. Raises: DrivetrainError where one cannot be."""
        for model in models:
            opening = self._opening.get(self._open(model))
            fault = await asyncio.shield(opening) if opening is not None else ""
            if fault:
                raise DrivetrainError(fault)

    def keep(self, digests: frozenset[str]) -> None:
        """Let go of all other models; who waits for one is still scored."""
        for digest in [digest for digest in self._handles if digest not in digests]:
            handle = self._handles.pop(digest)
            del self.lanes[handle]
            self._opening.pop(handle, None)
        if self._worker is not None:
            self._worker.release()

    async def close(self) -> None:
        """The running batch is answered; who waits fails."""
        if self._worker is not None:
            await self._worker.close()
            await asyncio.sleep(0)

    def say(self, message: FromWorker) -> None:
        """What the worker tells; a sink hears it on a later turn of the loop."""
        if isinstance(message, Opened):
            opening = self._opening.get(message.handle)
            if opening is not None and not opening.done():
                opening.set_result(message.fault)
        elif isinstance(message, Done | Failed):
            self._loop.call_soon(self._answer, message.id, message)

    def counts(self) -> dict[str, ModelCounts]:
        """By model id."""
        return {} if self._worker is None else self._worker.counts()

    def drop(self, id: int) -> None:
        """Nobody waits for it."""
        self._attempts.pop(id, None)
        row = self.rows.pop(id, None)
        if row is not None:
            row.over = True

    def _started(self) -> ModelWorker:
        if self._worker is None:
            self._worker = ModelWorker(self._loop, self._load, lambda: Batcher(ServiceCurve(BATCH_ROWS_MAX)))
            self._worker.clients.add(self)
        return self._worker

    def _open(self, model: Pinned) -> int:
        handle = self._handles.get(model.digest)
        if handle is None or self.lanes[handle].fault:
            self._next += 1
            handle = self._handles[model.digest] = self._next
            self._opening[handle] = self._loop.create_future()
            self.lanes[handle] = self._started().open(model, self, handle)
        return handle

    def _answer(self, id: int, message: Done | Failed) -> None:
        attempt = self._attempts.pop(id, None)
        if attempt is None:
            return
        attempt.end()
        if isinstance(message, Failed):
            fail(attempt.sink, message.kind, message.detail, sent=message.sent)
        elif message.fault:
            give_fault(attempt.sink, message.fault)
        else:
            give(attempt.sink, message.body)


class ThreadAttempt:
    """Implements `ports.transport.Attempt`: one row for the thread."""

    __slots__ = ("_models", "id", "request", "sent", "sink", "timer")

    def __init__(self, models: ThreadModels, id: int, request: ModelRequest, sink: UpstreamSink) -> None:
        self._models = models
        self.id = id
        self.request = request
        self.sink = sink
        self.sent = True
        self.timer: asyncio.TimerHandle | None = None

    def answering(self) -> None:
        """The whole answer comes at once."""

    def pause(self) -> None:
        """The whole answer comes at once."""

    def resume(self) -> None:
        """The whole answer comes at once."""

    def cancel(self) -> None:
        self.end()
        self._models.drop(self.id)

    def late(self) -> None:
        """Its timeout has passed."""
        self._models.drop(self.id)
        fail(self.sink, "timeout", f"no answer within {self.request.timeout_ms} ms", sent=True)

    def end(self) -> None:
        """It is answered or cancelled."""
        if self.timer is not None:
            self.timer.cancel()
