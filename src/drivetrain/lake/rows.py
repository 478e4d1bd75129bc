"""Rows beyond a plan: frames of the segments folded into rows of `calls` and `outcomes`, for a roll and for a reader.

Owns what "beyond a plan" means. `collect` makes the rows of one roll: with a plan given, exactly those of that plan,
whenever it is asked; without one, as much as a roll may hold, and the plan that says so. `Tail` is what a reader adds
to the tables: everything beyond the plan that its version of them stands at, running and interrupted Calls included.
Called by the roller and by the lake's readers. It writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.calls import ClosedV1, OpenedV1, OutcomeV1, ReservedV1, Stored
from drivetrain.lake.columns import (
    CALL_COLUMNS,
    CALL_STATISTICS,
    OUTCOME_COLUMNS,
    OUTCOME_STATISTICS,
    PARTITION_BY,
    CallRows,
    OutcomeRows,
    call_of,
    outcome_of,
    table_of,
)
from drivetrain.lake.plans import Carried, Plan, PlanGone, still_there
from drivetrain.ledger.frames import HEAD, Damage, Frame, Segment, decoded, frames, read_range, segments
from drivetrain.ledger.reader import Fold, Pair, live_writers, unknown_opened

__all__ = [
    "CALL_COLUMNS",
    "CALL_STATISTICS",
    "OUTCOME_COLUMNS",
    "OUTCOME_STATISTICS",
    "PARTITION_BY",
    "Collected",
    "Limits",
    "Tail",
    "TailRows",
    "call_of",
    "collect",
    "outcome_of",
    "tail",
]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one roll may hold: it is in memory as a whole, and one commit per table."""

    rows: int = 50_000
    """Calls, and Outcomes, each: about 40 MB as Arrow. The last block may go beyond by what it holds."""
    bytes: int = 128 * 1024 * 1024
    """Of records: payloads count here."""


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one roll."""

    plan: Plan
    calls: CallRows
    outcomes: OutcomeRows
    damage: tuple[Damage, ...]
    more: bool
    """Whether a limit was reached before the segments' end."""


class TailRows(msgspec.Struct, frozen=True, kw_only=True):
    """What lies beyond the tables."""

    calls: Any
    """Arrow table of `CALL_COLUMNS`."""
    outcomes: Any
    """Arrow table of `OUTCOME_COLUMNS`."""
    doubtful: tuple[str, ...]
    """Ids of Calls of which a frame may be a second copy: their rows count only where the table has none of that id."""
    problems: tuple[Damage, ...]


def collect(
    data_folder: Path,
    before: Plan,
    *,
    ledger: str,
    number: int,
    upto: Plan | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    known: Callable[[Collection[str]], Collection[str]] = lambda _: (),
    now_ns: int = 0,
) -> Collected:
    """The rows of roll `number`, which begins where `before` ends.

    upto: its plan, where it is made again. known: of these ids, those that the table has; asked once, and only for
    Calls of which a frame may be a second copy. Raises: NewerRecord, OSError.
    """
    found = segments(data_folder)
    live = live_writers(found)
    reading = _Reading(CallRows(ledger, number), OutcomeRows(ledger, number), limits if upto is None else None)
    _feed_carried(reading.fold, found, before, reading.damage, reading.reserved)
    ends: dict[str, int] = {}
    for segment in found:
        start = before.ends.get(segment.name, 0)
        stop = segment.size if upto is None else min(segment.size, upto.ends.get(segment.name, start))
        end = reading.read(segment, start, stop)
        if end:
            ends[segment.name] = end
    if upto is None:
        unread = {segment.writer for segment in found if ends.get(segment.name, 0) < segment.size}
        gone = frozenset(segment.writer for segment in found) - live - unread
    else:
        gone = frozenset(upto.gone)
    left = reading.fold.open()
    doubtful = [*reading.doubtful, *reading.fold.lone(reading.damage), *(pair for pair in left if pair.writer in gone)]
    if upto is None:
        dropped = frozenset(known([pair.opened.call_id for pair in doubtful]) if doubtful else ())
    else:
        dropped = frozenset(upto.dropped)
    for pair in doubtful:
        if pair.opened.call_id not in dropped:
            reading.calls.add(pair)
    plan = upto or Plan(
        number=number,
        made_ns=now_ns,
        ends=ends,
        carried=_carried([pair for pair in left if pair.writer not in gone], reading.reserved),
        gone=tuple(sorted(gone)),
        dropped=tuple(sorted(dropped)),
    )
    return Collected(
        plan=plan,
        calls=reading.calls,
        outcomes=reading.outcomes,
        damage=tuple(reading.damage),
        more=reading.full,
    )


