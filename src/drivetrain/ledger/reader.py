"""The reader: frames of every segment folded into Calls, each exactly once.

Owns what frames mean together: which Call runs, which was interrupted, which Outcome holds. It never writes. Called by
the commands and by whoever needs whole Calls; totals come from the queries, which fold the same way.

Laws: a call id appears once, whatever was written twice (the first frame of each kind holds). A Call without a closed
frame is `running` while its writer lives, and `interrupted` once it is gone. Of the Outcomes of one (call, metric,
source) the last arrival holds, whether it names the Call by its id or by its workflow and business key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from drivetrain.core.calls import (
    Attribution,
    Call,
    ClosedV1,
    OpenedV1,
    Outcome,
    OutcomeV1,
    ReservedV1,
    SegmentV1,
    Stored,
)
from drivetrain.ledger.frames import Damage, Segment, decoded, frames, may_hold, records, segments

OUTCOME_TAG = b"\xa9outcome.1"


class LedgerReader:
    """Calls and Outcomes of a data folder, as they are when asked.

    `calls()` streams all of them in memory that grows by about 150 bytes a Call and by the Outcomes; `call()` finds
    one; `poll()` returns what ended since the last poll and reads only what is new.
    """

    def __init__(self, data_folder: Path) -> None:
        self._data_folder = data_folder
        self._polled = Fold()
        self._ends: dict[str, int] = {}
        """Segment -> how far `poll` has read it."""
        self._sealed: set[str] = set()
        self._damage: dict[tuple[str, int], Damage] = {}

    @property
    def problems(self) -> tuple[Damage, ...]:
        """What the last whole reading found that is no good frame: torn ends (normal), lost frames, orphans."""
        return tuple(self._damage[place] for place in sorted(self._damage))

    def calls(self, *, since_ns: int = 0, until_ns: int | None = None, outcomes: bool = True) -> Iterator[Call]:
        """Every Call opened in [since_ns, until_ns), about in the order in which they ended; unfinished ones last.

        outcomes: False leaves them out and saves a pass over the segments. Raises: NewerRecord.
        """
        found = segments(self._data_folder)
        damage: list[Damage] = []
        truths = Truths(found if outcomes else ())
        live = live_writers(found)
        for pair in _pairs(found, damage):
            opened_ns = pair.opened.opened_ns
            if opened_ns >= since_ns and (until_ns is None or opened_ns < until_ns):
                yield joined(pair, live, truths.of(pair.opened))
        self._damage = {(one.segment, one.offset): one for one in damage}

    def call(self, call_id: str) -> Call | None:
        """The one Call, or None. Only frames that name it are decoded; the others are searched."""
        found = segments(self._data_folder)
        for pair in _pairs(found, [], call_id):
            return joined(pair, live_writers(found), Truths(found, pair.opened).of(pair.opened))
        return None

    def poll(self) -> list[Call]:
        """Calls that ended (closed or interrupted) since the last poll, without Outcomes; the first poll: all."""
        return list(self.new())

    def new(self) -> Iterator[Call]:
        """As `poll`, one by one; read it to its end, or the rest comes with the next."""
        found = segments(self._data_folder)
        live = live_writers(found)
        damage: list[Damage] = []
        self._forget_all_but({segment.name for segment in found})
        for segment in found:
            if segment.name in self._sealed:
                continue
            start = self._ends.get(segment.name, 0)
            for offset, end, record in records(segment, damage, start):
                self._ends[segment.name] = end
                pair = self._polled.feed(record, segment, offset, end)
                if pair is not None:
                    yield joined(pair, live, ())
            if not segment.live:
                self._sealed.add(segment.name)
        for pair in (*self._polled.orphans(damage), *self._polled.unfinished(live)):
            yield joined(pair, live, ())
        self._damage.update({(one.segment, one.offset): one for one in damage})

    def _forget_all_but(self, names: set[str]) -> None:
        """What is known of segments that were deleted; nothing of their names comes back."""
        self._sealed &= names
        for name in self._ends.keys() - names:
            del self._ends[name]


class Pair(msgspec.Struct, frozen=True, gc=False):
    """The frames of one Call."""

    opened: OpenedV1
    closed: ClosedV1 | None
    writer: str
    segment: str
    """Where the later of its frames is."""
    offset: int
    orphan: bool = False
    """Its opened frame is missing; `opened` stands for it."""
    reserved: ReservedV1 | None = None
    """The last reservation of a Call without a closed frame."""

    @property
    def cost_nano_usd(self) -> int:
        """What the Call cost; where its end is unknown, what it may have cost at most, as budgets are charged."""
        if self.closed is not None:
            return self.closed.cost_nano_usd
        return self.reserved.open_cost_nano_usd if self.reserved is not None else 0


class _Lone(msgspec.Struct, frozen=True, gc=False):
    """A closed frame whose opened frame has not been seen."""

    closed: ClosedV1
    segment: Segment
    offset: int
    end: int


class Fold:
    """Frames in, Pairs out, each call id once. The first opened and the first closed frame of an id hold."""

    __slots__ = ("_ended", "_lone", "_open", "_reserved")

    def __init__(self) -> None:
        self._ended: set[str] = set()
        self._open: dict[str, Pair] = {}
        self._lone: dict[str, _Lone] = {}
        self._reserved: dict[str, ReservedV1] = {}
        """The last one of each Call that is open or not seen yet."""

    def feed(self, record: Stored, segment: Segment, offset: int, end: int) -> Pair | None:
        """The Pair that this frame completes, if it does."""
        if isinstance(record, ClosedV1):
            call_id = record.call_id
            if call_id in self._ended:
                return None
            self._reserved.pop(call_id, None)
            held = self._open.pop(call_id, None)
            if held is None:
                self._lone.setdefault(call_id, _Lone(record, segment, offset, end))
                return None
            self._ended.add(call_id)
            return Pair(held.opened, record, held.writer, segment.name, offset)
        if isinstance(record, OpenedV1):
            call_id = record.call_id
            if call_id in self._ended or call_id in self._open:
                return None
            lone = self._lone.pop(call_id, None)
            if lone is None:
                if record.reserved_number and call_id not in self._reserved:
                    self._reserved[call_id] = record.reservation  # type: ignore[assignment]
                self._open[call_id] = Pair(record, None, segment.writer, segment.name, offset)
                return None
            self._ended.add(call_id)
            return Pair(record, lone.closed, segment.writer, segment.name, offset)
        if isinstance(record, ReservedV1) and record.call_id not in self._ended and record.call_id not in self._lone:
            self._reserved[record.call_id] = record
        return None

    def orphans(self, damage: list[Damage]) -> list[Pair]:
        """Closed frames whose opened frame has not come, each also reported; they are done with then."""
        found = []
        for call_id, lone in self._lone.items():
            damage.append(Damage(lone.segment.name, lone.offset, lone.end - lone.offset, "orphan"))
            self._ended.add(call_id)
            opened = unknown_opened(lone.closed)
            found.append(Pair(opened, lone.closed, lone.segment.writer, lone.segment.name, lone.offset, True))
        self._lone.clear()
        return found

    def unfinished(self, live: set[str] | frozenset[str] = frozenset()) -> list[Pair]:
        """Calls without a closed frame whose writer is not in `live`; they are done with then."""
        found = []
        for pair in [pair for pair in self._open.values() if pair.writer not in live]:
            call_id = pair.opened.call_id
            del self._open[call_id]
            self._ended.add(call_id)
            reserved = self._reserved.pop(call_id, None)
            found.append(pair if reserved is None else msgspec.structs.replace(pair, reserved=reserved))
        return found


def _pairs(found: Iterable[Segment], damage: list[Damage], only: str = "") -> Iterator[Pair]:
    fold = Fold()
    needle = only.encode()
    for segment in found:
        if needle and not may_hold(segment, needle):
            continue
        for offset, end, record in records(segment, damage, holding=needle):
            if only and (isinstance(record, SegmentV1) or record.call_id != only):
                continue
            pair = fold.feed(record, segment, offset, end)
            if pair is not None:
                yield pair
    yield from fold.orphans(damage)
    yield from fold.unfinished()


def joined(pair: Pair, live: set[str], outcomes: Iterable[Outcome]) -> Call:
    """The Call that these frames tell of; live: writers whose process lives."""
    opened, closed = pair.opened, pair.closed
    if closed is None:
        return Call(
            call_id=opened.call_id,
            opened_ns=opened.opened_ns,
            snapshot=opened.snapshot,
            workflow=opened.workflow,
            door=opened.door,
            stream=opened.stream,
            attribution=opened.attribution,
            prices_date=opened.prices_date,
            status="running" if pair.writer in live else "interrupted",
            cost_nano_usd=0 if pair.writer in live else pair.cost_nano_usd,
            retained=opened.retained,
            request=opened.payload,
            outcomes=tuple(outcomes),
            features=opened.features,
            business_key=opened.business_key,
        )
    return Call(
        call_id=opened.call_id,
        opened_ns=opened.opened_ns,
        closed_ns=closed.closed_ns,
        snapshot=opened.snapshot,
        workflow=opened.workflow,
        door=opened.door,
        stream=opened.stream,
        attribution=opened.attribution,
        prices_date=opened.prices_date,
        status=closed.status,
        http_status=closed.http_status,
        variant=closed.variant,
        cost_nano_usd=closed.cost_nano_usd,
        attempts=closed.attempts,
        error=closed.error,
        finish_reason=closed.finish_reason,
        degraded=closed.degraded,
        notes=closed.notes,
        retained=max(opened.retained, closed.retained),
        request=opened.payload,
        answers=closed.payload,
        outcomes=tuple(outcomes),
        features=opened.features,
        business_key=opened.business_key,
        decision=closed.decision,
    )


def unknown_opened(closed: ClosedV1) -> OpenedV1:
    """What stands for a lost opened frame, so that the money of its Call is not lost too: nobody's, when it closed."""
    return OpenedV1(closed.call_id, closed.closed_ns, "", "", "", False, Attribution())


