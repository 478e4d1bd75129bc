"""Parts: ranges of segments turned into Parquet once, so that a query decodes only what is new.

Owns `data_folder/cache`: never the truth, deleted at will, made anew by the next query. A segment is append-only, so a
range of it that ends in a whole frame never changes; each range of about `PART_BYTES`, and the rest of a segment whose
writer has left it, becomes one part. A part holds its whole Calls and its Outcomes as Parquet; frames whose other half
is in another part are kept as frames and folded by each query. Called by the queries only.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from drivetrain.core.calls import AttemptV1, ClosedV1, OpenedV1, OutcomeV1, ReservedV1, Stored
from drivetrain.core.codec import JSON
from drivetrain.ledger.frames import Damage, Segment, decoded, frames, read_range
from drivetrain.ledger.reader import Fold, Pair

if TYPE_CHECKING:
    import duckdb

PART_BYTES = 4 * 1024 * 1024
"""Decoded by a query at most per open segment: about 12,000 Calls, a third of a second."""
NOBODY: frozenset[str] = frozenset()
PARTS_VERSION = "parts.1"
"""Part of the folder's name: parts of another layout are not read."""

CALL_COLUMNS = {
    "call_id": "VARCHAR",
    "segment": "VARCHAR",
    "place": "BIGINT",
    "rank": "TINYINT",
    "opened_ns": "BIGINT",
    "latency_us": "BIGINT",
    "snapshot": "VARCHAR",
    "workflow": "VARCHAR",
    "door": "VARCHAR",
    "tenant": "VARCHAR",
    "team": "VARCHAR",
    "use_case": "VARCHAR",
    "key": "VARCHAR",
    "user": "VARCHAR",
    "tags": "VARCHAR[]",
    "status": "VARCHAR",
    "variant": "VARCHAR",
    "model": "VARCHAR",
    "cost_nano_usd": "BIGINT",
    "attempt_count": "BIGINT",
    "escalated": "BOOLEAN",
    "input_tokens": "BIGINT",
    "input_cached_tokens": "BIGINT",
    "output_tokens": "BIGINT",
    "reasoning_tokens": "BIGINT",
    "attempts": "STRUCT(variant VARCHAR, model VARCHAR, purpose VARCHAR, counted TINYINT, escalated BOOLEAN, "
    "latency_us BIGINT, input_tokens BIGINT, input_cached_tokens BIGINT, output_tokens BIGINT, "
    "reasoning_tokens BIGINT, cost_nano_usd BIGINT)[]",
}
OUTCOME_COLUMNS = {
    "call_id": "VARCHAR",
    "metric": "VARCHAR",
    "source": "VARCHAR",
    "text": "VARCHAR",
    "number": "DOUBLE",
    "event_ns": "BIGINT",
    "arrived_ns": "BIGINT",
}


class AttemptRow(msgspec.Struct, frozen=True, gc=False):
    """One attempt as a query sees it."""

    variant: str
    model: str
    purpose: str
    counted: int
    """0 for the row that stands for a Call's money or existence where no attempt carries it."""
    escalated: bool
    latency_us: int | None
    input_tokens: int = 0
    input_cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nano_usd: int = 0


class CallRow(msgspec.Struct, frozen=True, gc=False):
    """One Call as a query sees it; the fields are `CALL_COLUMNS`."""

    call_id: str
    segment: str
    place: int
    rank: int
    """0: both frames; 1: the opened frame is lost; 2: not closed. The lowest holds where an id appears twice."""
    opened_ns: int
    latency_us: int | None
    snapshot: str
    workflow: str
    door: str
    tenant: str
    team: str
    use_case: str
    key: str
    user: str
    tags: tuple[str, ...]
    status: str
    variant: str
    model: str
    cost_nano_usd: int
    attempt_count: int
    escalated: bool
    input_tokens: int
    input_cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    attempts: list[AttemptRow]


class OutcomeRow(msgspec.Struct, frozen=True, gc=False):
    """One Outcome as a query sees it; the fields are `OUTCOME_COLUMNS`."""

    call_id: str
    metric: str
    source: str
    text: str
    number: float | None
    event_ns: int
    arrived_ns: int


class Part(msgspec.Struct, frozen=True):
    """What a part's files hold; written last, so that a part without it does not exist."""

    segment: str
    start: int
    end: int
    calls: int
    outcomes: int
    halves: int
    """Frames whose other half is elsewhere."""
    damage: tuple[Damage, ...]