class _Reading:
    """One pass over what lies beyond a plan, until a roll is full. limits: None where its plan says how far to go."""

    __slots__ = ("_limits", "_size", "calls", "damage", "doubtful", "fold", "full", "outcomes", "reserved")

    def __init__(self, calls: CallRows, outcomes: OutcomeRows, limits: Limits | None) -> None:
        self._limits = limits
        self._size = 0
        self.calls = calls
        self.outcomes = outcomes
        self.fold = _OpenFold()
        self.full = False
        """A limit was reached, and something is left."""
        self.reserved: dict[str, tuple[str, int]] = {}
        """Call -> segment and offset of its last reservation beyond the first."""
        self.doubtful: list[Pair] = []
        """Calls whose frames came in no order that a journal writes: one of them may be a second copy."""
        self.damage: list[Damage] = []

    def read(self, segment: Segment, start: int, stop: int) -> int:
        """How far this pass comes in a segment."""
        if self.full or start >= stop:
            return start
        end = at = start
        for frame in frames(segment, self.damage, start, stop):
            if frame.offset != at:
                at = frame.offset
                if self._is_enough():
                    # Between two offsets only: the frames of a block share one, and are rolled together.
                    self.full = True
                    return at
            end = max(end, frame.end)
            self._size += len(frame.body)
            record = decoded(frame, segment, self.damage)
            if record is not None:
                self._take(record, segment, frame)
        return end if segment.live else stop

    def _take(self, record: Stored, segment: Segment, frame: Frame) -> None:
        kind = type(record)  # compared, since this runs for every record and `isinstance` takes twice as long
        if kind is OutcomeV1:
            self.outcomes.add(record, segment.name)  # type: ignore[arg-type]
            return
        pair = self.fold.feed(record, segment, frame.offset, frame.end)
        if pair is not None:
            if kind is ClosedV1:
                self.calls.add(pair)
            else:
                self.doubtful.append(pair)
        elif kind is ReservedV1:
            self.reserved[record.call_id] = (segment.name, frame.offset)  # type: ignore[union-attr]

    def _is_enough(self) -> bool:
        limits = self._limits
        return limits is not None and (
            self.calls.count >= limits.rows or self.outcomes.count >= limits.rows or self._size >= limits.bytes
        )


def tail(plan: Plan | None, data_folder: Path, *, outcomes: Plan | None = None) -> TailRows:
    """All rows beyond `plan`; outcomes: where that table stands at another one. Raises: PlanGone, NewerRecord."""
    return Tail(data_folder, plan, outcomes or plan).read()


class Tail:
    """What the segments hold beyond two plans, decoded once: each `read` adds what was written since the last.

    It grows with what no roll has taken yet; take a new one when the tables stand at newer plans. Not for threads.
    """

    def __init__(self, data_folder: Path, calls: Plan | None, outcomes: Plan | None, *, ledger: str = "") -> None:
        self._data_folder = data_folder
        self._calls_plan = calls or Plan(number=0)
        self._outcomes_plan = outcomes or Plan(number=0)
        self._ledger = ledger
        self._fold: _OpenFold | None = None
        self._ended = CallRows(ledger, None)
        self._outcomes = OutcomeRows(ledger, None)
        self._ends: dict[str, int] = {}
        self._sealed: set[str] = set()
        self._doubtful: list[str] = []
        self._damage: dict[tuple[str, int], Damage] = {}

    def read(self) -> TailRows:
        """Everything beyond the plans, as of now. Raises: PlanGone where the tables must be read anew, NewerRecord."""
        damage: list[Damage] = []
        found = segments(self._data_folder)
        live = live_writers(found)
        if self._fold is None:
            self._fold = _OpenFold()
            _feed_carried(self._fold, found, self._calls_plan, damage, {})
        for segment in found:
            self._read_segment(self._fold, segment, damage)
        # A segment that was deleted meanwhile has no frames; only what a newer plan has rolled is ever deleted.
        for plan in (self._calls_plan, self._outcomes_plan):
            if not still_there(self._data_folder, plan):
                raise _gone(plan)
        lone = self._fold.lone(damage)
        self._damage.update({(one.segment, one.offset): one for one in damage})
        unfinished = CallRows(self._ledger, None)
        for pair in lone:
            unfinished.add(pair)
        for pair in self._fold.open():
            unfinished.add(pair, running=pair.writer in live)
        return TailRows(
            calls=table_of(CALL_COLUMNS, [*self._ended.batches(), *unfinished.batches()]),
            outcomes=table_of(OUTCOME_COLUMNS, self._outcomes.batches()),
            doubtful=(*self._doubtful, *(pair.opened.call_id for pair in lone)),
            problems=tuple(self._damage[place] for place in sorted(self._damage)),
        )

    def _read_segment(self, fold: Fold, segment: Segment, damage: list[Damage]) -> None:
        name = segment.name
        if name in self._sealed:
            return
        calls_from = self._calls_plan.ends.get(name, 0)
        outcomes_from = self._outcomes_plan.ends.get(name, 0)
        start = self._ends.get(name, min(calls_from, outcomes_from))
        end = start
        if start < segment.size:
            for frame in frames(segment, damage, start):
                end = max(end, frame.end)
                record = decoded(frame, segment, damage)
                if record is None:
                    continue
                if isinstance(record, OutcomeV1):
                    if frame.offset >= outcomes_from:
                        self._outcomes.add(record, name)
                elif frame.offset >= calls_from:
                    pair = fold.feed(record, segment, frame.offset, frame.end)
                    if pair is not None:
                        self._ended.add(pair)
                        if isinstance(record, OpenedV1):
                            self._doubtful.append(pair.opened.call_id)
        self._ends[name] = end
        if not segment.live:
            self._sealed.add(name)


