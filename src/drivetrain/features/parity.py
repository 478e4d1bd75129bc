"""Parity: what Calls saw online, against what a training set would say of the same entities and moments.

Owns the comparison and the guess at its cause. The offline side takes the path of training sets (`points`), as of the
moment that the vectors were of; a row that had outlived its `ttl` when the Call came counts as gone on both sides.
Staleness is told apart: it is what the offline side says of the Call's own moment, where that is something else again.
Called through FeatureStore by `drivetrain features parity`.
"""

# ruff: noqa: S608  every name in these statements is of our own making

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from drivetrain.core.calls import Call
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.features import FeatureRecordV1
from drivetrain.features.definitions import Definitions, ServiceDefinition, ServiceFeature, ViewDefinition, ViewRead
from drivetrain.features.dtypes import COERCE
from drivetrain.features.on_demand import compute, request_columns
from drivetrain.features.online import EPOCH, US, output_names, stored
from drivetrain.features.points import values_at
from drivetrain.features.scratch import Scratch, scratch_of

if TYPE_CHECKING:
    import duckdb

EXAMPLES_MAX = 5
"""Calls named per feature; the point is where to look, not a second ledger."""
DECIMALS_MAX = 12
"""Roundings that are tried."""
ZONE_STEP = timedelta(minutes=15)
ZONE_MAX = timedelta(hours=26)
"""Zones are quarter hours, and two of them lie at most 26 hours apart."""
MATCH, MISMATCH, MISSING, EXTRA = "match", "mismatch", "missing", "extra"
ROUNDING, ZONE, DEFAULT, TYPE, UNKNOWN = "rounding", "time zone", "default", "type", "unknown"


class Seeing(msgspec.Struct, frozen=True, kw_only=True):
    """What one Call saw, opened."""

    call_id: str
    service: str
    fingerprint: str
    opened_ns: int
    as_of_ns: int
    record: FeatureRecordV1


class FeatureParity(msgspec.Struct, kw_only=True):
    """One feature over all Calls that were compared."""

    feature: str
    """`VIEW:FEATURE`."""
    match: int = 0
    mismatch: int = 0
    """Both sides have a value, and they differ."""
    missing: int = 0
    """The Call saw nothing, or the default, where offline there is a value."""
    extra: int = 0
    """The Call saw a value where offline there is none."""
    stale: int = 0
    """As of the Call's own moment the value would have been another: how late materialization was, not a fault."""
    causes: dict[str, int] = {}
    """Why the Calls differ, as far as it can be told."""
    examples: list[str] = []
    """Some of the Calls."""

    @property
    def differs(self) -> int:
        return self.mismatch + self.missing + self.extra


class ParityReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison found."""

    calls: int
    """Calls that were compared."""
    skipped: dict[str, int] = {}
    """Why others were not -> how many."""
    features: dict[str, list[FeatureParity]] = {}
    """Service -> its features, in order."""

    @property
    def differs(self) -> int:
        return sum(one.differs for features in self.features.values() for one in features)


def seeing_of(call: Call, opened: bytes | None) -> Seeing | None:
    """What a Call saw, of its opened seal; None where it saw nothing or its seal can no longer be opened."""
    seen = call.features
    if seen is None or not opened:
        return None
    return Seeing(
        call_id=call.call_id,
        service=seen.service,
        fingerprint=seen.fingerprint,
        opened_ns=call.opened_ns,
        as_of_ns=seen.as_of_ns,
        record=msgspec.msgpack.decode(opened, type=FeatureRecordV1),
    )


def compare(
    connection: duckdb.DuckDBPyConnection, definitions: Definitions, seen: Iterable[Seeing], *, root: Path
) -> ParityReport:
    """Recompute what these Calls saw. Costs one as-of join per view and moment. Raises: DrivetrainError."""
    by_service: dict[str, list[Seeing]] = {}
    skipped: dict[str, int] = {}
    count = 0
    for one in seen:
        service = definitions.services.get(one.service)
        why = (
            "its service is no longer declared"
            if service is None
            else "its service was defined otherwise"
            if service.fingerprint != one.fingerprint
            else ""
        )
        if why:
            skipped[why] = skipped.get(why, 0) + 1
        else:
            by_service.setdefault(one.service, []).append(one)
            count += 1
    features = {
        name: _compared(connection, definitions.services[name], calls, root) for name, calls in by_service.items()
    }
    return ParityReport(calls=count, skipped=skipped, features=features)


def _compared(
    connection: duckdb.DuckDBPyConnection, service: ServiceDefinition, calls: Sequence[Seeing], root: Path
) -> list[FeatureParity]:
    then, now = _Side(service, len(calls)), _Side(service, len(calls))
    with scratch_of(connection) as scratch:
        for read in service.reads:
            if read.view.online:
                moments = [_as_of_us(one, read.view.name) for one in calls]
                then.read(scratch, read, calls, moments, root)
            now.read(scratch, read, calls, [one.opened_ns // 1_000 for one in calls], root)
    for at, call in enumerate(calls):
        then.compute(at, call)
        now.compute(at, call)
    found = []
    for name, feature in output_names(service):
        parity = FeatureParity(feature=feature.reference, causes={}, examples=[])
        found.append(parity)
        for at, call in enumerate(calls):
            raw, filled = then.of(feature, at)
            verdict, cause = judged(call, name, feature, raw, filled)
            setattr(parity, verdict, getattr(parity, verdict) + 1)
            if verdict != MATCH:
                parity.causes[cause] = parity.causes.get(cause, 0) + 1
                if len(parity.examples) < EXAMPLES_MAX:
                    parity.examples.append(call.call_id)
            parity.stale += not same(filled, now.of(feature, at)[1])
    return found


class _Side:
    """Values as of one moment per Call."""

    def __init__(self, service: ServiceDefinition, count: int) -> None:
        self._service = service
        self._raw: dict[tuple[str, str], list[Any]] = {
            (read.view.name, feature.name): [None] * count for read in service.reads for feature in read.features
        }
        self._defaults = {
            (read.view.name, feature.name): feature.default for read in service.reads for feature in read.features
        }
        self._computed: dict[tuple[str, str], dict[int, Any]] = {}

    def read(
        self, scratch: Scratch, read: ViewRead, calls: Sequence[Seeing], moments: Sequence[int], root: Path
    ) -> None:
        view = read.view
        points = _points(scratch, view, calls, moments)
        if scratch.value(f"SELECT count(*) FROM {points}") == 0:
            return
        values = values_at(scratch, points, view, read.features, root=root)
        outputs = [
            f"epoch_us(c{number})" if feature.dtype == "timestamp" else f"c{number}"
            for number, feature in enumerate(read.features)
        ]
        ttl_us = None if view.windows else view.ttl_us
        rows = scratch.connection.execute(f"SELECT {', '.join(['n', 'event_us', *outputs])} FROM {values}").fetchall()
        for at, event_us, *found in rows:
            if ttl_us is not None and event_us < calls[at].opened_ns // 1_000 - ttl_us:
                continue
            for feature, value in zip(read.features, found, strict=True):
                is_time = feature.dtype == "timestamp" and value is not None
                self._raw[view.name, feature.name][at] = EPOCH + value * US if is_time else value
        scratch.drop(points, values)

    def compute(self, at: int, call: Seeing) -> None:
        if not self._service.on_demand:
            return
        values = {f"{view}__{feature}": self._filled((view, feature), at) for view, feature in self._raw}
        request = request_columns(self._service.request, call.record.given)
        for definition in self._service.on_demand:
            for name, value in compute(definition, values, request).items():
                self._computed.setdefault((definition.name, name), {})[at] = value

    def of(self, feature: ServiceFeature, at: int) -> tuple[Any, Any]:
        """What the sources have, and what stands where they have nothing."""
        place = (feature.view, feature.feature)
        if feature.on_demand:
            value = self._computed[place][at]
            return value, value
        return self._raw[place][at], self._filled(place, at)

    def _filled(self, place: tuple[str, str], at: int) -> Any:
        value = self._raw[place][at]
        return self._defaults[place] if value is None else value


def _points(scratch: Scratch, view: ViewDefinition, calls: Sequence[Seeing], moments: Sequence[int]) -> str:
    """A table (n, k0 ..., t_us) of the Calls that have every key."""
    from arro3.core import Array, DataType, Table

    kinds = {
        "int64": DataType.int64(),
        "float64": DataType.float64(),
        "string": DataType.string(),
        "bool": DataType.bool(),
        "timestamp": DataType.int64(),
    }
    keys = [[stored(key.dtype, one.record.given.get(key.name)) for key in view.keys] for one in calls]
    whole = [at for at, values in enumerate(keys) if None not in values]
    columns: dict[str, Any] = {"n": Array(whole, type=DataType.int64())}
    for number, key in enumerate(view.keys):
        columns[f"k{number}"] = Array([keys[at][number] for at in whole], type=kinds[key.dtype])
    columns["t_us"] = Array([moments[at] for at in whole], type=DataType.int64())
    name = scratch.name()
    scratch.connection.register(name, Table.from_pydict(columns))
    outputs = [
        f"make_timestamptz(k{number}) AS k{number}" if key.dtype == "timestamp" else f"k{number}"
        for number, key in enumerate(view.keys)
    ]
    made = scratch.table(f"SELECT {', '.join(['n', *(outputs or ['0 AS k0']), 't_us'])} FROM {name}")
    scratch.connection.unregister(name)
    return made


def _as_of_us(call: Seeing, view: str) -> int:
    seen = call.record.views.get(view)
    return seen.as_of_us if seen is not None else call.as_of_ns // 1_000


def judged(call: Seeing, name: str, feature: ServiceFeature, raw: Any, filled: Any) -> tuple[str, str]:
    """(verdict, cause) of a feature of a Call. raw: as the sources have it; filled: as it should have been served."""
    if name not in call.record.values:
        return (MISSING, UNKNOWN) if raw is not None else (MISMATCH, UNKNOWN)
    seen = call.record.values[name]
    if same(seen, filled):
        return MATCH, ""
    if feature.on_demand:
        return _differing(seen, filled, feature)
    nothing_seen = seen is None or same(seen, feature.default)
    view = call.record.views.get(feature.view)
    if raw is None:
        # Online nothing was found either, so what it served is a default, and another one.
        absent = view is not None and (view.event_us is None or view.expired)
        return (MISMATCH, DEFAULT) if absent or seen is None else (EXTRA, UNKNOWN)
    if nothing_seen:
        return MISSING, DEFAULT if seen is not None else UNKNOWN
    if view is not None and view.event_us is None:
        return MISSING, DEFAULT
    return _differing(seen, filled, feature)


def _differing(seen: Any, expected: Any, feature: ServiceFeature) -> tuple[str, str]:
    if expected is None:
        return EXTRA, UNKNOWN
    if seen is None:
        return MISSING, UNKNOWN
    if same(seen, feature.default):
        return MISMATCH, DEFAULT
    return MISMATCH, cause_of(seen, expected, feature.dtype)


def cause_of(seen: Any, expected: Any, dtype: str) -> str:
    """Why two values differ, where it can be told from the values alone."""
    if type(seen) is not type(expected):
        if str(seen) == str(expected):
            return TYPE
        try:
            if same(COERCE[dtype](seen), expected):
                return TYPE
        except ValueError:
            pass
    times = _time(seen), _time(expected)
    if times[0] is not None and times[1] is not None:
        apart = abs(times[0] - times[1])
        return (
            ZONE if apart <= ZONE_MAX and apart % ZONE_STEP == timedelta(0) else ROUNDING if _cut(*times) else UNKNOWN
        )
    if _is_number(seen) and _is_number(expected) and _rounded(float(seen), float(expected)):
        return ROUNDING
    return TYPE if type(seen) is not type(expected) else UNKNOWN


def same(one: Any, other: Any) -> bool:
    """Whether a model would see the same: to the bit, of the same type, and NaN is NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _rounded(seen: float, expected: float) -> bool:
    """Whether one is the other with fewer digits: rounded or cut at a decimal, a single-precision float, a last bit."""
    for coarse, fine in ((seen, expected), (expected, seen)):
        if coarse == _single(fine):
            return True
        for decimals in range(-3, DECIMALS_MAX + 1):
            step = 10.0**-decimals
            if coarse == round(fine, decimals) or math.isclose(coarse, math.trunc(fine / step) * step, rel_tol=1e-15):
                return True
    return math.isclose(seen, expected, rel_tol=1e-12)


def _single(value: float) -> float | None:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return None


def _time(value: Any) -> datetime | None:
    if isinstance(value, datetime):
        return value
    if isinstance(value, str) and len(value) >= 10 and value[4:5] == "-":
        try:
            return COERCE["timestamp"](value)  # type: ignore[no-any-return]
        except ValueError:
            return None
    return None


def _cut(one: datetime | None, other: datetime | None) -> bool:
    """Whether one is the other cut to seconds or minutes."""
    assert one is not None
    assert other is not None
    shorter, longer = sorted((one, other))
    return shorter in (longer.replace(microsecond=0), longer.replace(second=0, microsecond=0))


def refuse_none(report: ParityReport) -> None:
    """Raises: DrivetrainError where nothing could be compared: that is no parity."""
    if report.calls == 0:
        reasons = [f"{count} Calls: {why}" for why, count in report.skipped.items()]
        raise DrivetrainError(
            "No Call's features could be compared.", looked=reasons,
            do="Name a wider time, or a workflow with a FeatureService that has answered Calls.",
        )  # fmt: skip
