"""Materialization: the online vectors become what the sources say as of a moment.

Owns which tables are written from which views. Every run computes each view as of its `end` from all that the sources
hold, by the statements of training sets, so late rows, corrections and moving windows are right without any book of
what was seen before; Feast's `materialize_incremental` is the same run, and needs no start. Called by the commands, the
feature server and FeatureStore.
"""

# ruff: noqa: S608  every name in these statements is of our own making, or quoted

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.sql import identifier
from drivetrain.features.definitions import Definitions, KeyDefinition, ViewRead
from drivetrain.features.latest import EVENT_TIMESTAMP, latest
from drivetrain.features.online import Lookup, lookup, service_layout, view_lookup
from drivetrain.ports.online import ABSENT, OnlineStore, PartRow, entity_key

if TYPE_CHECKING:
    import duckdb

    from drivetrain.features.snapshots import Snapshots

BATCH_ROWS = 5_000
"""Rows that are in Python at a time."""


class MaterializedView(msgspec.Struct, frozen=True):
    """What one view had to give."""

    name: str
    fingerprint: str
    rows: int
    """Entities with a row as of the moment."""
    newest_us: int | None
    """The newest event time among them."""
    snapshot: str = ""
    """The file in the lake with these rows, which `feature.NAME` shows in SQL; none of persons."""


class Materialized(msgspec.Struct, frozen=True):
    """What one run wrote."""

    as_of_us: int
    views: tuple[MaterializedView, ...]
    tables: Mapping[str, int]
    """Online table -> how many vectors it holds."""


def materialize(
    connection: duckdb.DuckDBPyConnection,
    store: OnlineStore,
    definitions: Definitions,
    *,
    root: Path,
    end_us: int,
    now_us: int,
    start_us: int | None = None,
    views: Sequence[str] | None = None,
    snapshots: Snapshots | None = None,
    persons: Collection[str] = (),
) -> Materialized:
    """Write the vectors of these views (by default of all that are online) as of `end_us`, one table after the other.

    start_us: entities whose newest row is older are only written where they were before; None: all are. Each table is
    replaced whole; where a view fails, tables that were written before it stand, and all others are as they were. A
    service whose tables hold a chosen view is written whole. snapshots: take each view's rows too, but those of views
    with one of the join keys `persons`. Raises: DrivetrainError.
    """
    if end_us > now_us:
        raise DrivetrainError("Nothing can be materialized as of a moment to come.", do="Name a moment until now.")
    if start_us is not None and start_us > end_us:
        raise DrivetrainError("The start lies after the end.", do="Exchange them.")
    chosen = _chosen(definitions, views)
    lookups = list(tables_of(definitions, chosen))
    needed = {read.view.name: read.view for table in lookups for read in table.reads if read.view.online}
    relations: dict[str, str] = {}
    made = []
    for place, view in enumerate(needed.values()):
        found = latest(connection, view, end_us, root=root)
        relations[view.name] = f"__latest_{place}"
        found.relation.create_view(relations[view.name], replace=True)
        made.append(MaterializedView(view.name, view.fingerprint, found.rows, found.newest_us))
    counts = {}
    for table in lookups:
        rows = _vectors(connection, table, relations, end_us)
        if start_us is not None:
            rows = _since(store, table, rows, start_us)
        counts[table.layout.table] = store.replace(table.layout, rows, (end_us,) * len(table.reads))
    if snapshots is not None:
        open_views = {
            name for name, view in definitions.views.items() if not any(key.name in persons for key in view.keys)
        }
        snapshots.remove(but=open_views)
        rows_of = {name: connection.view(relation) for name, relation in relations.items() if name in open_views}
        written = snapshots.write(rows_of, end_us)
        made = [msgspec.structs.replace(view, snapshot=written.get(view.name, "")) for view in made]
    return Materialized(end_us, tuple(made), counts)


def tables_of(definitions: Definitions, views: Iterable[str]) -> Iterator[Lookup]:
    """The online tables that hold features of these views: their own, and those of services."""
    names = dict.fromkeys(views)
    for name in names:
        yield view_lookup(definitions.views[name])
    for service in definitions.services.values():
        for group in service.groups:
            if any(read.view.name in names for read in group.reads):
                yield lookup(service_layout(service.name, group), group.keys, group.reads)