class _OpenFold(Fold):
    """A Fold that tells what is unfinished and goes on."""

    __slots__ = ()

    def open(self) -> list[Pair]:
        """Calls without a closed frame, each with its last reservation."""
        reserved = self._reserved
        return [
            msgspec.structs.replace(pair, reserved=reserved[call_id]) if call_id in reserved else pair
            for call_id, pair in self._open.items()
        ]

    def lone(self, damage: list[Damage]) -> list[Pair]:
        """Closed frames whose opened frame has not come; each is also reported."""
        found = []
        for one in self._lone.values():
            damage.append(Damage(one.segment.name, one.offset, one.end - one.offset, "orphan"))
            opened = unknown_opened(one.closed)
            found.append(Pair(opened, one.closed, one.segment.writer, one.segment.name, one.offset, True))
        return found


def _feed_carried(
    fold: Fold, found: Sequence[Segment], plan: Plan, damage: list[Damage], reserved: dict[str, tuple[str, int]]
) -> None:
    """Let `fold` know the Calls that still ran at `plan`; reserved: filled with where their last reservations are."""
    for segment in found:
        wanted: dict[int, set[str]] = {}
        for carried in plan.carried.get(segment.name, ()):
            wanted.setdefault(carried.offset, set()).add(carried.call_id)
        for offset in sorted(wanted):
            ids = wanted[offset]
            for record, end in _records_at(segment, offset, damage):
                if isinstance(record, OpenedV1 | ReservedV1) and record.call_id in ids:
                    if isinstance(record, ReservedV1):
                        reserved[record.call_id] = (segment.name, offset)
                    fold.feed(record, segment, offset, end)


def _records_at(segment: Segment, offset: int, damage: list[Damage]) -> Iterator[tuple[Stored, int]]:
    """The records of the one frame or block at `offset`."""
    head = read_range(segment, offset, offset + HEAD.size)
    if len(head) < HEAD.size:
        return
    length, _ = HEAD.unpack(head)
    for frame in frames(segment, damage, offset, offset + HEAD.size + length):
        record = decoded(frame, segment, damage)
        if record is not None:
            yield record, frame.end


def _carried(pairs: Sequence[Pair], reserved: dict[str, tuple[str, int]]) -> dict[str, tuple[Carried, ...]]:
    """Segment -> the frames to be read again for these Calls."""
    places: dict[str, set[tuple[int, str]]] = {}
    for pair in pairs:
        call_id = pair.opened.call_id
        places.setdefault(pair.segment, set()).add((pair.offset, call_id))
        if call_id in reserved:
            segment, offset = reserved[call_id]
            places.setdefault(segment, set()).add((offset, call_id))
    return {name: tuple(Carried(*place) for place in sorted(own)) for name, own in places.items()}


def _gone(plan: Plan) -> PlanGone:
    return PlanGone(
        f"The records beyond roll {plan.number} moved into the lake while they were read.",
        do="Ask again: the tables have them now.",
    )
