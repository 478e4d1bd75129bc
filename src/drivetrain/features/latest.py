"""What a view knows at one moment, of every key: what materialization writes."""

# ruff: noqa: S608  every name in these statements is of our own making, or quoted

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.sql import identifier
from drivetrain.features.definitions import ViewDefinition
from drivetrain.features.points import chosen_windows, values_at
from drivetrain.features.scratch import explained, scratch_of
from drivetrain.features.sources import read_rows, wrong_value

if TYPE_CHECKING:
    import duckdb

EVENT_TIMESTAMP = "event_timestamp"


class Latest(msgspec.Struct, frozen=True):
    """The rows of a view as of a moment."""

    relation: duckdb.DuckDBPyRelation
    """Join keys, features (as they are: no default stands in), `event_timestamp`; one row per key."""
    rows: int
    newest_us: int | None
    """The newest event time among them; None where there is no row."""


def latest(connection: duckdb.DuckDBPyConnection, view: ViewDefinition, at_us: int, *, root: Path) -> Latest:
    """Per key, what a training set's label at `at_us` would get; keys that would get nothing are left out.

    at_us: UTC microseconds. root: the project's folder. `event_timestamp` is the row's own, or of a window's newest
    event. The rows stay in a temporary table of the connection. Raises: DrivetrainError.
    """
    with scratch_of(connection) as scratch:
        rows = read_rows(connection, view, [], root)
        known = [f"{key} IS NOT NULL" for key in rows.key_names]
        known.append(f"event_us <= {at_us}")
        if rows.created:
            known.append(f"created_us <= {at_us}")
        windows = chosen_windows(view, view.features)
        oldest = max((one.over_us for one in windows), default=None) or view.ttl_us
        if oldest is not None:
            known.append(f"event_us >= {at_us - oldest}")
        keys = ", ".join(rows.key_names)
        try:
            with explained(f"The source `{view.source.name}` of FeatureView `{view.name}`"):
                points = scratch.table(
                    f"SELECT row_number() OVER () AS n, {keys}, CAST({at_us} AS BIGINT) AS t_us"
                    f" FROM (SELECT DISTINCT {keys} FROM ({rows.sql}) WHERE {' AND '.join(known)})"
                )
        except DrivetrainError:
            wrong = wrong_value(connection, view, [], root)
            if wrong is not None:
                raise wrong from None
            raise
        values = values_at(scratch, points, view, view.features, root=root)
        outputs = [f"k{number} AS {identifier(key.name)}" for number, key in enumerate(view.keys)]
        outputs += [f"c{number} AS {identifier(one.name)}" for number, one in enumerate(view.features)]
        outputs.append(f"make_timestamptz(event_us) AS {EVENT_TIMESTAMP}")
        made = scratch.table(f"SELECT {', '.join(outputs)} FROM {points} JOIN {values} USING (n)")
        count, newest = connection.execute(f"SELECT count(*), max(epoch_us({EVENT_TIMESTAMP})) FROM {made}").fetchall()[
            0
        ]
        scratch.drop(points, values)
        return Latest(connection.table(made), count, newest)
