"""How fresh sources and feature views are, against what was promised of them.

A source's newest event is looked up in its rows, read as features read them; a view's is what its last materialization
recorded, and that of a system outside what anybody recorded of it. Called by `drivetrain freshness`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.features import AnySource
from drivetrain.core.times import NS_PER_S
from drivetrain.features.scratch import explained
from drivetrain.features.sources import SourceAbsent, event_times
from drivetrain.lake.lake import Lake
from drivetrain.lineage.graph import Graph
from drivetrain.project.snapshot import Snapshot
from drivetrain.project.source_checks import duration_s

if TYPE_CHECKING:
    import duckdb

NEWEST_FACT = "newest_event_ns"
"""Fact of a record that says what its artifact's newest event is."""
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
    with lake.connect(trusted=True) as connection:  # queries are guarded by who reads sources
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
    if event_ns is None and newest.facts.get("rows") == 0:
        return _measured(artifact, None, promise, now_ns, note="it has no rows", outside=outside)
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
    where = f"The source `{source.name}`"
    try:
        times = event_times(connection, source, root, where)
        with explained(where):
            newest_us, ahead = connection.execute(
                f"SELECT max(event_us) FILTER (event_us <= $now), count(*) FILTER (event_us > $now) FROM ({times})",  # noqa: S608
                {"now": now_ns // 1_000},
            ).fetchall()[0]
    except SourceAbsent as error:
        return None, error.note
    except DrivetrainError as error:
        why = " ".join(error.what.removeprefix(f"{where} cannot be read: ").split())
        return None, f"it cannot be read: {why}"[:NOTE_CHARS_MAX]
    if newest_us is None:
        return None, "it has no row" if not ahead else f"all of its {ahead} rows are in the future"
    return int(newest_us) * 1_000, f"{ahead} of its rows are in the future" if ahead else ""
