"""Columns of the tables `calls` and `outcomes`, and records as Arrow rows of them.

Owns the tables' schema and the way there and back: everything that a Call knows is in its row, and `call_of` makes the
same Call of it. Values pass from Python to Arrow by columns, some thousands of rows at a time, which costs a tenth of
going through JSON. Arrow (`arro3`) is imported when the first row is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import accumulate, chain, islice
from operator import attrgetter
from typing import Any

from drivetrain.core.calls import AttemptV1, Attribution, Call, ClosedV1, Outcome, OutcomeV1
from drivetrain.core.codec import JSON
from drivetrain.core.features import FeaturesSeenV1
from drivetrain.core.ids import is_call_id
from drivetrain.core.money import Usage
from drivetrain.ledger.reader import Pair

NS_PER_DAY = 86_400_000_000_000
BATCH_ROWS = 1_024
"""Rows that wait as Python values before they become Arrow: about 4 MB, which a processor's cache still holds. A batch
costs 0.6 ms whatever it holds, so that much smaller ones are dearer."""
DEFAULTS_ROWS = 4 * BATCH_ROWS
"""Of the arrays that are kept, 2 MB for all of them: a batch of Calls may have several Attempts each."""
_DEFAULTS = (None, "", 0, ())
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

_OF_OPENED = (
    "call_id",
    "opened_ns",
    "snapshot",
    "workflow",
    "door",
    "stream",
    "prices_date",
    "features",
    "business_key",
)
_OF_ATTRIBUTION = ("tenant", "team", "use_case", "key", "user", "tags")
_OF_CLOSED = ("status", "http_status", "variant", "cost_nano_usd", "error", "finish_reason", "degraded", "notes")
_OF_USAGE = (
    "input_tokens",
    "input_cached_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
    "usage_source",
)
_SUMMED = ("input_tokens", "input_cached_tokens", "output_tokens", "reasoning_tokens")
_OF_OUTCOME = ("call_id", "metric", "source", "event_ns", "arrived_ns", "key", "workflow", "business_key")
"""Columns that are fields of the record of that name."""

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
        """All rows so far, as Arrow record batches."""
        return [*self._batches, self._batch()] if self._pairs else list(self._batches)

    def table(self) -> Any:
        """All rows so far, as an Arrow table."""
        return table_of(CALL_COLUMNS, self.batches())

    def _batch(self) -> Any:
        from arro3.core import RecordBatch, list_array

        pairs, closed = self._pairs, self._closed
        opened = [pair.opened for pair in pairs]
        who = [one.attribution for one in opened]
        attempts = [attempt for one in closed for attempt in one.attempts]
        counts = [len(one.attempts) for one in closed]
        usage = [one.usage for one in attempts]
        values = {
            **{name: _each(opened, name) for name in _OF_OPENED},
            **{name: _each(who, name) for name in _OF_ATTRIBUTION},
            **{name: _each(closed, name) for name in _OF_CLOSED},
            "day": [one.opened_ns // NS_PER_DAY for one in opened],
            "closed_ns": [one.closed_ns or None for one in closed],
            "latency_us": [_latency_us(pair) for pair in pairs],
            "model": [_answering_model(one) for one in closed],
            "attempt_count": counts,
            "escalated": [any(one.verdict == "escalated" for one in each.attempts) for each in closed],
            **{name: _sums(usage, name, counts) for name in _SUMMED},
            "retained": [max(one.retained, end.retained) for one, end in zip(opened, closed, strict=True)],
            "request": [one.payload or None for one in opened],
            "answers": [one.payload or None for one in closed],
            "segment": _each(pairs, "segment"),
            "ledger": [self._ledger] * len(pairs),
            "roll": [self._roll] * len(pairs),
        }
        nested = {
            **{name: _each(usage, "source" if name == "usage_source" else name) for name in _OF_USAGE},
            **{name: _each(attempts, name) for name in ATTEMPT_FIELDS if name not in _OF_USAGE},
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
        """All rows so far, as Arrow record batches."""
        return [*self._batches, self._batch()] if self._records else list(self._batches)

    def table(self) -> Any:
        """All rows so far, as an Arrow table."""
        return table_of(OUTCOME_COLUMNS, self.batches())

    def _batch(self) -> Any:
        from arro3.core import RecordBatch

        records = self._records
        given = _each(records, "value")
        values = {
            **{name: _each(records, name) for name in _OF_OUTCOME},
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
    seen = row["features"]
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
    """Values of a column as Arrow. Half of all columns hold nothing but their default, of which an array is kept."""
    count = len(values)
    if 0 < count <= DEFAULTS_ROWS and values[0] in _DEFAULTS and values.count(values[0]) == count:
        return _default(kind, values[0]).slice(0, count)
    return _made_array(kind, values)


@cache
def _default(kind: str, value: Any) -> Any:
    return _made_array(kind, [value] * DEFAULTS_ROWS)


def _made_array(kind: str, values: Sequence[Any]) -> Any:
    """An integer beyond 64 bits becomes the nearest that fits."""
    from arro3.core import Array, list_array

    types = _types()
    if kind == "strings":
        flat = Array(list(chain.from_iterable(values)), types["string"])
        return list_array(_offsets(list(map(len, values))), flat, type=types["strings"])
    if kind == "features":
        return _feature_array(values)
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
    arrays = [_array(kind, _each(seen, name)) for name, kind in FEATURE_FIELDS.items()]
    missing = Array([value is None for value in values], types["bool"])
    return struct_array(arrays, fields=types["features"].fields, type=types["features"], mask=missing)


def _structs(values: Mapping[str, Sequence[Any]]) -> Any:
    from arro3.core import struct_array

    arrays = [_array(kind, values[name]) for name, kind in ATTEMPT_FIELDS.items()]
    return struct_array(arrays, fields=_attempt_fields())


def _offsets(counts: Sequence[int]) -> Any:
    from arro3.core import Array

    return Array(list(accumulate(counts, initial=0)), _types()["int32"])


def _each(records: Sequence[Any], name: str) -> list[Any]:
    """One field of many records: half the time of a comprehension that looks it up by name."""
    return list(map(attrgetter(name), records))


def _sums(usage: Sequence[Usage], name: str, counts: Sequence[int]) -> list[int]:
    """A field of the Attempts' usage, added up per Call."""
    values = iter(_each(usage, name))
    return [next(values) if count == 1 else sum(islice(values, count)) for count in counts]


def _latency_us(pair: Pair) -> int | None:
    closed = pair.closed
    if closed is None or closed.status != "answered" or pair.orphan:
        return None
    return (closed.closed_ns - pair.opened.opened_ns) // 1000


def _answering_model(closed: ClosedV1) -> str:
    model = ""
    for attempt in closed.attempts:
        if attempt.verdict == "accepted":
            model = attempt.model
    return model


def _kind(value: str | float | bool) -> str:
    return "text" if isinstance(value, str) else "boolean" if isinstance(value, bool) else "number"
