"""Features as of now: entity keys in, the values of a service out, from vectors that were materialized before.

Owns which tables a service reads, what stands in for what is missing or expired, and what a Call's record says of it.
It does not own where vectors are (a port) nor how they come to be (`materialize`, `pushing`). Called on the hot path:
nothing here waits, and neither DuckDB nor the lake is imported.

The rules. A row counts until its event time + the view's `ttl` lies before now; the windows of a view that sums up
events are those of the moment they were materialized for, and have no `ttl`. A value that is null, expired or missing
is its feature's default. On-demand functions see values after that, as they do offline.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.features import ViewSeen
from drivetrain.core.times import span_us
from drivetrain.features.definitions import (
    EntityGroup,
    FeatureDefinition,
    KeyDefinition,
    ServiceDefinition,
    ServiceFeature,
    ViewDefinition,
    ViewRead,
)
from drivetrain.features.dtypes import coerce
from drivetrain.features.on_demand import compute, request_columns
from drivetrain.ports.online import ABSENT, Layout, OnlineStore, Part, Vectors, entity_key, entity_keys
from drivetrain.project.snapshot import Snapshot

ROWS_MAX = 10_000
"""Entities in one read: more is a training set."""
PRESENT, NOT_FOUND, EXPIRED = "PRESENT", "NOT_FOUND", "OUTSIDE_MAX_AGE"
"""Feast's words for what became of a value."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
US = timedelta(microseconds=1)
_EXACT = {"int64": int, "float64": float, "string": str, "bool": bool}