def live_writers(found: Iterable[Segment]) -> set[str]:
    """Writers whose process lives."""
    return {segment.writer for segment in found if segment.live}


class Truths:
    """The Outcomes in some segments, as they hold now.

    Memory grows with them. about: only what may be the truth about this Call is read.
    """

    __slots__ = ("_by_call", "_by_key")

    def __init__(self, found: Iterable[Segment], about: OpenedV1 | None = None) -> None:
        self._by_call: dict[str, dict[tuple[str, str], OutcomeV1]] = {}
        self._by_key: dict[tuple[str, str], dict[tuple[str, str], OutcomeV1]] = {}
        needles = [OUTCOME_TAG] if about is None else [about.call_id.encode(), about.business_key.encode()]
        for segment in found:
            for needle in needles:
                if needle and may_hold(segment, needle):
                    # Damage is reported by the pass over opened and closed frames.
                    for record in outcome_records(segment, holding=needle):
                        self.add(record)

    def add(self, record: OutcomeV1) -> None:
        """One that has arrived, in any order and any number of times."""
        if record.call_id:
            own = self._by_call.setdefault(record.call_id, {})
        else:
            own = self._by_key.setdefault((record.workflow, record.business_key), {})
        place = (record.metric, record.source)
        before = own.get(place)
        if before is None or later(record, before):
            own[place] = record

    def of(self, opened: OpenedV1) -> tuple[Outcome, ...]:
        """Those of one Call, named by its id or its business key, sorted by metric and source."""
        own = self._by_call.get(opened.call_id, {})
        if opened.business_key:
            more = self._by_key.get((opened.workflow, opened.business_key), {})
            own = own | {place: one for place, one in more.items() if place not in own or later(one, own[place])}
        return _outcomes(own)

    def by_call(self) -> dict[str, tuple[Outcome, ...]]:
        """Call id -> those that name it, whether or not there is such a Call."""
        return {call_id: _outcomes(own) for call_id, own in self._by_call.items()}


