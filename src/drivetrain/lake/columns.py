"""Columns of the tables `calls` and `outcomes`, and records as Arrow rows of them.

Owns the tables' schema and the way there and back: everything that a Call knows is in its row, and `call_of` makes the
same Call of it. Values pass from Python to Arrow by columns, some thousands of rows at a time, which costs a tenth of
going through JSON. Arrow (`arro3`) is imported when the first row is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import accumulate, chain, islice
from typing import Any

from drivetrain.core.calls import AttemptV1, Attribution, Call, ClosedV1, Outcome, OutcomeV1
from drivetrain.core.codec import JSON
from drivetrain.core.features import FeaturesSeenV1
from drivetrain.core.ids import is_call_id
from drivetrain.core.money import Usage
from drivetrain.core.policies import DecisionV1
from drivetrain.ledger.reader import Pair

NS_PER_DAY = 86_400_000_000_000
PIECE_ROWS_MAX = 65_536
"""A batch of this size is not copied any more when others follow."""
BATCH_ROWS = 1_024
"""Rows that wait as Python values before they become Arrow: about 4 MB, which a processor's cache still holds. A batch
costs 0.6 ms whatever it holds, so that much smaller ones are dearer."""
REPEATED_ROWS_MAX = 4 * BATCH_ROWS
"""A batch of Calls may have several Attempts each; beyond this a column is made value by value."""
INT64_MAX = 2**63 - 1

ATTEMPT_FIELDS = {
    "variant": "string",
    "model": "string",
    "purpose": "string",
    "verdict": "string",
    "reason": "string",
    "sent_us": "int64",
    "first_byte_us": "int64",
    "ended_us": "int64",
    "status": "int64",
    "input_tokens": "int64",
    "input_cached_tokens": "int64",
    "cache_write_tokens": "int64",
    "cache_write_1h_tokens": "int64",
    "output_tokens": "int64",
    "reasoning_tokens": "int64",
    "usage_source": "string",
    "cost_nano_usd": "int64",
    "price_source": "string",
    "provider_request_id": "string",
    "repaired": "bool",
    "failure": "string",
    "retry_after_ms": "int64",
    "streamed": "bool",
    "cached": "bool",
    "saved_nano_usd": "int64",
}
"""Of an Attempt: AttemptV1 with its usage beside the other fields."""

FEATURE_FIELDS = {
    "service": "string",
    "fingerprint": "string",
    "as_of_ns": "int64",
    "stale": "strings",
    "missing": "strings",
    "sealed": "binary",
}
"""FeaturesSeenV1; the whole is null where the workflow names no FeatureService."""

DECISION_FIELDS = {
    "policy": "string",
    "version": "string",
    "action": "string",
    "reason": "string",
    "rule": "string",
    "chosen": "string",
    "explored": "bool",
    "propensity": "float64",
    "confidence": "float64",
    "failed": "string",
    "sealed": "binary",
}
"""DecisionV1; the whole is null where the workflow has no policy, and in files from before there were any."""

CALL_COLUMNS = {
    "day": "date",
    "call_id": "string",
    "opened_ns": "int64",
    "closed_ns": "int64",
    "latency_us": "int64",
    "snapshot": "string",
    "workflow": "string",
    "door": "string",
    "stream": "bool",
    "tenant": "string",
    "team": "string",
    "use_case": "string",
    "key": "string",
    "user": "string",
    "tags": "strings",
    "prices_date": "string",
    "status": "string",
    "http_status": "int64",
    "variant": "string",
    "model": "string",
    "cost_nano_usd": "int64",
    "attempt_count": "int64",
    "escalated": "bool",
    "input_tokens": "int64",
    "input_cached_tokens": "int64",
    "output_tokens": "int64",
    "reasoning_tokens": "int64",
    "error": "string",
    "finish_reason": "string",
    "degraded": "string",
    "notes": "strings",
    "retained": "int64",
    "request": "binary",
    "answers": "binary",
    "business_key": "string",
    "segment": "string",
    "ledger": "string",
    "roll": "int64",
    "features": "features",
    "decision": "decision",
    "attempts": "attempts",
}
"""`day`: UTC, of `opened_ns`. `closed_ns`: null where the Call's end was not seen. `latency_us`: of answered Calls,
else null. `model`: of the accepted Attempt. `request`, `answers`: as the ledger has them, null where nothing was kept.
`roll`: null in rows that no roll has taken yet."""

OUTCOME_COLUMNS = {
    "day": "date",
    "call_id": "string",
    "metric": "string",
    "source": "string",
    "kind": "string",
    "text": "string",
    "number": "float64",
    "event_ns": "int64",
    "arrived_ns": "int64",
    "key": "string",
    "workflow": "string",
    "business_key": "string",
    "segment": "string",
    "ledger": "string",
    "roll": "int64",
}
"""`day`: UTC, of when its Call was opened as far as its id tells, else of its arrival. `kind`: `text`, `number` or
`boolean`; `text` has every value, `number` those that are numbers, with booleans as 0 and 1."""

_SUMMED = ("input_tokens", "input_cached_tokens", "output_tokens", "reasoning_tokens")

PARTITION_BY = ("day",)
CALL_STATISTICS = ("day", "opened_ns", "call_id")
"""Ours, not a person's: what a table's log may show."""
OUTCOME_STATISTICS = ("day", "arrived_ns", "call_id")


class CallRows:
    """Calls in, one Arrow table out; ledger and roll: what those columns hold."""

    __slots__ = ("_batches", "_closed", "_ledger", "_pairs", "_roll", "count")

    def __init__(self, ledger: str, roll: int | None) -> None:
        self._ledger = ledger
        self._roll = roll
        self._pairs: list[Pair] = []
        self._closed: list[ClosedV1] = []
        """Of each pair, or what stands for it."""
        self._batches: list[Any] = []
        self.count = 0
        """Rows added so far."""

    def add(self, pair: Pair, *, running: bool = False) -> None:
        """A Call's row; running: it has no end yet and its writer lives."""
        closed = pair.closed
        if closed is None:
            status, cost = ("running", 0) if running else ("interrupted", pair.cost_nano_usd)
            closed = ClosedV1(pair.opened.call_id, 0, status, 0, "", cost)
        self._pairs.append(pair)
        self._closed.append(closed)
        self.count += 1
        if len(self._pairs) == BATCH_ROWS:
            self._batches.append(self._batch())
            self._pairs, self._closed = [], []

    def batches(self) -> list[Any]:
        """All rows so far, as few Arrow record batches; the next time only what was added is made Arrow."""
        if self._pairs:
            self._batches = _pieces([*self._batches, self._batch()], CALL_COLUMNS)
            self._pairs, self._closed = [], []
        return list(self._batches)

    def table(self) -> Any:
        """All rows so far, as an Arrow table; asked for once, so that no row is copied into a larger piece."""
        rest = [self._batch()] if self._pairs else []
        return table_of(CALL_COLUMNS, [*self._batches, *rest])

    def _batch(self) -> Any:
        from arro3.core import RecordBatch, list_array

        pairs, closed = self._pairs, self._closed
        opened = [one.opened for one in pairs]
        who = [one.attribution for one in opened]
        counts = [len(one.attempts) for one in closed]
        attempts = [attempt for one in closed for attempt in one.attempts]
        usage = [one.usage for one in attempts]
        # Written out: a comprehension knows its field, and takes a third of the time of looking it up by name.
        nested: dict[str, Sequence[Any]] = {
            "input_tokens": [one.input_tokens for one in usage],
            "input_cached_tokens": [one.input_cached_tokens for one in usage],
            "cache_write_tokens": [one.cache_write_tokens for one in usage],
            "cache_write_1h_tokens": [one.cache_write_1h_tokens for one in usage],
            "output_tokens": [one.output_tokens for one in usage],
            "reasoning_tokens": [one.reasoning_tokens for one in usage],
            "usage_source": [one.source for one in usage],
            "variant": [one.variant for one in attempts],
            "model": [one.model for one in attempts],
            "purpose": [one.purpose for one in attempts],
            "verdict": [one.verdict for one in attempts],
            "reason": [one.reason for one in attempts],
            "sent_us": [one.sent_us for one in attempts],
            "first_byte_us": [one.first_byte_us for one in attempts],
            "ended_us": [one.ended_us for one in attempts],
            "status": [one.status for one in attempts],
            "cost_nano_usd": [one.cost_nano_usd for one in attempts],
            "price_source": [one.price_source for one in attempts],
            "provider_request_id": [one.provider_request_id for one in attempts],
            "repaired": [one.repaired for one in attempts],
            "failure": [one.failure for one in attempts],
            "retry_after_ms": [one.retry_after_ms for one in attempts],
            "streamed": [one.streamed for one in attempts],
            "cached": [one.cached for one in attempts],
            "saved_nano_usd": [one.saved_nano_usd for one in attempts],
        }
        values: dict[str, Sequence[Any]] = {
            "call_id": [one.call_id for one in opened],
            "opened_ns": [one.opened_ns for one in opened],
            "snapshot": [one.snapshot for one in opened],
            "workflow": [one.workflow for one in opened],
            "door": [one.door for one in opened],
            "stream": [one.stream for one in opened],
            "prices_date": [one.prices_date for one in opened],
            "features": [one.features for one in opened],
            "business_key": [one.business_key for one in opened],
            "tenant": [one.tenant for one in who],
            "team": [one.team for one in who],
            "use_case": [one.use_case for one in who],
            "key": [one.key for one in who],
            "user": [one.user for one in who],
            "tags": [one.tags for one in who],
            "status": [one.status for one in closed],
            "http_status": [one.http_status for one in closed],
            "variant": [one.variant for one in closed],
            "cost_nano_usd": [one.cost_nano_usd for one in closed],
            "error": [one.error for one in closed],
            "finish_reason": [one.finish_reason for one in closed],
            "degraded": [one.degraded for one in closed],
            "decision": [one.decision for one in closed],
            "notes": [one.notes for one in closed],
            "day": [one.opened_ns // NS_PER_DAY for one in opened],
            "closed_ns": [one.closed_ns or None for one in closed],
            "latency_us": [
                (end.closed_ns - start.opened_ns) // 1000 if end.status == "answered" and not pair.orphan else None
                for pair, start, end in zip(pairs, opened, closed, strict=True)
            ],
            "model": _answering_models(nested["verdict"], nested["model"], counts),
            "attempt_count": counts,
            "escalated": _escalated(nested["verdict"], counts),
            **{name: _sums(nested[name], counts) for name in _SUMMED},
            "retained": [max(start.retained, end.retained) for start, end in zip(opened, closed, strict=True)],
            "request": [one.payload or None for one in opened],
            "answers": [one.payload or None for one in closed],
            "segment": [one.segment for one in pairs],
            "ledger": [self._ledger] * len(pairs),
            "roll": [self._roll] * len(pairs),
        }
        structs = _structs(nested)
        arrays = [
            list_array(_offsets(counts), structs, type=_types()["attempts"])
            if kind == "attempts"
            else _array(kind, values[name])
            for name, kind in CALL_COLUMNS.items()
        ]
        return RecordBatch.from_arrays(arrays, schema=_call_schema())


class OutcomeRows:
    """Outcomes in, one Arrow table out; ledger and roll: what those columns hold."""

    __slots__ = ("_batches", "_ledger", "_records", "_roll", "_segments", "count")

    def __init__(self, ledger: str, roll: int | None) -> None:
        self._ledger = ledger
        self._roll = roll
        self._records: list[OutcomeV1] = []
        self._segments: list[str] = []
        self._batches: list[Any] = []
        self.count = 0
        """Rows added so far."""

    def add(self, record: OutcomeV1, segment: str) -> None:
        """An Outcome's row."""
        self._records.append(record)
        self._segments.append(segment)
        self.count += 1
        if len(self._records) == BATCH_ROWS:
            self._batches.append(self._batch())
            self._records, self._segments = [], []

    def batches(self) -> list[Any]:
        """All rows so far, as few Arrow record batches; the next time only what was added is made Arrow."""
        if self._records:
            self._batches = _pieces([*self._batches, self._batch()], OUTCOME_COLUMNS)
            self._records, self._segments = [], []
        return list(self._batches)

    def table(self) -> Any:
        """All rows so far, as an Arrow table; asked for once, so that no row is copied into a larger piece."""
        rest = [self._batch()] if self._records else []
        return table_of(OUTCOME_COLUMNS, [*self._batches, *rest])

    def _batch(self) -> Any:
        from arro3.core import RecordBatch

        records = self._records
        given = [one.value for one in records]
        values: dict[str, Sequence[Any]] = {
            "call_id": [one.call_id for one in records],
            "metric": [one.metric for one in records],
            "source": [one.source for one in records],
            "event_ns": [one.event_ns for one in records],
            "arrived_ns": [one.arrived_ns for one in records],
            "key": [one.key for one in records],
            "workflow": [one.workflow for one in records],
            "business_key": [one.business_key for one in records],
            "day": [outcome_day(one) for one in records],
            "kind": [_kind(value) for value in given],
            "text": [value if isinstance(value, str) else JSON.encode(value).decode() for value in given],
            "number": [None if isinstance(value, str) else float(value) for value in given],
            "segment": self._segments,
            "ledger": [self._ledger] * len(records),
            "roll": [self._roll] * len(records),
        }
        arrays = [_array(kind, values[name]) for name, kind in OUTCOME_COLUMNS.items()]
        return RecordBatch.from_arrays(arrays, schema=schema_of(OUTCOME_COLUMNS))


def outcome_day(record: OutcomeV1) -> int:
    """Days since 1970: of its Call's id, which holds when that was made; else of its arrival.

    Ids come from clients here: one from the future names no Call, and its day may be none that a date can hold.
    """
    arrived = record.arrived_ns // NS_PER_DAY
    if is_call_id(record.call_id):
        made = int(record.call_id[5:17], 16) * 1_000_000 // NS_PER_DAY
        return made if made <= arrived + 1 else arrived
    return arrived


def call_of(row: Mapping[str, Any], outcomes: Iterable[Outcome] = ()) -> Call:
    """The Call that a row of `calls` holds; its nested values as DuckDB and arro3 give them to Python."""
    seen, decided = row["features"], row["decision"]
    return Call(
        call_id=row["call_id"],
        opened_ns=row["opened_ns"],
        closed_ns=row["closed_ns"] or 0,
        snapshot=row["snapshot"],
        workflow=row["workflow"],
        door=row["door"],
        stream=row["stream"],
        attribution=Attribution(
            row["tenant"], row["team"], row["use_case"], row["key"], row["user"], tuple(row["tags"])
        ),
        prices_date=row["prices_date"],
        status=row["status"],
        http_status=row["http_status"],
        variant=row["variant"],
        cost_nano_usd=row["cost_nano_usd"],
        attempts=tuple(_attempt_of(one) for one in row["attempts"]),
        error=row["error"],
        finish_reason=row["finish_reason"],
        degraded=row["degraded"],
        notes=tuple(row["notes"]),
        retained=row["retained"],
        request=row["request"] or b"",
        answers=row["answers"] or b"",
        outcomes=tuple(outcomes),
        features=None if seen is None else _features_of(seen),
        business_key=row["business_key"],
        decision=None if decided is None else _decision_of(decided),
    )


def outcome_of(row: Mapping[str, Any]) -> OutcomeV1:
    """The record that a row of `outcomes` holds."""
    kind = row["kind"]
    value = row["text"] if kind == "text" else bool(row["number"]) if kind == "boolean" else row["number"]
    return OutcomeV1(
        row["call_id"],
        row["metric"],
        row["source"],
        value,
        row["event_ns"],
        row["arrived_ns"],
        row["key"],
        row["workflow"],
        row["business_key"],
    )


def table_of(columns: Mapping[str, str], batches: Sequence[Any]) -> Any:
    """Record batches of these columns as one Arrow table, without a copy."""
    from arro3.core import Table

    return Table.from_batches(batches, schema=schema_of(columns))


def _pieces(batches: list[Any], columns: dict[str, str]) -> list[Any]:
    """The same rows in a number of pieces that grows with the logarithm of theirs; each is copied half that often.

    Pieces are of a class with those of up to four times their size, and four of a class or below become one.
    """
    found: list[Any] = []
    for batch in batches:
        found.append(batch)
        while found[-1].num_rows < PIECE_ROWS_MAX:
            own = found[-1].num_rows.bit_length() // 2
            start = len(found) - 1
            while start and found[start - 1].num_rows.bit_length() // 2 <= own:
                start -= 1
            if len(found) - start < 4:
                break
            found[start:] = table_of(columns, found[start:]).combine_chunks().to_batches()
    return found


def schema_of(columns: Mapping[str, str]) -> Any:
    """The Arrow schema of these columns; all of them may be null."""
    from arro3.core import Schema

    return Schema(_fields(columns))


def _attempt_of(row: Mapping[str, Any]) -> AttemptV1:
    return AttemptV1(
        row["variant"],
        row["model"],
        row["purpose"],
        row["verdict"],
        row["reason"],
        row["sent_us"],
        row["first_byte_us"],
        row["ended_us"],
        row["status"],
        Usage(
            row["input_tokens"],
            row["input_cached_tokens"],
            row["cache_write_tokens"],
            row["cache_write_1h_tokens"],
            row["output_tokens"],
            row["reasoning_tokens"],
            row["usage_source"],
        ),
        row["cost_nano_usd"],
        row["price_source"],
        row["provider_request_id"],
        row["repaired"],
        row["failure"],
        row["retry_after_ms"],
        row["streamed"],
        row["cached"],
        row["saved_nano_usd"],
    )


def _features_of(row: Mapping[str, Any]) -> FeaturesSeenV1:
    return FeaturesSeenV1(
        row["service"],
        row["fingerprint"],
        row["as_of_ns"],
        tuple(row["stale"]),
        tuple(row["missing"]),
        row["sealed"] or b"",
    )


def _decision_of(row: Mapping[str, Any]) -> DecisionV1:
    return DecisionV1(
        row["policy"],
        row["version"],
        row["action"],
        row["reason"],
        row["rule"],
        row["chosen"],
        row["explored"],
        row["propensity"],
        row["confidence"],
        row["failed"],
        row["sealed"] or b"",
    )


@cache
def _types() -> Mapping[str, Any]:
    """Kind of a column -> Arrow type."""
    from arro3.core import DataType, Field

    simple = {
        "string": DataType.string(),
        "binary": DataType.binary(),
        "int64": DataType.int64(),
        "int32": DataType.int32(),
        "float64": DataType.float64(),
        "bool": DataType.bool(),
        "date": DataType.date32(),
        "strings": DataType.list(Field("element", DataType.string(), nullable=True)),
    }

    def struct(fields: Mapping[str, str]) -> Any:
        return DataType.struct([Field(name, simple[kind], nullable=True) for name, kind in fields.items()])

    return {
        **simple,
        "features": struct(FEATURE_FIELDS),
        "decision": struct(DECISION_FIELDS),
        "attempts": DataType.list(Field("element", struct(ATTEMPT_FIELDS), nullable=True)),
    }


def _fields(columns: Mapping[str, str]) -> list[Any]:
    from arro3.core import Field

    types = _types()
    return [Field(name, types[kind], nullable=True) for name, kind in columns.items()]


@cache
def _call_schema() -> Any:
    return schema_of(CALL_COLUMNS)


@cache
def _attempt_fields() -> list[Any]:
    return _fields(ATTEMPT_FIELDS)


def _array(kind: str, values: Sequence[Any]) -> Any:
    """Values of a column as Arrow. Most columns of a batch hold one value, which is made once and then repeated."""
    count = len(values)
    # Not of floats: 0.0 and -0.0 are equal, and are two values.
    repeats = 1 < count <= REPEATED_ROWS_MAX and kind != "float64" and values[0] == values[-1]
    if repeats and values.count(values[0]) == count:
        if values[0] is None:
            return _nulls(kind).slice(0, count)
        return _made_array(kind, values[:1]).take(_zeros().slice(0, count))
    return _made_array(kind, values)


@cache
def _nulls(kind: str) -> Any:
    """Made once: of most projects whole columns of structures are null."""
    return _made_array(kind, [None]).take(_zeros())


@cache
def _zeros() -> Any:
    from arro3.core import Array

    return Array([0] * REPEATED_ROWS_MAX, _types()["int32"])


def _made_array(kind: str, values: Sequence[Any]) -> Any:
    """An integer beyond 64 bits becomes the nearest that fits."""
    from arro3.core import Array, list_array

    types = _types()
    if kind == "strings":
        flat = Array(list(chain.from_iterable(values)), types["string"])
        return list_array(_offsets(list(map(len, values))), flat, type=types["strings"])
    if kind == "features":
        return _feature_array(values)
    if kind == "decision":
        return _decision_array(values)
    if kind == "date":
        return Array(values, types["int32"]).cast(types["date"])
    if kind == "int64":
        try:
            return Array(values, types["int64"])
        except (OverflowError, ValueError):
            values = [one if one is None else min(max(one, -INT64_MAX - 1), INT64_MAX) for one in values]
    return Array(values, types[kind])


def _feature_array(values: Sequence[FeaturesSeenV1 | None]) -> Any:
    from arro3.core import Array, struct_array

    types = _types()
    nothing = FeaturesSeenV1("", "", 0)
    seen = [value or nothing for value in values]
    fields: dict[str, Sequence[Any]] = {
        "service": [one.service for one in seen],
        "fingerprint": [one.fingerprint for one in seen],
        "as_of_ns": [one.as_of_ns for one in seen],
        "stale": [one.stale for one in seen],
        "missing": [one.missing for one in seen],
        "sealed": [one.sealed for one in seen],
    }
    arrays = [_array(kind, fields[name]) for name, kind in FEATURE_FIELDS.items()]
    missing = Array([value is None for value in values], types["bool"])
    return struct_array(arrays, fields=types["features"].fields, type=types["features"], mask=missing)


def _decision_array(values: Sequence[DecisionV1 | None]) -> Any:
    from arro3.core import Array, struct_array

    types = _types()
    nothing = DecisionV1("", "", "")
    made = [value or nothing for value in values]
    fields: dict[str, Sequence[Any]] = {
        "policy": [one.policy for one in made],
        "version": [one.version for one in made],
        "action": [one.action for one in made],
        "reason": [one.reason for one in made],
        "rule": [one.rule for one in made],
        "chosen": [one.chosen for one in made],
        "explored": [one.explored for one in made],
        "propensity": [one.propensity for one in made],
        "confidence": [one.confidence for one in made],
        "failed": [one.failed for one in made],
        "sealed": [one.sealed or None for one in made],
    }
    arrays = [_array(kind, fields[name]) for name, kind in DECISION_FIELDS.items()]
    missing = Array([value is None for value in values], types["bool"])
    return struct_array(arrays, fields=types["decision"].fields, type=types["decision"], mask=missing)


def _structs(values: Mapping[str, Sequence[Any]]) -> Any:
    from arro3.core import struct_array

    arrays = [_array(kind, values[name]) for name, kind in ATTEMPT_FIELDS.items()]
    return struct_array(arrays, fields=_attempt_fields())


def _offsets(counts: Sequence[int]) -> Any:
    from arro3.core import Array

    return Array(list(accumulate(counts, initial=0)), _types()["int32"])


def _sums(values: Sequence[int], counts: Sequence[int]) -> Sequence[int]:
    """Values of all Attempts, added up per Call."""
    if counts.count(1) == len(counts):
        return values
    each = iter(values)
    return [next(each) if count == 1 else sum(islice(each, count)) for count in counts]


def _escalated(verdicts: Sequence[str], counts: Sequence[int]) -> list[bool]:
    """Per Call, whether one of its Attempts was."""
    if "escalated" not in verdicts:
        return [False] * len(counts)
    each = iter(verdicts)
    return ["escalated" in list(islice(each, count)) for count in counts]


def _answering_models(verdicts: Sequence[str], models: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Per Call, the model of its last accepted Attempt; empty where there is none."""
    if counts.count(1) == len(counts):
        return [model if verdict == "accepted" else "" for verdict, model in zip(verdicts, models, strict=True)]
    each = zip(verdicts, models, strict=True)
    found = []
    for count in counts:
        model = ""
        for verdict, name in islice(each, count):
            if verdict == "accepted":
                model = name
        found.append(model)
    return found


def _kind(value: str | float | bool) -> str:
    return "text" if isinstance(value, str) else "boolean" if isinstance(value, bool) else "number"
