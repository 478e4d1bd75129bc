"""How fresh sources and feature views are, against what was promised of them.

A source's newest event is looked up in its rows; a view's is what its last materialization recorded, and that of a
system outside what anybody recorded of it. Called by `drivetrain freshness`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.features import AnySource, FileSource, PushSource, SqlSource, TableSource
from drivetrain.core.sql import identifier, literal
from drivetrain.core.times import NS_PER_S
from drivetrain.lake.lake import Lake
from drivetrain.lake.sandbox import translated
from drivetrain.lineage.graph import Graph
from drivetrain.project.snapshot import Snapshot
from drivetrain.project.source_checks import duration_s

if TYPE_CHECKING:
    import duckdb

NEWEST_FACT = "newest_event_ns"
"""Fact of a record that says what its artifact's newest event is."""
READERS = {
    ".parquet": "read_parquet({}, union_by_name=true)",
    ".csv": "read_csv({}, union_by_name=true)",
    ".json": "read_json({}, union_by_name=true)",
    ".jsonl": "read_json({}, format='newline_delimited', union_by_name=true)",
    ".ndjson": "read_json({}, format='newline_delimited', union_by_name=true)",
}
UNITS_NS = {"_ns": 1, "_us": 1_000, "_ms": 1_000_000}
"""What a whole number in a time column counts, by the column's name; else seconds."""
NOTE_CHARS_MAX = 300
"""Of what a database says when it cannot read a source."""


class Freshness(msgspec.Struct, frozen=True, kw_only=True):
    """One source or view."""

    artifact: str
    newest_ns: int | None = None
    """When its newest event happened, the future apart; None: that is not known."""
    age_s: float | None = None
    promise_s: int | None = None
    """None: nothing is promised."""
    note: str = ""
    """Why it is not known, or what is odd."""
    outside: bool = False

    @property
    def standing(self) -> str:
        """`fresh`, `late`, `unknown` (promised, and not to be seen from here), or `unpromised`."""
        if self.promise_s is None:
            return "unpromised"
        if self.age_s is None:
            return "unknown" if self.outside else "late"
        return "late" if self.age_s > self.promise_s else "fresh"


def freshness(snapshot: Snapshot, graph: Graph, lake: Lake, *, now_ns: int) -> list[Freshness]:
    """Every declared source, view and system outside. A source that cannot be read, or has no row, is late.

    Reads the time column of every source once. Raises: DrivetrainError where the lake itself cannot be read.
    """
    features = snapshot.features
    found = []
    with lake.connect(folders=[snapshot.root]) as connection:
        for name, source in features.sources.items():
            newest_ns, note = _newest(connection, source, snapshot.root, now_ns)
            found.append(_measured(f"source:{name}", newest_ns, source.fresh_within, now_ns, note=note))
    for name, view in features.views.items():
        if view.online:
            found.append(_recorded(graph, f"features:{name}", view.source.fresh_within, now_ns, outside=False))
    for name, outside in features.outside.items():
        found.append(_recorded(graph, f"source:{name}", outside.fresh_within, now_ns, outside=True))
    return sorted(found, key=lambda one: one.artifact)


def _recorded(graph: Graph, artifact: str, promise: str | None, now_ns: int, *, outside: bool) -> Freshness:
    """What the newest record of an artifact, or of a version of it, says."""
    candidates = [artifact, *graph.inputs(artifact)]
    made = [graph.node(one).made for one in candidates if one == artifact or one.startswith(f"{artifact}@")]
    newest = max((one for one in made if one is not None), key=lambda one: one.at_ns, default=None)
    if newest is None:
        note = "nobody recorded its newest event" if outside else "never materialized"
        return _measured(artifact, None, promise, now_ns, note=note, outside=outside)
    event_ns = newest.facts.get(NEWEST_FACT)
    if not isinstance(event_ns, int) or isinstance(event_ns, bool):
        note = f"its last record does not say its `{NEWEST_FACT}`"
        return _measured(artifact, None, promise, now_ns, note=note, outside=outside)
    return _measured(artifact, event_ns, promise, now_ns, outside=outside)


def _measured(
    artifact: str, newest_ns: int | None, promise: str | None, now_ns: int, *, note: str = "", outside: bool = False
) -> Freshness:
    return Freshness(
        artifact=artifact,
        newest_ns=newest_ns,
        age_s=None if newest_ns is None else max(0, now_ns - newest_ns) / NS_PER_S,
        promise_s=duration_s(promise),
        note=note,
        outside=outside,
    )


def _newest(
    connection: duckdb.DuckDBPyConnection, source: AnySource, root: Path, now_ns: int
) -> tuple[int | None, str]:
    """The newest event of a source's rows that is not in the future, and what to say of it."""
    try:
        with translated(connection):
            rows = _rows_sql(source, root)
            column = identifier(source.timestamp_field)
            kind = connection.execute(f"SELECT {column} FROM {rows} LIMIT 0").description[0][1]  # noqa: S608 - quoted
            event_ns = _event_ns(column, source.timestamp_field, str(kind))
            newest, ahead = connection.execute(
                "SELECT max(t) FILTER (t <= $now), count(*) FILTER (t > $now) "  # noqa: S608 - quoted
                f"FROM (SELECT {event_ns} AS t FROM {rows})",
                {"now": now_ns},
            ).fetchall()[0]
    except DrivetrainError as error:
        return None, f"it cannot be read: {' '.join(str(error).split())}"[:NOTE_CHARS_MAX]
    if newest is None:
        return None, "it has no row" if not ahead else f"all of its {ahead} rows are in the future"
    return int(newest), f"{ahead} of its rows are in the future" if ahead else ""


def _rows_sql(source: AnySource, root: Path) -> str:
    """A source's rows as a FROM clause has them. Raises: DrivetrainError for a file of an unknown kind."""
    if isinstance(source, FileSource):
        path = root / source.path
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise DrivetrainError(f"{source.path} is no Parquet, CSV or JSON-lines file.")
        return reader.format(literal(str(path)))
    if isinstance(source, TableSource):
        parts = re.findall(r'"[^"]+"|[^."]+', source.table)
        return ".".join(identifier(part.strip('"')) for part in parts)
    if isinstance(source, SqlSource):
        return f"({source.query.rstrip().rstrip(';')})"
    if isinstance(source, PushSource):
        return f"push.{identifier(source.name)}"
    raise DrivetrainError(f"`{source!r}` is no source.")


def _event_ns(column: str, name: str, kind: str) -> Any:
    """SQL of a time column as nanoseconds since 1970, UTC where it has no offset."""
    if "INT" in kind.upper():
        return f"CAST({column} AS HUGEINT) * {UNITS_NS.get(name[-3:], NS_PER_S)}"
    return f"CAST(epoch_us(CAST({column} AS TIMESTAMPTZ)) AS HUGEINT) * 1000"
