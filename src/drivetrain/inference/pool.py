"""Model workers as a gateway worker sees them: rows go out over Unix sockets, and every one ends in exactly one way.

Owns the connections, who is asked, timeouts, and what happens to rows whose worker is gone: they fail as `worker_lost`,
so that their Calls are retried or fall back. Starts no process: the supervisor does. Called by `door`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Pinned
from drivetrain.inference.answering import ROW_BYTES_MAX, fail, give, give_fault
from drivetrain.inference.frames import (
    FROM_WORKER,
    Cancel,
    Close,
    Done,
    Failed,
    FrameFault,
    FrameReader,
    Load,
    Open,
    Opened,
    Score,
    ToWorker,
    framed,
)
from drivetrain.inference.worker import ModelCounts
from drivetrain.ports.inference import ModelRequest
from drivetrain.ports.transport import UpstreamSink

OUTSTANDING_MAX = 4096
"""Rows of one gateway worker that one model worker may hold; more are refused at once."""
OUTSTANDING_BYTES_MAX = 64 * 1024 * 1024
"""Of their rows: a few thousand large ones would be gigabytes."""
CONNECT_S = 1.0
RETRY_S, RETRY_S_MAX = 0.05, 1.0
"""Between two tries to connect: at first, and at most; twice as long each time. A worker is replaced in about 0.5 s."""
PREPARE_S = 60.0
"""What loading all models before traffic may take."""


class WorkerModels:
    """Implements `ports.inference.Models` over model workers. Costs about 35 us of CPU per row in this process."""

    def __init__(self, paths: Sequence[Path], loop: asyncio.AbstractEventLoop) -> None:
        """paths: a socket per model worker; none need be there yet."""
        self._loop = loop
        self._links = [_Link(self, path, loop) for path in paths]
        self.handles: dict[str, int] = {}
        """Digest -> what a model is called on every connection."""
        self.models: dict[int, Pinned] = {}
        """The same, the other way round: what a new connection opens first."""
        self._next_handle = 0
        self._next_id = 0
        self._closed = False

    def send(self, request: ModelRequest, sink: UpstreamSink) -> WorkerAttempt:
        self._next_id += 1
        attempt = WorkerAttempt(self._next_id, request, sink)
        if len(request.row) > ROW_BYTES_MAX:
            detail = f"the row is larger than {ROW_BYTES_MAX:,} bytes"
            self._loop.call_soon(attempt.fail, "oversized", detail)
            return attempt
        handle = self.handle(request.model)
        links = [link for link in self._links if handle in link.opened] or [link for link in self._links if link.usable]
        if self._closed or not links:
            kind, detail = (
                ("shutdown", "the gateway ends") if self._closed else ("worker_lost", "no model worker is up")
            )
            self._loop.call_soon(attempt.fail, kind, detail)
            return attempt
        link = min(links, key=_load)
        if len(link.attempts) >= OUTSTANDING_MAX or link.bytes + len(request.row) > OUTSTANDING_BYTES_MAX:
            detail = f"{len(link.attempts)} rows of {link.bytes:,} bytes wait for their model worker already"
            self._loop.call_soon(attempt.fail, "overload", detail)
            return attempt
        attempt.begin(link, self._loop.call_later(request.timeout_ms / 1000, attempt.late))
        link.attempts[attempt.id] = attempt
        link.bytes += len(request.row)
        link.say(Score(attempt.id, handle, request.row, request.timeout_ms, request.slo_ms))
        return attempt

    async def prepare(self, models: Sequence[Pinned], limit_s: float = PREPARE_S) -> None:
        """Every worker that is up has loaded these, and one is up. Others that were opened stay until `keep`.

        Raises: DrivetrainError where a model cannot be loaded, or no worker has loaded it in time.
        """
        handles = [self.handle(model) for model in models]
        for link in self._links:
            link.wake()
        until_s = self._loop.time() + limit_s
        while not self._prepared(handles):
            if self._loop.time() > until_s:
                raise DrivetrainError(
                    f"No model worker has loaded the project's models within {limit_s:.0f} s.",
                    looked=[str(link.path) for link in self._links],
                    do="Its own words stand above, on standard error; a larger model needs a faster disk or more time.",
                )
            await asyncio.sleep(0.01)

    def keep(self, digests: frozenset[str]) -> None:
        """Let go of all other models; who waits for one is still scored."""
        for digest in [digest for digest in self.handles if digest not in digests]:
            handle = self.handles.pop(digest)
            del self.models[handle]
            for link in self._links:
                link.close_model(handle)

    def counts(self) -> dict[str, ModelCounts]:
        """Nothing: model workers tell theirs themselves, once for all gateway workers."""
        return {}

    async def close(self) -> None:
        """Running rows fail, and so do new ones."""
        self._closed = True
        for link in self._links:
            link.close()
        await asyncio.gather(*(link.task for link in self._links if link.task is not None), return_exceptions=True)

    @property
    def connected(self) -> int:
        """Model workers that can be asked."""
        return sum(link.transport is not None for link in self._links)

    def handle(self, model: Pinned) -> int:
        """What `model` is called; opens it on every connection where it is new."""
        handle = self.handles.get(model.digest)
        if handle is None:
            self._next_handle += 1
            handle = self.handles[model.digest] = self._next_handle
            self.models[handle] = model
            for link in self._links:
                link.open_model(handle, model)
        return handle

    def _prepared(self, handles: Sequence[int]) -> bool:
        for link in self._links:
            for handle in handles:
                if handle in link.faults:
                    raise DrivetrainError(link.faults[handle])
        up = [link for link in self._links if link.transport is not None]
        return bool(up) and all(handle in link.opened for link in up for handle in handles)


class _Link(asyncio.Protocol):
    """One model worker: a connection, or the next try."""

    def __init__(self, pool: WorkerModels, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.path = path
        self.transport: asyncio.Transport | None = None
        self.attempts: dict[int, WorkerAttempt] = {}
        self.bytes = 0
        """Of their rows."""
        self.waiting = 0
        """Rows that wait there, of all gateway workers, as it said last."""
        self.opened: set[int] = set()
        self.faults: dict[int, str] = {}
        self.task: asyncio.Task[None] | None = None
        """Connects, and connects again."""
        self._pool = pool
        self._loop = loop
        self._reader = FrameReader()
        self._out: list[bytes] = []
        self._failed = False
        """The last try to connect did."""
        self._closed = False

    @property
    def usable(self) -> bool:
        """Whether a row may be given to it: it is connected, or was not tried yet."""
        return self.transport is not None or not (self._failed or self._closed)

    def wake(self) -> None:
        """Connect, unless that is being done."""
        if self.transport is None and self.task is None and not self._closed:
            self.task = self._loop.create_task(self._connect())

    def open_model(self, handle: int, model: Pinned) -> None:
        """Load it there, where there is a connection; a new one opens all."""
        if self.transport is not None:
            self.say(Open(handle, model))

    def close_model(self, handle: int) -> None:
        """No more rows for it."""
        self.opened.discard(handle)
        self.faults.pop(handle, None)
        if self.transport is not None:
            self.say(Close(handle))

    def say(self, message: ToWorker) -> None:
        """Sent at the end of this turn of the loop, or with the connection."""
        if not self._out:
            self._loop.call_soon(self.flush)
        self._out.append(framed(message))
        self.wake()

    def flush(self) -> None:
        """Write what was said, once there is a connection."""
        if self.transport is not None and self._out:
            said, self._out = self._out, []
            self.transport.write(b"".join(said))

    def close(self) -> None:
        """For good."""
        self._closed = True
        if self.task is not None:
            self.task.cancel()
        if self.transport is not None:
            self.transport.abort()
        self._lose("shutdown", "the gateway ends")

    async def _connect(self) -> None:
        pause_s = RETRY_S
        try:
            while not self._closed:
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(CONNECT_S):
                        await self._loop.create_unix_connection(lambda: self, str(self.path))
                    if self.transport is not None:
                        return
                    # It was lost before this task heard of it (uvloop), and nobody else tries while this one does.
                self._failed = True
                self._lose("worker_lost", "the model worker is not up")
                await asyncio.sleep(pause_s)
                pause_s = min(RETRY_S_MAX, 2 * pause_s)
        finally:
            self.task = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._failed = False
        self._reader = FrameReader()
        # What was said before it was there belongs behind its models.
        opening = [framed(Open(handle, model)) for handle, model in self._pool.models.items()]
        self._out = opening + self._out
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._failed = True
        self._lose("worker_lost", "the model worker ended")
        self.wake()

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._heard(frame)
        except (FrameFault, msgspec.MsgspecError) as fault:
            self._lose("protocol", f"the model worker answered nonsense: {fault}")
            if self.transport is not None:
                self.transport.abort()

    def _heard(self, frame: bytes) -> None:
        message = FROM_WORKER.decode(frame)
        if isinstance(message, Load):
            self.waiting = message.rows
        elif isinstance(message, Opened):
            if message.handle in self._pool.models:
                if message.fault:
                    self.faults[message.handle] = message.fault
                else:
                    self.faults.pop(message.handle, None)
                    self.opened.add(message.handle)
        else:
            attempt = self.taken(message.id)
            if attempt is not None:
                attempt.hear(message)

    def taken(self, id: int) -> WorkerAttempt | None:
        """No more of this worker's; None where it was not."""
        attempt = self.attempts.pop(id, None)
        if attempt is not None:
            self.bytes -= len(attempt.request.row)
        return attempt

    def _lose(self, kind: str, detail: str) -> None:
        lost, self.attempts = self.attempts, {}
        self.bytes = 0
        self._out = []
        self.opened.clear()
        self.faults.clear()
        self.waiting = 0
        for attempt in lost.values():
            attempt.fail(kind, detail)