class Seen(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one Call saw."""

    given: Mapping[str, Any]
    """The keys and request columns that the values depend on."""
    values: Mapping[str, Any]
    """Feature -> value; its own name, or `VIEW__FEATURE` where two of the service share a name."""
    as_of_ns: int
    """The oldest of its views'; 0 where one was never materialized."""
    stale: tuple[str, ...]
    """Views that are older than their source's `fresh_within`."""
    missing: tuple[str, ...]
    """Entities of which no view of theirs had a row that counts."""
    fingerprint: str
    views: Mapping[str, ViewSeen]
    """Per view, which moment its values are of; what parity recomputes."""


class OnlineRows:
    """What was read for several entities, column by column."""

    __slots__ = ("_count", "_read", "columns")

    def __init__(self, columns: Mapping[str, Sequence[Any]], read: Sequence[_Read], count: int) -> None:
        self.columns = columns
        """Feature -> one value per entity."""
        self._read = read
        self._count = count

    def views(self) -> dict[str, list[ViewSeen]]:
        """What was seen of each view, per entity."""
        return {read.view.name: one.seen(place) for one in self._read for place, read in enumerate(one.lookup.reads)}

    def missing(self) -> list[tuple[str, ...]]:
        """Per entity row, the names of entities of which no view of theirs had a row that counts."""
        missing: list[dict[str, None]] = [{} for _ in range(self._count)]
        for one in self._read:
            names = [name for read in one.lookup.reads for name in read.view.entities]
            for row, counts in enumerate(one.counting()) if names else ():
                if not counts:
                    missing[row].update(dict.fromkeys(names))
        return [tuple(one) for one in missing]


class _Read(msgspec.Struct, frozen=True):
    """What one table gave."""

    lookup: Lookup
    vectors: Vectors
    expired: list[list[bool] | None]
    """Per view, which rows no longer count; None: all do, or are not there."""

    def seen(self, place: int) -> list[ViewSeen]:
        vectors, gone, as_of_us = self.vectors, self.expired[place], self.vectors.as_of_us[place]
        found = []
        for row, (event_us, known_us) in enumerate(
            zip(vectors.events_us[place], vectors.created_us[place], strict=True)
        ):
            absent = event_us == ABSENT
            found.append(
                ViewSeen(
                    as_of_us if absent else max(as_of_us, known_us, event_us),
                    None if absent else event_us,
                    gone is not None and gone[row] and not absent,
                )
            )
        return found

    def counting(self) -> list[bool]:
        """Per entity row, whether any view has a row that counts."""
        events = self.vectors.events_us
        return [
            any(
                one[row] != ABSENT and (gone is None or not gone[row])
                for one, gone in zip(events, self.expired, strict=True)
            )
            for row in range(len(events[0]))
        ]


class Lookup(msgspec.Struct, frozen=True):
    """One table that a service reads."""

    layout: Layout
    keys: tuple[KeyDefinition, ...]
    reads: tuple[ViewRead, ...]
    places: tuple[tuple[str, str], ...] = ()
    """(view, feature) of each column."""
    timed: bool = False
    """Whether one of them is a timestamp."""


class OnlineService:
    """Reads one service's features from a store."""

    __slots__ = ("_computed", "_fresh_us", "_given", "_lookups", "_names", "_service", "_store")

    def __init__(self, store: OnlineStore, service: ServiceDefinition, *, full_names: bool = False) -> None:
        self._store = store
        self._service = service
        self._lookups = lookups(service)
        self._names = [(name, (one.view, one.feature)) for name, one in output_names(service, full=full_names)]
        self._fresh_us = {read.view.name: fresh_us(read.view) for read in service.reads}
        self._given = (*(key.name for key in service.keys), *(column.name for column in service.request))
        self._computed = any(one.on_demand for one in service.features)

    def read_rows(
        self, entities: Mapping[str, Sequence[Any]], request: Mapping[str, Sequence[Any]], count: int, now_us: int
    ) -> OnlineRows:
        """The features of `count` entities. entities, request: column -> values. Raises: DrivetrainError."""
        found: dict[tuple[str, str], Sequence[Any]] = {}
        reads = []
        for table in self._lookups:
            vectors = self._vectors(table, entities, count)
            one = _Read(table, vectors, _expired(table, vectors, now_us))
            reads.append(one)
            if not (table.timed or True in vectors.has_null or any(one.expired)):
                found.update(zip(table.places, vectors.columns, strict=True))
                continue
            columns = zip(vectors.columns, vectors.has_null, strict=True)
            for read, gone in zip(table.reads, one.expired, strict=True):
                for feature in read.features:
                    values, has_null = next(columns)
                    found[read.view.name, feature.name] = _column(values, has_null, gone, feature)
        if self._computed:
            found |= self._with_computed(found, request, count)
        return OnlineRows({name: found[place] for name, place in self._names}, reads, count)

    def read_one(self, given: Mapping[str, Any], now_ns: int) -> Seen:
        """What a Call sees. given: keys and request columns, among others. Raises: DrivetrainError."""
        now_us = now_ns // 1_000
        used = {name: given[name] for name in self._given if name in given}
        columns = {name: (value,) for name, value in used.items()}
        rows = self.read_rows(columns, columns, 1, now_us)
        views = {name: seen[0] for name, seen in rows.views().items()}
        stale = tuple(
            name
            for name, seen in views.items()
            if (limit := self._fresh_us[name]) is not None and now_us - seen.as_of_us > limit
        )
        return Seen(
            given=used,
            values={name: column[0] for name, column in rows.columns.items()},
            as_of_ns=min((seen.as_of_us for seen in views.values()), default=now_us) * 1_000,
            stale=stale,
            missing=rows.missing()[0],
            fingerprint=self._service.fingerprint,
            views=views,
        )

    def _vectors(self, lookup: Lookup, entities: Mapping[str, Sequence[Any]], count: int) -> Vectors:
        """The vectors of a table; an entity whose key is null has none."""
        try:
            columns = [_keys(entities[key.name], key) for key in lookup.keys]
        except KeyError as error:
            names = ", ".join(f"`{key.name}`" for key in lookup.keys)
            raise DrivetrainError(
                f"The join key `{error.args[0]}` is not given.", looked=list(entities), do=f"Give {names}."
            ) from None
        try:
            keys = entity_keys(columns) if columns else [entity_key(())] * count
        except UnicodeEncodeError:
            names = ", ".join(f"`{key.name}`" for key in lookup.keys)
            raise DrivetrainError(
                f"The join key {names} is no text that UTF-8 holds.", do="Mend its encoding."
            ) from None
        return self._store.read(lookup.layout, keys)

    def _with_computed(
        self, found: Mapping[tuple[str, str], Sequence[Any]], request: Mapping[str, Sequence[Any]], count: int
    ) -> dict[tuple[str, str], Sequence[Any]]:
        values = {f"{view}__{feature}": column for (view, feature), column in found.items()}
        rows: list[dict[str, Any]] = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        rows = rows or [{} for _ in range(count)]
        typed = [
            request_columns(self._service.request, {k: v[row] for k, v in request.items()}) for row in range(count)
        ]
        made: dict[tuple[str, str], Sequence[Any]] = {}
        for definition in self._service.on_demand:
            outputs = [compute(definition, one, asked) for one, asked in zip(rows, typed, strict=True)]
            for feature in definition.features:
                made[definition.name, feature.name] = [output[feature.name] for output in outputs]
        return made


class OnlineReader:
    """The services of one Snapshot, for whoever answers Calls: `read` is all it does."""

    __slots__ = ("_services",)

    def __init__(self, store: OnlineStore, services: Iterable[ServiceDefinition]) -> None:
        self._services = {service.name: OnlineService(store, service) for service in services}

    def read(self, service: str, given: Mapping[str, Any], now_ns: int) -> Seen:
        """The features of one Call's entities. given: its join keys and request columns, beside whatever else.

        Raises: DrivetrainError where one is not given, or the vectors are of another definition.
        """
        return self._services[service].read_one(given, now_ns)


def lookups(service: ServiceDefinition) -> tuple[Lookup, ...]:
    """The tables that a service reads: one per set of join keys; of features named one by one, one per view."""
    if service.name:
        return tuple(lookup(service_layout(service.name, one), one.keys, one.reads) for one in service.groups)
    return tuple(view_lookup(read.view) for read in service.reads)


def never_materialized(store: OnlineStore, service: ServiceDefinition) -> list[str]:
    """Views of a service whose vectors nobody ever made: of their entities nothing is known but what was pushed."""
    missing: dict[str, None] = {}
    for table in lookups(service):
        state = store.state(table.layout.table)
        made = dict(zip((part.name for part in state.layout.parts), state.as_of_us, strict=True)) if state else {}
        missing |= dict.fromkeys(read.view.name for read in table.reads if not made.get(read.view.name))
    return list(missing)


def view_lookup(view: ViewDefinition) -> Lookup:
    """The table that holds a view by itself."""
    return lookup(view_layout(view), view.keys, (ViewRead(view, view.features),))


def lookup(layout: Layout, keys: tuple[KeyDefinition, ...], reads: tuple[ViewRead, ...]) -> Lookup:
    """One table, with what its reads need to know of it."""
    places = tuple((read.view.name, one.name) for read in reads for one in read.features)
    return Lookup(layout, keys, reads, places, any(one.dtype == "timestamp" for read in reads for one in read.features))


def service_layout(service: str, group: EntityGroup) -> Layout:
    """How vectors of a service lie for one set of join keys. Only what decides their content is in the fingerprint:
    another on-demand function needs no new vectors."""
    return _layout(f"{service}@{'+'.join(key.name for key in group.keys) or 'all'}", group.reads)


def view_layout(view: ViewDefinition) -> Layout:
    """How vectors of a view by itself lie, for reads of single features."""
    return _layout(f"{view.name}@@{'+'.join(view.join_keys) or 'all'}", (ViewRead(view, view.features),))


def output_names(service: ServiceDefinition, *, full: bool = False) -> list[tuple[str, ServiceFeature]]:
    """(name, feature) of what a service gives: the feature's name, or `VIEW__FEATURE` where two share one.

    full: `VIEW__FEATURE` for all.
    """
    short = [one.feature for one in service.features]
    return [(one.full_name if full or short.count(one.feature) > 1 else one.feature, one) for one in service.features]


def fresh_us(view: ViewDefinition) -> int | None:
    """The oldest that a view's values may be before they count as stale; None: nothing was promised."""
    declared = view.source.fresh_within
    return None if declared is None else span_us(declared)


def stored(dtype: str, value: Any) -> Any:
    """A feature's value as vectors hold it: of a time its microseconds. Raises: ValueError."""
    value = coerce(dtype, value)
    return (value - EPOCH) // US if dtype == "timestamp" and value is not None else value


def stored_key(keys: Sequence[KeyDefinition], values: Sequence[Any]) -> bytes:
    """The key of an entity. Raises: ValueError."""
    return entity_key(tuple(stored(key.dtype, value) for key, value in zip(keys, values, strict=True)))


def _layout(table: str, reads: Sequence[ViewRead]) -> Layout:
    parts = tuple(Part(read.view.name, tuple((one.name, one.dtype) for one in read.features)) for read in reads)
    facts = [[read.view.fingerprint, [one.name for one in read.features]] for read in reads]
    named = re.sub(r"[^A-Za-z0-9_.@+-]", "-", table)
    if named != table or len(table) > 150 or table[0] in ".@+-":
        named = f"_{named[:120]}-{hashlib.sha256(table.encode()).hexdigest()[:12]}"
    fingerprint = hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:16]
    return Layout(table=named, fingerprint=fingerprint, parts=parts)


