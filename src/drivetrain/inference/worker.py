"""A model worker: a process that scores rows for all gateway workers, with a batcher per model and one scoring thread.

Owns the socket, the models that it has loaded and the order in which they get the one core. Knows no registry: `load`
opens a model, verified. Rows come in on the loop's thread, so that who cannot be in time is refused while a batch runs.
Started and replaced by the gateway's supervisor; its process is made in `gateway/modelling.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec

from drivetrain.core.errors import DrivetrainError, report_fault
from drivetrain.core.models import Pinned
from drivetrain.inference.answering import ROW_BYTES_MAX, Broken, Result, encoded, score_rows
from drivetrain.inference.batching import Batcher
from drivetrain.inference.curve import ServiceCurve
from drivetrain.inference.frames import (
    TO_WORKER,
    Cancel,
    Done,
    Failed,
    FrameFault,
    FrameReader,
    FromWorker,
    Load,
    Open,
    Opened,
    Score,
    framed,
)
from drivetrain.ports.inference import Scorer

BATCH_ROWS_MAX = 64
"""Of one batch: what is gained by more is little, and who comes meanwhile waits longer."""
WARM_S = 0.5
"""What learning a model's service curve may take when it is loaded."""
CONNECTIONS_MAX = 256
"""Gateway workers of one machine; more are closed at once."""
OUT_BYTES_MAX = 64 * 1024 * 1024
"""Answers that one gateway worker has not read; one that holds more is closed."""
BATCH_S_MAX = 30.0
"""A batch that takes longer never ends: the process does, and another takes its place."""
PUBLISH_S = 0.5
PAST_MODELS_MAX = 256
"""Models that were let go of and whose sums are told still, as sums must not fall; of more, the oldest are dropped."""
SWITCH_S = 0.0005
"""How long the scoring thread may keep the loop from a row that came, instead of Python's 5 ms."""


class ModelCounts(msgspec.Struct):
    """What a model worker did with one model."""

    rows: int = 0
    """Scored."""
    batches: int = 0
    refused: int = 0
    """Rows that could not be in time."""
    late: int = 0
    """Rows whose result came after their deadline."""
    queue_us: int = 0
    """Sum over scored rows, from their arrival to the start of their batch."""
    busy_us: int = 0
    waiting: int = 0
    """Rows that wait now."""
    predicted_us: int = 0
    """What a row that came now would take at p99."""
    loaded: bool = True
    """Whether the model can be asked here now; of others the sums are kept."""

    def add(self, other: ModelCounts) -> None:
        """Add the sums of `other`."""
        self.rows += other.rows
        self.batches += other.batches
        self.refused += other.refused
        self.late += other.late
        self.queue_us += other.queue_us
        self.busy_us += other.busy_us


def run_model_worker(
    path: Path,
    load: Callable[[Pinned], Scorer],
    *,
    supervisor_fd: int = -1,
    publish: Callable[[dict[str, ModelCounts]], None] = lambda counts: None,
    batcher: Callable[[], Batcher] = lambda: Batcher(ServiceCurve(BATCH_ROWS_MAX)),
) -> None:
    """Serves on the Unix socket `path` until SIGTERM or its supervisor's end; the running batch is answered.

    load: opens a model; raises DrivetrainError. supervisor_fd: readable once the supervisor is gone; -1: there is none.
    publish: told twice a second what was done, by model id. batcher: a queue for another model.
    """
    sys.setswitchinterval(SWITCH_S)
    asyncio.run(_serve(path, load, supervisor_fd, publish, batcher))


async def _serve(
    path: Path,
    load: Callable[[Pinned], Scorer],
    supervisor_fd: int,
    publish: Callable[[dict[str, ModelCounts]], None],
    batcher: Callable[[], Batcher],
) -> None:
    loop = asyncio.get_running_loop()
    worker = ModelWorker(loop, load, batcher)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    # Ctrl-C reaches everybody in front of a terminal at once; who has a supervisor serves until the calls have ended.
    loop.add_signal_handler(signal.SIGINT, stop.set if supervisor_fd < 0 else lambda: None)
    if supervisor_fd >= 0:

        def orphaned() -> None:
            loop.remove_reader(supervisor_fd)
            stop.set()

        loop.add_reader(supervisor_fd, orphaned)
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)  # the socket's mode is 0600 from its first moment
    try:
        server = await loop.create_unix_server(lambda: Connection(worker), path=str(path))
    finally:
        os.umask(mask)
    publishing = loop.create_task(_publish(worker, publish))
    await stop.wait()
    publishing.cancel()
    server.close()
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    await worker.close()
    for client in list(worker.clients):
        assert isinstance(client, Connection)
        client.close()
    await asyncio.sleep(0)


