"""Rows of a sample as the estimator takes them and as our scorers do: one table out of what people have at hand.

Taken are arrays, lists of lists, lists of dicts, lists of texts, and frames of pandas or polars, none of which is
imported here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Column, Row
from drivetrain.registry.accepting import SAMPLE_ROWS_MAX


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A sample."""

    columns: tuple[Column, ...]
    rows: list[Row]
    given: Any
    """What the estimator is asked with."""
    uniform: bool
    """Whether it is one array of numbers, and no columns of several types."""


def read_texts(sample: Any) -> list[str]:
    """A sample of texts. Raises: DrivetrainError where it is none."""
    listed = _listed(sample)
    if not listed or not all(isinstance(one, str) for one in listed):
        raise DrivetrainError("The sample of a model of texts is a list of texts.", do='Give `sample=["...", "..."]`.')
    return [str(one) for one in listed]


def read_table(sample: Any, names: Sequence[str] = ()) -> Table:
    """names: of the columns, where the sample has none of its own. Raises: DrivetrainError."""
    import numpy as np

    if hasattr(sample, "columns") and hasattr(sample, "to_dict"):
        own = [str(one) for one in sample.columns]
        columns = [_column(name, _listed(sample[key]), _categories(sample[key])) for name, key in
                   zip(own, sample.columns, strict=True)]  # fmt: skip
        return _table(columns, sample, uniform=False)
    rows = _listed(sample)
    if rows and all(isinstance(one, Mapping) for one in rows):
        names = names or tuple(map(str, rows[0]))
        rows = [[one.get(name) for name in names] for one in rows]
    else:
        rows = [_listed(one) for one in rows]
    width = len(rows[0]) if rows else 0
    if not width or any(len(one) != width for one in rows):
        raise DrivetrainError("The sample has no rows, or rows of different lengths.", do="Give rows of a test set.")
    if names and len(names) != width:
        raise DrivetrainError(f"The sample has {width} columns, and {len(names)} are named.")
    found = [
        _column(name, [row[place] for row in rows])
        for place, name in enumerate(names or [f"f{place}" for place in range(width)])
    ]
    uniform = all(column.dtype in ("float", "int", "bool") for column, _ in found)
    if uniform:
        found = [(Column(name=one.name, dtype="float", nullable=one.nullable), _floats(own)) for one, own in found]
    is_array = hasattr(sample, "dtype")
    given = sample if is_array else np.array(
        [[math.nan if cell is None and uniform else cell for cell in row] for row in rows],
        dtype=np.float64 if uniform else object,
    )  # fmt: skip
    return _table(found, given, uniform=uniform)


def _table(columns: Sequence[tuple[Column, list[Any]]], given: Any, *, uniform: bool) -> Table:
    rows = [list(row) for row in zip(*(values for _, values in columns), strict=True)]
    if not 1 <= len(rows) <= SAMPLE_ROWS_MAX:
        raise DrivetrainError(
            f"The sample has {len(rows):,} rows; 1 to {SAMPLE_ROWS_MAX:,} can be compared.",
            do="Give rows as the model sees them, such as a test set.",
        )
    return Table(columns=tuple(column for column, _ in columns), rows=rows, given=given, uniform=uniform)


def _column(name: str, values: list[Any], categories: Sequence[str] = ()) -> tuple[Column, list[Any]]:
    """Its type, by the values that are there. Raises: DrivetrainError where they are of several."""
    plain = [_plain(one) for one in values]
    there = [one for one in plain if one is not None]
    nullable = len(there) < len(plain)
    if categories:
        return Column(name=name, dtype="category", nullable=True, values=tuple(categories)), plain
    if there and all(isinstance(one, str) for one in there):
        return Column(name=name, dtype="text", nullable=nullable), plain
    if there and all(isinstance(one, bool) for one in there):
        return Column(name=name, dtype="bool", nullable=nullable), plain
    if there and all(isinstance(one, int) and not isinstance(one, bool) for one in there) and not nullable:
        return Column(name=name, dtype="int"), plain
    if all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in there):
        return Column(name=name, dtype="float", nullable=nullable), _floats(plain)
    raise DrivetrainError(f"Column `{name}` of the sample has values of several types, or none that is known.")


def _floats(values: Iterable[Any]) -> list[Any]:
    return [None if one is None else float(one) for one in values]


def _plain(value: Any) -> Any:
    """Python's own value; None for NaN and for pandas' missing ones."""
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    return None if type(value).__name__ in ("NAType", "NaTType") else value


def _listed(values: Any) -> list[Any]:
    return list(values.tolist()) if hasattr(values, "tolist") else list(values)


def _categories(series: Any) -> tuple[str, ...]:
    """Of a pandas column of the type `category`."""
    if str(getattr(series, "dtype", "")) != "category":
        return ()
    values = _listed(series.cat.categories)
    if not all(isinstance(one, str) for one in values):
        raise DrivetrainError("A category whose values are no texts cannot be imported.", do="Make them texts.")
    return tuple(values)
