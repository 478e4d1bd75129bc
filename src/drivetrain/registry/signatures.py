"""What a signature has to be before a model is registered under it."""

from __future__ import annotations

from collections.abc import Iterable

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.models import DTYPES, TASKS, Column, Signature

COLUMNS_MAX = 10_000
"""Each is a value in every request."""
LABELS_MAX = 10_000
"""As many classes as the formats score."""
VALUES_MAX = 100_000
"""Of all categories together."""
NAME_CHARS_MAX = 200
"""Of a name, a label or a category's value."""


def check_signature(signature: Signature) -> None:
    """Raises: DrivetrainError that says what is wrong, and with which column."""
    if signature.task not in TASKS:
        raise DrivetrainError(f"`{signature.task[:50]}` is no task of a model.", do=did_you_mean(signature.task, TASKS))
    _check_text("target", signature.target)
    _check_columns(signature.inputs)
    if signature.task == "classification":
        if not 2 <= len(signature.labels) <= LABELS_MAX:
            raise DrivetrainError(f"A classification has 2 to {LABELS_MAX:,} labels; {len(signature.labels)} are told.")
        _check_distinct("label", signature.labels)
    elif signature.labels:
        raise DrivetrainError(f"A {signature.task} has no labels.", do="Leave them out.")
    if (signature.task == "ranking") != bool(signature.candidates and signature.candidate_id):
        raise DrivetrainError(
            "A ranking, and nothing else, says which field lists its candidates and which tells them apart.",
            do="Set `candidates` and `candidate_id` of the signature.",
        )


def _check_columns(columns: tuple[Column, ...]) -> None:
    if not 1 <= len(columns) <= COLUMNS_MAX:
        raise DrivetrainError(f"A model has 1 to {COLUMNS_MAX:,} input columns; {len(columns):,} are told.")
    _check_distinct("column", [one.name for one in columns])
    if sum(len(one.values) for one in columns) > VALUES_MAX:
        raise DrivetrainError(f"The categories have more than {VALUES_MAX:,} values together.")
    for one in columns:
        if one.dtype not in DTYPES:
            raise DrivetrainError(
                f"Column `{one.name}` has the type `{one.dtype[:50]}`.", do=did_you_mean(one.dtype, DTYPES)
            )
        if (one.dtype == "category") != bool(one.values):
            raise DrivetrainError(f"Column `{one.name}`: a category, and nothing else, lists the values that it knows.")
        if len(set(one.values)) != len(one.values):
            raise DrivetrainError(f"Column `{one.name}` lists a value twice.")


def _check_distinct(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        _check_text(what, name)
        if name in seen:
            raise DrivetrainError(f"The {what} `{name}` is there twice.")
        seen.add(name)


def _check_text(what: str, name: str) -> None:
    if not name or len(name) > NAME_CHARS_MAX or not name.isprintable():
        raise DrivetrainError(
            f"{name[:NAME_CHARS_MAX]!r} is no {what}.", do=f"It has 1 to {NAME_CHARS_MAX} printable characters."
        )
