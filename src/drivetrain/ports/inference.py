"""How a route's attempt reaches a trained model, wherever that runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from drivetrain.core.models import Pinned, Row, Scored
from drivetrain.ports.transport import Attempt, UpstreamSink


class Scorer(Protocol):
    """One loaded model version."""

    pinned: Pinned

    def score(self, rows: Sequence[Row]) -> list[Scored]:
        """One result per row, in order; a row that cannot be scored has a `fault`, and the others stand. Blocks."""


class ModelRequest(msgspec.Struct, frozen=True, gc=False):
    """One row for one model."""

    model: Pinned
    row: bytes
    """A `Row` as msgpack."""
    timeout_ms: int
    slo_ms: int = 0
    """What the workflow promises at p99; 0: nothing."""


class Models(Protocol):
    """Scores rows in this process or in model workers."""

    def send(self, request: ModelRequest, sink: UpstreamSink) -> Attempt:
        """Start; the sink is never called before this returns.

        A result comes as status 200 and a `Scored` as JSON; a row that cannot be scored as status 422 with OpenAI's
        error shape; what went wrong otherwise (`overload`, `worker_lost`, `timeout`) as a failure of that kind.
        """