def _keys(column: Sequence[Any], key: KeyDefinition) -> Sequence[Any]:
    """A column of join keys as the store's keys have them; null stays null, and is no entity's key."""
    if set(map(type, column)) == {_EXACT.get(key.dtype)}:
        return column
    try:
        return [stored(key.dtype, value) for value in column]
    except ValueError as error:
        raise DrivetrainError(
            f"The join key `{key.name}` is {key.dtype}: {error}.", do="Give it as declared."
        ) from None


def _expired(lookup: Lookup, vectors: Vectors, now_us: int) -> list[list[bool] | None]:
    """Per view, which rows no longer count; None: all do, or are not there."""
    expired: list[list[bool] | None] = []
    for read, events in zip(lookup.reads, vectors.events_us, strict=True):
        ttl_us = read.view.ttl_us if not read.view.windows else None
        if ttl_us is None or not events or min(events) >= now_us - ttl_us:
            expired.append(None)
        else:
            oldest = now_us - ttl_us
            expired.append([event < oldest for event in events])
    return expired


def _column(
    column: Sequence[Any], has_null: bool, expired: Sequence[bool] | None, feature: FeatureDefinition
) -> Sequence[Any]:
    """A feature's values as whoever asked gets them."""
    if feature.dtype == "timestamp":
        column = [None if value is None else EPOCH + value * US for value in column]
    if expired is not None:
        column = [None if gone else value for gone, value in zip(expired, column, strict=True)]
    elif not has_null:
        return column
    default = feature.default
    return column if default is None else [default if value is None else value for value in column]


def online_folder(snapshot: Snapshot) -> Path:
    """Where a project's vectors are, in files."""
    return snapshot.data_folder / "online"