async def _publish(worker: ModelWorker, publish: Callable[[dict[str, ModelCounts]], None]) -> None:
    while True:
        if worker.stuck:
            print(f"drivetrain: a batch of {worker.stuck} runs for {BATCH_S_MAX:.0f} s; it ends.", file=sys.stderr)
            os._exit(1)
        with contextlib.suppress(OSError):
            publish(worker.counts())
        await asyncio.sleep(PUBLISH_S)


class Client(Protocol):
    """Who sends rows here."""

    rows: dict[int, WorkerRow]
    """That wait or are scored."""
    lanes: dict[int, Lane]
    """By this client's handles."""

    def say(self, message: FromWorker) -> None:
        """Tell it."""


class ModelWorker:
    """The models of one process and the rows that wait for them."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, load: Callable[[Pinned], Scorer], batcher: Callable[[], Batcher]
    ) -> None:
        self.loop = loop
        self.clients: set[Client] = set()
        self._load = load
        self._batcher = batcher
        self._lanes: dict[str, Lane] = {}
        self._past: dict[str, ModelCounts] = {}
        """By model id, of models that were let go of."""
        self._running: _Batch | None = None
        self._turning = False
        """A turn comes at the end of this one of the loop."""
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._scoring = _Thread("scoring")
        self._loading = _Thread("loading")

    @property
    def stuck(self) -> str:
        """The model whose batch takes far too long."""
        batch = self._running
        if batch is None or time.monotonic_ns() - batch.began_ns < BATCH_S_MAX * 1_000_000_000:
            return ""
        return batch.lane.model.id

    @property
    def waiting(self) -> int:
        """Rows of all models."""
        return sum(len(lane.batcher) for lane in self._lanes.values())

    def counts(self) -> dict[str, ModelCounts]:
        """By model id."""
        now_ns = time.monotonic_ns()
        for lane in self._lanes.values():
            batcher, curve = lane.batcher, lane.batcher.curve
            lane.counts.waiting = len(batcher)
            lane.counts.predicted_us = int(batcher.predicted_ns(len(batcher), now_ns) * curve.high_ratio / 1000)
        return {**self._past, **{lane.model.id: lane.counts for lane in self._lanes.values()}}

    def open(self, model: Pinned, client: Client, handle: int) -> Lane:
        """The lane of a model; tells `client` once it can be asked."""
        lane = self._lanes.get(model.digest)
        if lane is None or lane.fault:  # what could not be loaded before may be there now
            counts = self._past.pop(model.id, None) or (lane.counts if lane else ModelCounts())
            counts.loaded = True
            lane = self._lanes[model.digest] = Lane(model, self._batcher(), counts)
            self._loading.work.put(partial(self._opened, lane))
        if lane.scorer is not None:
            client.say(Opened(handle))
        else:
            lane.asking.append((client, handle))
        return lane

    def add(self, lane: Lane, row: WorkerRow) -> None:
        """Queue a row, or refuse it."""
        if lane.fault:
            row.client.say(Failed(row.id, "worker_lost", lane.fault))
        elif not lane.batcher.add(row, row.arrived_ns):
            lane.counts.refused += 1
            row.refuse(lane)
        else:
            row.client.rows[row.id] = row
            self._turn_soon()

    def release(self) -> None:
        """Forget the models that no client has open; where there is none left, the next one will want the same.

        Who waits for one is still scored, and then it goes.
        """
        if not self.clients:
            return
        wanted = {lane for client in self.clients for lane in client.lanes.values()}
        running = self._running.lane if self._running is not None else None
        for digest, lane in list(self._lanes.items()):
            if lane not in wanted and lane is not running and not len(lane.batcher):
                del self._lanes[digest]
                lane.counts.loaded = False
                lane.counts.waiting = 0
                self._past[lane.model.id] = lane.counts
        while len(self._past) > PAST_MODELS_MAX:
            del self._past[next(iter(self._past))]

    async def close(self) -> None:
        """Answer the running batch, and tell who waits."""
        self._closing = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), BATCH_S_MAX)
        for client in list(self.clients):
            for row in list(client.rows.values()):
                row.over = True
                client.say(Failed(row.id, "worker_lost", "the model worker ends"))
            client.rows.clear()

    # On the loop's thread.

    def _turn_soon(self) -> None:
        """When all that arrived in this turn of the loop is here."""
        if self._running is None and not self._turning:
            self._turning = True
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turning = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._running is not None or self._closing:
            return
        now_ns = time.monotonic_ns()
        again_ns = 0
        # Who has the earliest deadline gets the core.
        lanes = [lane for lane in self._lanes.values() if lane.scorer is not None and len(lane.batcher)]
        for lane in sorted(lanes, key=lambda lane: lane.batcher.earliest_ns):
            turn = lane.batcher.next(now_ns)
            for refused in cast("list[WorkerRow]", turn.refused):
                lane.counts.refused += 1
                refused.refuse(lane)
            if turn.batch:
                batch = self._running = _Batch(lane, list(cast("list[WorkerRow]", turn.batch)), now_ns)
                self._idle.clear()
                self._scoring.work.put(partial(self._scored, batch))
                return
            if turn.again_ns:
                again_ns = min(again_ns or turn.again_ns, turn.again_ns)
        self.release()
        if again_ns:
            self._timer = self.loop.call_later(max(0.0, (again_ns - now_ns) / 1e9), self._turn)

    def _ended(self, batch: _Batch, results: list[Result], began_ns: int, ended_ns: int) -> None:
        lane, rows = batch.lane, batch.rows
        self._running = None
        # From the choice of the rows to here: handing a batch to the thread and back is a part of what it takes.
        lane.batcher.ended(len(rows), time.monotonic_ns() - batch.began_ns)
        counts = lane.counts
        counts.batches += 1
        counts.rows += len(rows)
        counts.busy_us += (ended_ns - began_ns) // 1000
        for row, result in zip(rows, results, strict=True):
            counts.queue_us += (began_ns - row.arrived_ns) // 1000
            counts.late += ended_ns > row.deadline_ns
            row.answer(result)
        self._idle.set()
        self.release()
        self._turn_soon()

    def _loaded(self, lane: Lane, scorer: Scorer | None, learned: list[tuple[int, int]], fault: str) -> None:
        lane.scorer, lane.fault = scorer, fault
        for rows, took_ns in learned:
            lane.batcher.curve.learn(rows, took_ns)
        for client, handle in lane.asking:
            client.say(Opened(handle, fault))
        lane.asking.clear()
        if fault:
            for client in self.clients:
                for row in [row for row in client.rows.values() if row.lane is lane]:
                    del client.rows[row.id]
                    client.say(Failed(row.id, "worker_lost", fault))
        else:
            self._turn_soon()

    # On the threads.

    def _scored(self, batch: _Batch) -> None:
        assert batch.lane.scorer is not None
        began_ns = time.monotonic_ns()
        results = score_rows(batch.lane.scorer, [row.row for row in batch.rows])
        self._tell(self._ended, batch, results, began_ns, time.monotonic_ns())

    def _opened(self, lane: Lane) -> None:
        scorer, fault, learned = None, "", []
        try:
            scorer = self._load(lane.model)
            learned = warmed(scorer, lane.batcher.curve.rows_max)
        except DrivetrainError as error:
            fault = str(error)
        except Exception as error:  # noqa: BLE001  the boundary to a model's library
            report_fault(f"loading {lane.model.id}", error)
            fault = f"{lane.model.id} could not be loaded: {type(error).__name__}"
        self._tell(self._loaded, lane, scorer, learned, fault)

    def _tell(self, what: Callable[..., None], *told: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits for it
            self.loop.call_soon_threadsafe(what, *told)


class _Thread:
    """Does one thing after another. A daemon: a scorer that never returns must not keep the process."""

    def __init__(self, name: str) -> None:
        self.work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._work_for_ever, name=name, daemon=True).start()

    def _work_for_ever(self) -> None:
        while True:
            self.work.get()()


class Lane:
    """One model in this process."""

    __slots__ = ("asking", "batcher", "counts", "fault", "model", "scorer")

    def __init__(self, model: Pinned, batcher: Batcher, counts: ModelCounts) -> None:
        self.model = model
        self.scorer: Scorer | None = None
        """None until it is loaded."""
        self.fault = ""
        """Why it cannot be."""
        self.batcher = batcher
        self.counts = counts
        self.asking: list[tuple[Client, int]] = []
        """Who wants to know when it is loaded."""


class WorkerRow:
    """One row that waits here. Implements `batching.Waiting`."""

    __slots__ = ("arrived_ns", "client", "deadline_ns", "id", "lane", "over", "row", "size_bytes", "timeout_ns")

    def __init__(self, client: Client, lane: Lane, asked: Score, now_ns: int) -> None:
        self.client = client
        self.lane = lane
        self.id = asked.id
        self.row = asked.row
        self.size_bytes = len(asked.row)
        self.arrived_ns = now_ns
        self.timeout_ns = now_ns + asked.timeout_ms * 1_000_000
        self.deadline_ns = min(self.timeout_ns, now_ns + asked.slo_ms * 1_000_000 if asked.slo_ms else self.timeout_ns)
        self.over = False

    def answer(self, result: Result) -> None:
        if self.over:
            return
        self.over = True
        self.client.rows.pop(self.id, None)
        if isinstance(result, Broken):
            self.client.say(Failed(self.id, "protocol", result.detail, True))
        elif result.fault:
            self.client.say(Done(self.id, b"", result.fault))
        else:
            self.client.say(Done(self.id, encoded(result)))

    def refuse(self, lane: Lane) -> None:
        self.over = True
        self.client.rows.pop(self.id, None)
        wanted_ms = (self.deadline_ns - self.arrived_ns) / 1_000_000
        detail = f"{lane.model.id} cannot answer within {wanted_ms:.0f} ms: {len(lane.batcher)} rows wait"
        self.client.say(Failed(self.id, "overload", detail))


class _Batch:
    __slots__ = ("began_ns", "lane", "rows")

    def __init__(self, lane: Lane, rows: list[WorkerRow], began_ns: int) -> None:
        self.lane = lane
        self.rows = rows
        self.began_ns = began_ns


class Connection(asyncio.Protocol):
    """One gateway worker."""

    def __init__(self, worker: ModelWorker) -> None:
        self.worker = worker
        self.transport: asyncio.Transport | None = None
        self.rows: dict[int, WorkerRow] = {}
        """That wait or are scored."""
        self.lanes: dict[int, Lane] = {}
        """By the handles of this connection."""
        self._reader = FrameReader()
        self._out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if len(self.worker.clients) >= CONNECTIONS_MAX:
            self.transport.abort()
            return
        self.worker.clients.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.worker.clients.discard(self)
        for row in self.rows.values():
            row.over = True
        self.rows.clear()
        self.worker.release()

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._heard(frame)
        except (FrameFault, msgspec.MsgspecError) as fault:
            print(f"drivetrain: a model worker was told nonsense and closed that connection: {fault}", file=sys.stderr)
            if self.transport is not None:
                self.transport.abort()

    def say(self, message: FromWorker) -> None:
        """Sent at the end of this turn of the loop, with all else."""
        if self.transport is None:
            return
        if not self._out:
            self.worker.loop.call_soon(self.flush)
        try:
            self._out.append(framed(message))
        except FrameFault as fault:
            assert isinstance(message, Done)
            self._out.append(framed(Failed(message.id, "oversized", str(fault), True)))

    def flush(self) -> None:
        """Write what was said."""
        transport, said = self.transport, self._out
        if transport is None or not said:
            return
        self._out = []
        transport.write(b"".join([*said, framed(Load(self.worker.waiting))]))
        if transport.get_write_buffer_size() > OUT_BYTES_MAX:
            transport.abort()

    def close(self) -> None:
        """What was said is written first."""
        self.flush()
        if self.transport is not None:
            self.transport.close()

    def _heard(self, frame: bytes) -> None:
        message = TO_WORKER.decode(frame)
        if isinstance(message, Score):
            lane = self.lanes.get(message.handle)
            if lane is None or message.id in self.rows or len(message.row) > ROW_BYTES_MAX:
                raise FrameFault("a row of no open model, with the id of another, or too large")
            self.worker.add(lane, WorkerRow(self, lane, message, time.monotonic_ns()))
        elif isinstance(message, Open):
            self.lanes[message.handle] = self.worker.open(message.model, self, message.handle)
        elif isinstance(message, Cancel):
            row = self.rows.pop(message.id, None)
            if row is not None:
                row.over = True
        elif self.lanes.pop(message.handle, None) is not None:
            self.worker.release()


def warmed(scorer: Scorer, rows_max: int, *, limit_s: float = WARM_S) -> list[tuple[int, int]]:
    """(rows, ns) of batches of made-up rows: what the first Calls would else pay for is loaded, and the curve begun.

    A model that fails on them is none the worse: it starts without a curve.
    """
    from drivetrain.inference.rows import sample_row

    row = sample_row(scorer.pinned)
    learned: list[tuple[int, int]] = []
    until_ns = time.monotonic_ns() + int(limit_s * 1_000_000_000)
    size = 1
    with contextlib.suppress(Exception):
        scorer.score([row])  # the first one of all loads what is loaded late
        while size <= rows_max and time.monotonic_ns() < until_ns:
            taken = []
            for _ in range(3):
                began_ns = time.monotonic_ns()
                scorer.score([row] * size)
                taken.append(time.monotonic_ns() - began_ns)
            learned.append((size, sorted(taken)[1]))
            size *= 2
    return learned