class PartFiles(msgspec.Struct, frozen=True):
    """A part and where it lies."""

    part: Part
    stem: Path

    @property
    def calls(self) -> Path:
        """Parquet of its whole Calls, where it has any."""
        return self.stem.with_name(self.stem.name + ".calls.parquet")

    @property
    def outcomes(self) -> Path:
        """Parquet of its Outcomes, where it has any."""
        return self.stem.with_name(self.stem.name + ".outcomes.parquet")

    @property
    def halves(self) -> Path:
        """Frames whose other half is elsewhere, where it has any."""
        return self.stem.with_name(self.stem.name + ".halves")


def parts_of(segment: Segment, folder: Path, connection: duckdb.DuckDBPyConnection) -> list[PartFiles]:
    """The parts of a segment from its start on, made where they are due. Raises: OSError, NewerRecord."""
    found: list[PartFiles] = []
    end = 0
    known = _known_parts(segment, folder)
    while end < segment.size:
        files = known.get(end)
        if files is None:
            if segment.size - end < PART_BYTES and segment.live:
                break
            files = _make_part(segment, end, folder, connection)
            if files is None:
                break
        found.append(files)
        end = files.part.end
    return found


def load_rows(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    columns: dict[str, str],
    rows: Iterable[msgspec.Struct],
    near: Path,
) -> int:
    """Make `table` of these columns with these rows, by way of a file near `near`; how many there were."""
    definition = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
    connection.execute(f"CREATE OR REPLACE TEMP TABLE {table} ({definition})")
    lines = near.with_name(f".{near.name}.{os.getpid():x}.{secrets.token_hex(4)}.ndjson")
    count = 0
    try:
        with lines.open("wb") as file:
            for row in rows:
                file.write(JSON.encode(row))
                file.write(b"\n")
                count += 1
        if count:
            kinds = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in columns.items())
            connection.execute(
                f"INSERT INTO {table} SELECT * FROM read_json({literal(str(lines))}, format='newline_delimited', "  # noqa: S608 - names and paths of our own
                f"columns={{{kinds}}}, maximum_object_size=67108864)"
            )
    finally:
        lines.unlink(missing_ok=True)
    return count


def literal(text: str) -> str:
    """`text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def call_row(pair: Pair, live: set[str] | frozenset[str]) -> CallRow:
    """A Call's row; live: writers whose process lives."""
    opened, closed = pair.opened, pair.closed
    who = opened.attribution
    attempts: list[AttemptRow] = []
    running = closed is None and pair.writer in live
    cost = unattributed = 0 if running else pair.cost_nano_usd
    tokens = cached = output = reasoning = 0
    escalated, model = False, ""
    for attempt in closed.attempts if closed is not None else ():
        attempts.append(_attempt_row(attempt))
        usage = attempt.usage
        tokens += usage.input_tokens
        cached += usage.input_cached_tokens
        output += usage.output_tokens
        reasoning += usage.reasoning_tokens
        unattributed -= attempt.cost_nano_usd
        escalated = escalated or attempt.verdict == "escalated"
        if attempt.verdict == "accepted":
            model = attempt.model
    count = len(attempts)
    if not attempts or unattributed:
        attempts.append(AttemptRow("", "", "", 0, False, None, cost_nano_usd=unattributed))
    status = "running" if running else "interrupted" if closed is None else closed.status
    return CallRow(
        call_id=opened.call_id,
        segment=pair.segment,
        place=pair.offset,
        rank=1 if pair.orphan else 0 if closed is not None else 2,
        opened_ns=opened.opened_ns,
        latency_us=(closed.closed_ns - opened.opened_ns) // 1000
        if closed is not None and status == "answered" and not pair.orphan
        else None,
        snapshot=opened.snapshot,
        workflow=opened.workflow,
        door=opened.door,
        tenant=who.tenant,
        team=who.team,
        use_case=who.use_case,
        key=who.key,
        user=who.user,
        tags=who.tags,
        status=status,
        variant=closed.variant if closed is not None else "",
        model=model,
        cost_nano_usd=cost,
        attempt_count=count,
        escalated=escalated,
        input_tokens=tokens,
        input_cached_tokens=cached,
        output_tokens=output,
        reasoning_tokens=reasoning,
        attempts=attempts,
    )


def outcome_row(record: OutcomeV1) -> OutcomeRow:
    """An Outcome's row; booleans count as 0 and 1."""
    value = record.value
    text = value if isinstance(value, str) else JSON.encode(value).decode()
    number = None if isinstance(value, str) else float(value)
    event_ns = min(max(record.event_ns, -(2**63)), 2**63 - 1)  # one odd record may not end every query
    return OutcomeRow(record.call_id, record.metric, record.source, text, number, event_ns, record.arrived_ns)


