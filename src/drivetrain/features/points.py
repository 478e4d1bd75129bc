"""Values of one view at many points (a key and a moment each): the one path of training sets and of materialization.

Because both take it, the vector that is served as of a moment holds what a training set would, computed by the same
statements over the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drivetrain.core.errors import DrivetrainError
from drivetrain.features.asof import Ties, as_of
from drivetrain.features.definitions import FeatureDefinition, ViewDefinition, WindowDefinition
from drivetrain.features.scratch import Scratch, explained
from drivetrain.features.sources import Column, read_rows, wrong_value
from drivetrain.features.windows import event_columns, windowed


def values_at(
    scratch: Scratch,
    points: str,
    view: ViewDefinition,
    features: Sequence[FeatureDefinition],
    *,
    root: Path,
    corrected: bool = False,
) -> str:
    """A table (n, event_us, c0, c1 ...), one c per feature in order; points that the view says nothing of are left out.

    points: a table (n, k0, k1 ..., t_us), each n once; the keys have the types of the view's, and k0 is 0 where it has
    none. corrected: later corrections change the past, as in Feast. Raises: DrivetrainError.
    """
    windows = chosen_windows(view, features)
    columns = event_columns(windows) if windows else [Column(one.name, one.dtype) for one in features]
    rows = read_rows(scratch.connection, view, columns, root)
    if corrected and windows:
        rows = rows.without_created()
    try:
        with explained(f"The source `{view.source.name}` of FeatureView `{view.name}`"):
            if windows:
                return windowed(scratch, points, rows, windows, columns)
            ties = (lambda: _ties(scratch, view, columns, root)) if len(columns) < len(view.features) else None
            return as_of(scratch, points, rows, ttl_us=view.ttl_us, corrected=corrected, ties=ties)
    except DrivetrainError:
        wrong = wrong_value(scratch.connection, view, columns, root)
        if wrong is not None:
            raise wrong from None
        raise


def _ties(scratch: Scratch, view: ViewDefinition, asked: Sequence[Column], root: Path) -> Ties:
    """All columns of a view, those that are asked for first: a row wins for every service or for none."""
    names = [one.name for one in asked]
    every = [*asked, *(Column(one.name, one.dtype) for one in view.features if one.name not in names)]
    places = {one.name: f"c{number}" for number, one in enumerate(every)}
    return Ties(read_rows(scratch.connection, view, every, root), tuple(places[one.name] for one in view.features))


def chosen_windows(view: ViewDefinition, features: Sequence[FeatureDefinition]) -> list[WindowDefinition]:
    """The windows behind some features of a view, in their order; none where it has columns."""
    by_feature = {window.feature: window for window in view.windows}
    return [by_feature[one.name] for one in features] if by_feature else []
