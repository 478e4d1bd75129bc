"""On-demand features: one Python function, run over one row at a time, the same for a training set and for a Call.

Owns what the function sees and what may come back. Offline and online both call `compute`, so that types, nulls and
defaults are treated once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.features.definitions import FeatureDefinition, OnDemandDefinition
from drivetrain.features.dtypes import COERCE, coerce, kind_of


def compute(
    view: OnDemandDefinition,
    values: Mapping[str, Any],
    request: Mapping[str, Any],
    *,
    defaults: bool = True,
) -> dict[str, Any]:
    """The view's features for one row, by name.

    values: `VIEW__FEATURE` -> value, of the view's inputs at least, of their declared types. request: its request
    columns, as `request_columns` gives them. defaults: whether a feature that the function leaves null is its default.
    Raises: DrivetrainError where the function fails, or returns what it did not declare.
    """
    row = {one.argument: values[one.full_name] for one in view.inputs}
    for column in view.request:
        row[column.name] = request[column.name]
    try:
        answer = view.function(row)
    except (Exception, SystemExit) as error:  # a function never ends the process that serves others
        raise DrivetrainError(
            f"The function of OnDemandFeatureView `{view.name}` raised {type(error).__name__}.",
            do="It has to take every row that its types allow; a value may be None.",
        ) from error
    if not isinstance(answer, Mapping):
        raise DrivetrainError(
            f"The function of OnDemandFeatureView `{view.name}` returned {kind_of(answer)}.",
            do='Return its features by name: `{"ratio": 0.5}`.',
        )
    features = {one.name: _feature(view, one, answer, defaults) for one in view.features}
    if len(answer) > len(features):
        name = next(one for one in answer if one not in features)
        raise DrivetrainError(
            f"The function of OnDemandFeatureView `{view.name}` returned `{name}`, which its schema does not have.",
            do=did_you_mean(str(name), features),
        )
    return features


def request_columns(columns: tuple[FeatureDefinition, ...], request: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that a request has to bring, typed; a default stands for one that is missing or null.

    Raises: DrivetrainError where a column without a default is missing, or one has another type.
    """
    typed: dict[str, Any] = {}
    for column in columns:
        if column.name not in request and column.default is None:
            raise DrivetrainError(
                f"The request column `{column.name}` is missing.", do=f"Give it along, as {column.dtype}."
            )
        try:
            value = coerce(column.dtype, request.get(column.name))
        except ValueError as error:
            raise DrivetrainError(f"The request column `{column.name}` has a wrong value: {error}.") from None
        typed[column.name] = column.default if value is None else value
    return typed


def _feature(view: OnDemandDefinition, feature: FeatureDefinition, answer: Mapping[str, Any], defaults: bool) -> Any:
    if feature.name not in answer:
        raise DrivetrainError(
            f"The function of OnDemandFeatureView `{view.name}` did not return `{feature.name}`.",
            do="Return every feature of its schema; None is a value.",
        )
    value = answer[feature.name]
    if value is None:
        return feature.default if defaults else None
    try:
        return COERCE[feature.dtype](value)
    except ValueError as error:
        raise DrivetrainError(
            f"OnDemandFeatureView `{view.name}` gave a wrong value for `{feature.name}`: {error}.",
            do="Convert it in the function; nothing is rounded behind its back.",
        ) from None