class WorkerAttempt:
    """Implements `ports.transport.Attempt`: one row at a model worker."""

    __slots__ = ("_link", "_timer", "id", "over", "request", "sent", "sink")

    def __init__(self, id: int, request: ModelRequest, sink: UpstreamSink) -> None:
        self.id = id
        self.request = request
        self.sink = sink
        self.sent = False
        """Whether a worker may have been told."""
        self.over = False
        self._link: _Link | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, link: _Link, timer: asyncio.TimerHandle) -> None:
        """It is on its way."""
        self._link, self._timer = link, timer
        self.sent = True

    def answering(self) -> None:
        """The whole answer comes at once."""

    def pause(self) -> None:
        """The whole answer comes at once."""

    def resume(self) -> None:
        """The whole answer comes at once."""

    def cancel(self) -> None:
        if self._end():
            self._withdraw()

    def late(self) -> None:
        """Its timeout has passed."""
        self._withdraw()
        self.fail("timeout", f"no answer within {self.request.timeout_ms} ms")

    def fail(self, kind: str, detail: str) -> None:
        """End without an answer; heard at most once."""
        if self._end():
            fail(self.sink, kind, detail, sent=self.sent)

    def hear(self, message: Done | Failed) -> None:
        """The worker's answer."""
        if not self._end():
            return
        if isinstance(message, Failed):
            fail(self.sink, message.kind, message.detail, sent=message.sent)
        elif message.fault:
            give_fault(self.sink, message.fault)
        else:
            give(self.sink, message.body)

    def _end(self) -> bool:
        """Whether it had not ended before."""
        if self.over:
            return False
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
        return True

    def _withdraw(self) -> None:
        link = self._link
        if link is not None and link.taken(self.id) is not None and link.transport is not None:
            link.say(Cancel(self.id))


def _load(link: _Link) -> int:
    """Rows before a new one: its own are known at once, those of others as it said last."""
    return max(len(link.attempts), link.waiting)
