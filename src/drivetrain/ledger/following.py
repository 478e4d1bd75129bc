"""What comes into the ledger, as it comes: Calls that end, and Outcomes, each read once.

For who follows for long and needs no past: memory holds the Calls that run and no ids of those that ended, so it does
not grow. Who wants all Calls, each exactly once for sure, asks the `reader`. Never writes. Called by the watcher of a
rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from drivetrain.core.calls import Call, ClosedV1, OpenedV1, OutcomeV1
from drivetrain.ledger.frames import Damage, Segment, records, segments
from drivetrain.ledger.reader import Pair, joined, live_writers

OPEN_MAX = 100_000
"""Calls that run at once, all writers together, at 0.5 KB each; beyond it the oldest are given up."""
RECORDS_A_BREATH = 2_000
"""After so many records whoever reads may show that it lives: some 20 to 40 ms."""


class Follower:
    """A data folder, followed from a moment on.

    since_ns: Calls that opened before need not be told; segments that nobody wrote to since are not read.
    breathe: called now and then while much is read.
    """

    def __init__(self, data_folder: Path, since_ns: int, breathe: Callable[[], None] = lambda: None) -> None:
        self.lost = False
        """Whether a segment went, as erasures delete what is rolled, that may have held more than was read of it."""
        self._data_folder = data_folder
        self._since_ns = since_ns
        self._breathe = breathe
        self._ends: dict[str, int] = {}
        """Segment -> how far it was read; -1: to its end, and nobody writes to it any more."""
        self._open: dict[str, Pair] = {}

    def new(self) -> Iterator[Call | OutcomeV1]:
        """What ended or came since this was asked before: Calls first, then the Outcomes. Read it to its end.

        A Call whose writer died is told as `interrupted`. Damaged frames are passed over, as every reader does.
        Raises: NewerRecord.
        """
        found = segments(self._data_folder)
        live = live_writers(found)
        truths: list[OutcomeV1] = []
        for name in self._ends.keys() - {one.name for one in found}:
            self.lost |= self._ends.pop(name) >= 0
        for segment in found:
            yield from self._read(segment, live, truths)
        for call_id in [call_id for call_id, pair in self._open.items() if pair.writer not in live]:
            yield joined(self._open.pop(call_id), live, ())
        yield from truths

    def _read(self, segment: Segment, live: set[str], truths: list[OutcomeV1]) -> Iterator[Call]:
        start = self._ends.get(segment.name)
        if start is None:
            start = -1 if self._is_old(segment) else 0
        if start >= 0:
            damage: list[Damage] = []
            for count, (offset, end, record) in enumerate(records(segment, damage, start)):
                start = end
                if isinstance(record, OpenedV1):
                    if record.opened_ns >= self._since_ns:
                        self._opens(msgspec.structs.replace(record, payload=b""), segment, offset)
                elif isinstance(record, ClosedV1):
                    held = self._open.pop(record.call_id, None)
                    if held is not None:
                        pair = Pair(held.opened, record, held.writer, segment.name, offset)
                        yield joined(pair, live, ())
                elif isinstance(record, OutcomeV1):
                    truths.append(record)
                if count % RECORDS_A_BREATH == RECORDS_A_BREATH - 1:
                    self._breathe()
            if not segment.live:
                start = -1
        self._ends[segment.name] = start

    def _opens(self, opened: OpenedV1, segment: Segment, offset: int) -> None:
        if len(self._open) >= OPEN_MAX:
            del self._open[next(iter(self._open))]
        self._open[opened.call_id] = Pair(opened, None, segment.writer, segment.name, offset)

    def _is_old(self, segment: Segment) -> bool:
        """Whether nothing of it is from `since_ns` on."""
        if segment.live:
            return False
        try:
            return segment.path.stat().st_mtime_ns < self._since_ns
        except FileNotFoundError:
            return True