def collect_outcomes(found: Iterable[Segment]) -> dict[str, tuple[Outcome, ...]]:
    """Call id -> the Outcomes that name it, as they hold now, sorted by metric and source."""
    return Truths(found).by_call()


def outcome_records(segment: Segment, start: int = 0, *, holding: bytes = b"") -> Iterator[OutcomeV1]:
    """The Outcomes in a segment, or those whose frames hold these bytes; other frames are not decoded."""
    damage: list[Damage] = []
    for frame in frames(segment, damage, start, holding=holding or OUTCOME_TAG):
        if frame.body[1 : 1 + len(OUTCOME_TAG)] == OUTCOME_TAG:
            record = decoded(frame, segment, damage)
            if isinstance(record, OutcomeV1):
                yield record


def _outcomes(own: dict[tuple[str, str], OutcomeV1]) -> tuple[Outcome, ...]:
    return tuple(
        Outcome(metric=one.metric, source=one.source, value=one.value, event_ns=one.event_ns, arrived_ns=one.arrived_ns)
        for _, one in sorted(own.items())
    )


def later(one: OutcomeV1, other: OutcomeV1) -> bool:
    """Whether `one` holds over `other`: by arrival, then event, then value, whatever was read first."""
    return _rank(one) > _rank(other)


def _rank(outcome: OutcomeV1) -> tuple[int, int, str]:
    return outcome.arrived_ns, outcome.event_ns, str(outcome.value)
