"""From rows to answers: a batch is scored so that a row which breaks it harms no other, and each sink hears its result.

Owns both halves that the doors share. `local` and `worker` score with it; `local` and `pool` answer with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from drivetrain.core.errors import DrivetrainError, error_body
from drivetrain.core.models import ROW_DECODER, Row, Scored
from drivetrain.ports.inference import Scorer
from drivetrain.ports.transport import UpstreamFailure, UpstreamHead, UpstreamSink

ROW_BYTES_MAX = 1024 * 1024
"""Of one row: a ranking of a thousand candidates with a hundred columns fits."""
DETAIL_CHARS_MAX = 500
"""Of what is told about a failure."""
_HEADERS = {b"content-type": b"application/json"}
_SCORED_HEAD = UpstreamHead(200, _HEADERS)
_FAULTY_HEAD = UpstreamHead(422, _HEADERS)
_JSON = msgspec.json.Encoder()


class Broken(msgspec.Struct, frozen=True):
    """A row on which the model itself failed."""

    detail: str


Result = Scored | Broken


def score_rows(scorer: Scorer, rows: Sequence[bytes]) -> list[Result]:
    """One result per row, in order. rows: each a `Row` as msgpack.

    Where a batch raises, its halves are scored apart, so that only the rows at fault are `Broken`; k such rows among n
    cost at most 2 k log2(n) further batches.
    """
    decoded: list[Row | None] = []
    for row in rows:
        try:
            decoded.append(ROW_DECODER.decode(row))
        except msgspec.MsgspecError:
            decoded.append(None)
    whole = [row for row in decoded if row is not None]
    scored = iter(_score(scorer, whole) if whole else ())
    return [Scored(fault="The row is no list of values.") if row is None else next(scored) for row in decoded]


def _score(scorer: Scorer, rows: Sequence[Row]) -> list[Result]:
    try:
        results = scorer.score(rows)
    except Exception as fault:  # noqa: BLE001  the boundary to a model's library
        if len(rows) > 1:
            half = len(rows) // 2
            return _score(scorer, rows[:half]) + _score(scorer, rows[half:])
        # What a library says may quote the row.
        told = str(fault) if isinstance(fault, DrivetrainError) else type(fault).__name__
        return [Broken(f"{scorer.pinned.id} failed on the row: {told}"[:DETAIL_CHARS_MAX])]
    if len(results) != len(rows):
        return [Broken(f"{scorer.pinned.id} gave {len(results)} results for {len(rows)} rows")] * len(rows)
    return list(results)


def encoded(scored: Scored) -> bytes:
    """A `Scored` as JSON."""
    return _JSON.encode(scored)


def give(sink: UpstreamSink, body: bytes) -> None:
    """Answer with a `Scored` as JSON."""
    _give(sink, _SCORED_HEAD, body)


def give_fault(sink: UpstreamSink, fault: str) -> None:
    """Answer that the row could not be scored."""
    _give(sink, _FAULTY_HEAD, error_body(fault, kind="invalid_request_error", code="row_refused"))


def fail(sink: UpstreamSink, kind: str, detail: str, *, sent: bool) -> None:
    """End without an answer."""
    try:
        sink.on_failure(UpstreamFailure(kind, detail, sent))
    except Exception as fault:  # noqa: BLE001  the boundary to the sink
        sink.on_fault(fault)


def _give(sink: UpstreamSink, head: UpstreamHead, body: bytes) -> None:
    try:
        sink.on_head(head)
        sink.on_chunk(body)
        sink.on_end()
    except Exception as fault:  # noqa: BLE001  the boundary to the sink
        sink.on_fault(fault)
