"""A sink that keeps what it hears, a model and its scorers, for all tests of serving."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from drivetrain.core.models import SCORED_DECODER, Column, Pinned, Row, Scored, Signature
from drivetrain.ports.inference import ModelRequest
from drivetrain.ports.transport import UpstreamFailure, UpstreamHead


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


def pinned(name: str = "echo", number: int = 1) -> Pinned:
    """A model of one text."""
    signature = Signature(
        task="classification", inputs=(Column(name="text", dtype="text"),), target="label", labels=("a",)
    )
    return Pinned(name=name, number=number, digest=f"{name}-{number}", format="onnx", signature=signature)


def asked(text: object, model: Pinned | None = None, timeout_ms: int = 30_000, slo_ms: int = 0) -> ModelRequest:
    """One row of it."""
    return ModelRequest(model or pinned(), msgspec.msgpack.encode([text]), timeout_ms, slo_ms)


class Echo:
    """Says each text back. Some do harm: `raise`, `fault`, `die`; `sleep N` takes N ms."""

    def __init__(self, model: Pinned, fixed_ms: float = 0.0, each_ms: float = 0.0) -> None:
        self.pinned = model
        self.batches: list[int] = []
        self._fixed_ms = fixed_ms
        self._each_ms = each_ms

    def score(self, rows: Sequence[Row]) -> list[Scored]:
        self.batches.append(len(rows))
        took_ms = self._fixed_ms + self._each_ms * len(rows)
        for (text,) in rows:
            if text == "raise":
                raise ValueError("a private text")
            if text == "die":
                os._exit(3)
            if text.startswith("sleep "):
                took_ms += float(text[6:])
        if took_ms:
            time.sleep(took_ms / 1000)
        return [Scored(fault="no such text") if text == "fault" else Scored(label=text) for (text,) in rows]


class Sink:
    """Keeps the one answer."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.failure: UpstreamFailure | None = None
        self.endings = 0
        """1 once it has ended; more were a fault."""
        self.ended = asyncio.Event()
        self.heard_ns = 0

    def on_head(self, head: UpstreamHead) -> None:
        assert self.status == 0
        self.status = head.status

    def on_chunk(self, data: bytes) -> None:
        self.body += data

    def on_end(self) -> None:
        self._end()

    def on_failure(self, failure: UpstreamFailure) -> None:
        self.failure = failure
        self._end()

    def on_fault(self, fault: Exception) -> None:
        raise fault

    def _end(self) -> None:
        self.endings += 1
        self.heard_ns = time.monotonic_ns()
        self.ended.set()

    @property
    def kind(self) -> str:
        """Of its failure; empty where it was answered."""
        return self.failure.kind if self.failure else ""

    @property
    def label(self) -> str | None:
        """Of the answer."""
        return SCORED_DECODER.decode(self.body).label


async def all_ended(sinks: Sequence[Sink], limit_s: float = 40) -> None:
    """Each has ended, once."""
    async with asyncio.timeout(limit_s):
        for sink in sinks:
            await sink.ended.wait()
    await asyncio.sleep(0)
    assert all(sink.endings == 1 for sink in sinks)