def _chosen(definitions: Definitions, views: Sequence[str] | None) -> list[str]:
    if views is None:
        return [name for name, view in definitions.views.items() if view.online]
    for name in views:
        if not definitions.view(name).online:
            raise DrivetrainError(
                f"FeatureView `{name}` says `online=False`.", do="Remove that, and materialize it then."
            )
    return list(dict.fromkeys(views))


def _vectors(
    connection: duckdb.DuckDBPyConnection, lookup: Lookup, relations: Mapping[str, str], as_of_us: int
) -> Iterator[tuple[bytes, Sequence[PartRow | None]]]:
    """Every entity that any of the views knows, with a row or None per view."""
    reads = [(place, read) for place, read in enumerate(lookup.reads) if read.view.name in relations]
    if not reads:
        return
    keys = [f"k{number}" for number in range(max(len(lookup.keys), 1))]
    sides = [f"({_side(relations[read.view.name], lookup.keys, read)}) v{place}" for place, read in reads]
    joined = sides[0] + "".join(f" FULL JOIN {side} USING ({', '.join(keys)})" for side in sides[1:])
    outputs = [*keys]
    for place, read in reads:
        outputs += [f"v{place}.event_us", *(f"v{place}.c{number}" for number in range(len(read.features)))]
    rows = connection.execute(f"SELECT {', '.join(outputs)} FROM {joined}")
    width = len(lookup.reads)
    while batch := rows.fetchmany(BATCH_ROWS):
        for row in batch:
            vector: list[PartRow | None] = [None] * width
            at = len(keys)
            for place, read in reads:
                end = at + 1 + len(read.features)
                if row[at] is not None:
                    vector[place] = PartRow(row[at], as_of_us, row[at + 1 : end])
                at = end
            yield entity_key(row[: len(lookup.keys)]), vector


def _side(relation: str, keys: Sequence[KeyDefinition], read: ViewRead) -> str:
    """One view's rows with numbered columns, times as microseconds: what vectors hold."""

    def plain(name: str, dtype: str) -> str:
        return f"epoch_us({identifier(name)})" if dtype == "timestamp" else identifier(name)

    outputs = [f"{plain(key.name, key.dtype)} AS k{number}" for number, key in enumerate(keys)] or ["0 AS k0"]
    outputs.append(f"epoch_us({EVENT_TIMESTAMP}) AS event_us")
    outputs += [f"{plain(one.name, one.dtype)} AS c{number}" for number, one in enumerate(read.features)]
    return f"SELECT {', '.join(outputs)} FROM {relation}"


def _since(
    store: OnlineStore, lookup: Lookup, rows: Iterator[tuple[bytes, Sequence[PartRow | None]]], start_us: int
) -> Iterator[tuple[bytes, Sequence[PartRow | None]]]:
    """Without rows older than `start_us` that were not online before."""
    before = store.state(lookup.layout.table)
    readable = before is not None and before.layout.fingerprint == lookup.layout.fingerprint
    batch: list[tuple[bytes, Sequence[PartRow | None]]] = []
    for one in rows:
        batch.append(one)
        if len(batch) == BATCH_ROWS:
            yield from _kept(store if readable else None, lookup, batch, start_us)
            batch.clear()
    yield from _kept(store if readable else None, lookup, batch, start_us)


def _kept(
    store: OnlineStore | None, lookup: Lookup, batch: Sequence[tuple[bytes, Sequence[Any]]], start_us: int
) -> Iterator[tuple[bytes, Sequence[PartRow | None]]]:
    events = store.read(lookup.layout, [key for key, _ in batch]).events_us if store is not None else None
    for at, (key, vector) in enumerate(batch):
        kept = [
            row
            if row is not None and (row.event_us >= start_us or (events is not None and events[place][at] != ABSENT))
            else None
            for place, row in enumerate(vector)
        ]
        if any(row is not None for row in kept):
            yield key, kept


def view_facts(view: MaterializedView) -> dict[str, Any]:
    """What lineage tells of it at a glance."""
    facts: dict[str, Any] = {"rows": view.rows}
    if view.newest_us is not None:
        facts["newest_event_ns"] = view.newest_us * 1_000
    if view.snapshot:
        facts["snapshot"] = view.snapshot
    return facts
