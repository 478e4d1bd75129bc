"""Attempts under way, as the pool and the providers see them: scripts in virtual time, with the pool's deadlines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from drivetrain.ports.transport import UpstreamFailure, UpstreamHead, UpstreamRequest, UpstreamSink

from .kernel import MS, Event, Kernel
from .providers import Script, Step

if TYPE_CHECKING:
    from .worker import Worker


class Exchange:
    """One attempt."""

    sent = True

    def __init__(
        self, kernel: Kernel, worker: Worker, request: UpstreamRequest, sink: UpstreamSink, script: Script, number: int
    ) -> None:
        self.number = number
        self.script = script
        self.request = request
        self.sink = sink
        self.over = False
        self.given = b""
        """What the provider has said so far."""
        self._kernel = kernel
        self._worker = worker
        self._paused = 0
        self._place = 0
        self._next: Event | None = None
        self._first_byte: Event | None = self._in_time(request.first_byte_timeout_ms, "first_byte_timeout")
        self._whole = self._in_time(request.timeout_ms, "timeout")
        self._go_on()

    # ports.transport.Attempt

    def answering(self) -> None:
        if self._first_byte is not None:
            self._first_byte.cancel()

    def cancel(self) -> None:
        self._worker.edge("cancel")
        self._end()

    def pause(self) -> None:
        self._paused += 1

    def resume(self) -> None:
        self._paused -= 1
        if not self._paused and self._next is None and not self.over:
            self._go_on()

    # What happens to it.

    def _in_time(self, limit_ms: int, kind: str) -> Event:
        return self._kernel.after(limit_ms * MS, lambda: self._fail(kind, True), self._worker)

    def _go_on(self) -> None:
        self._next = None
        if not self._paused and self._place < len(self.script.steps):
            step = self.script.steps[self._place]
            self._place += 1
            self._next = self._kernel.after(step.delay_ns, lambda: self._do(step), self._worker)

    def _do(self, step: Step) -> None:
        self._next = None
        if self._paused:
            self._place -= 1
            return
        if step.what == "head":
            self._tell(lambda: self.sink.on_head(UpstreamHead(step.status, dict(step.headers))))
        elif step.what == "chunk":
            self.given += step.data
            self._tell(lambda: self.sink.on_chunk(step.data))
        elif step.what == "end":
            self._end()
            self._tell(self.sink.on_end)
        else:
            self._fail(step.kind, step.sent)
        if not self.over:
            self._go_on()

    def _fail(self, kind: str, sent: bool) -> None:
        if not self.over:
            self._end()
            self._tell(lambda: self.sink.on_failure(UpstreamFailure(kind, f"what the pool says of {kind}", sent)))

    def _end(self) -> None:
        self.over = True
        for event in (self._next, self._first_byte, self._whole):
            if event is not None:
                event.cancel()

    def _tell(self, what: Callable[[], None]) -> None:
        self._worker.edge("answer")
        try:
            what()
        except Exception as fault:  # noqa: BLE001  as the pool does
            self.sink.on_fault(fault)