def _attempt_row(attempt: AttemptV1) -> AttemptRow:
    usage = attempt.usage
    return AttemptRow(
        attempt.variant,
        attempt.model,
        attempt.purpose,
        1,
        attempt.verdict == "escalated",
        attempt.ended_us - attempt.sent_us if attempt.ended_us else None,
        usage.input_tokens,
        usage.input_cached_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
        attempt.cost_nano_usd,
    )


def _known_parts(segment: Segment, folder: Path) -> dict[int, PartFiles]:
    known: dict[int, PartFiles] = {}
    for path in folder.glob(f"{segment.path.stem}.*.part"):
        try:
            part = msgspec.json.decode(path.read_bytes(), type=Part)
        except (OSError, msgspec.MsgspecError):
            continue
        if part.start < part.end <= segment.size:
            known[part.start] = PartFiles(part, path.with_suffix(""))
    return known


def _make_part(segment: Segment, start: int, folder: Path, connection: duckdb.DuckDBPyConnection) -> PartFiles | None:
    """The part from `start` on, or None where a live segment has too few whole frames."""
    damage: list[Damage] = []
    halves: list[bytes] = []
    outcomes: list[OutcomeRow] = []
    reading = _Range(segment, start, damage)
    stem = folder / f"{segment.path.stem}.{start:012x}"
    calls = load_rows(connection, "part_calls", CALL_COLUMNS, reading.whole_calls(outcomes, halves), stem)
    if segment.live and reading.end - start < PART_BYTES:
        return None
    part = Part(segment.name, start, reading.end, calls, len(outcomes), len(halves), tuple(damage))
    files = PartFiles(part, stem)
    if calls:
        _copy(connection, "part_calls", files.calls)
    if load_rows(connection, "part_outcomes", OUTCOME_COLUMNS, outcomes, stem):
        _copy(connection, "part_outcomes", files.outcomes)
    if halves:
        _replace(files.halves, b"".join(halves))
    _replace(stem.with_name(stem.name + ".part"), JSON.encode(part))
    connection.execute("DROP TABLE part_calls; DROP TABLE part_outcomes")
    return files


class _Range:
    """One pass over the frames of a part."""

    def __init__(self, segment: Segment, start: int, damage: list[Damage]) -> None:
        self._segment = segment
        self._start = start
        self._damage = damage
        self.end = start

    def whole_calls(self, outcomes: list[OutcomeRow], halves: list[bytes]) -> Iterator[CallRow]:
        """Rows of Calls both of whose frames are here; fills `outcomes` and, at the end, `halves` in their order."""
        segment = self._segment
        fold = Fold()
        waiting: dict[str, list[tuple[int, int]]] = {}
        """Of each Call that is not whole yet: its opened frame and its last reservation."""
        lone: list[tuple[int, int]] = []
        for frame in frames(segment, self._damage, self._start):
            record = decoded(frame, segment, self._damage)
            self.end = frame.end
            if isinstance(record, OutcomeV1):
                outcomes.append(outcome_row(record))
            elif isinstance(record, OpenedV1):
                if record.call_id not in waiting:
                    waiting[record.call_id] = [(frame.offset, frame.end)]
                    fold.feed(record, segment, frame.offset, frame.end)
            elif isinstance(record, ReservedV1):
                place = (frame.offset, frame.end)
                if record.call_id in waiting:
                    waiting[record.call_id][1:] = [place]
                else:
                    lone.append(place)
            elif isinstance(record, ClosedV1):
                if record.call_id not in waiting:
                    lone.append((frame.offset, frame.end))
                else:
                    pair = fold.feed(record, segment, frame.offset, frame.end)
                    if pair is not None:
                        del waiting[record.call_id]
                        yield call_row(pair, NOBODY)
            if frame.end - self._start >= PART_BYTES:
                break
        else:
            if not segment.live:
                self.end = segment.size
        halves.extend(
            read_range(segment, offset, end) for offset, end in sorted([*chain.from_iterable(waiting.values()), *lone])
        )


def half_records(files: PartFiles, damage: list[Damage]) -> Iterator[tuple[int, int, Stored]]:
    """The frames of a part whose other half is elsewhere."""
    segment = Segment(files.halves, files.halves.stat().st_size, False)
    for frame in frames(segment, damage):
        record = decoded(frame, segment, damage)
        if record is not None:
            yield frame.offset, frame.end, record


def _copy(connection: duckdb.DuckDBPyConnection, table: str, path: Path) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid():x}.{secrets.token_hex(4)}")
    connection.execute(f"COPY {table} TO {literal(str(fresh))} (FORMAT parquet)")
    fresh.rename(path)


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid():x}.{secrets.token_hex(4)}")
    fresh.write_bytes(content)
    fresh.rename(path)
