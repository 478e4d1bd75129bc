"""Whether a converted model says what the original says: the gate before any import gets a number.

The converted files are loaded and scored by the same scorer that serves them, in a process of their own. Within
`TOLERANCE`, and the same label on every row; else the rows that differ are told, and nothing is registered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import ModelVersionV1, Pinned, Row, Scored, Signature
from drivetrain.registry.artifacts import artifact_digest, describe_files, write_files
from drivetrain.registry.candidates import DATASET, Candidate, Expected, Terms
from drivetrain.registry.signatures import check_signature
from drivetrain.registry.store import Draft, Registry, check_name
from drivetrain.registry.trials import OpenTrial

TOLERANCE = 1e-5
"""Of a probability; of a value too, or that share of it where it is larger than 1: formats compute in float32."""
SHOWN_MAX = 10
"""Rows that differ, in an error."""
SAMPLE_ROWS_MAX = 200_000
"""More prove nothing more, and take minutes."""
BATCH_ROWS = 1_000


class Differing(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the sample on which original and conversion part."""

    index: int
    """From 0."""
    original: str
    converted: str

    def __str__(self) -> str:
        return f"row {self.index}: original {self.original}, converted {self.converted}"


class ConversionRefused(DrivetrainError):
    """The conversion is not the original: how many rows differ, and the first of them."""

    def __init__(self, count: int, of: int, rows: Sequence[Differing]) -> None:
        self.count = count
        self.rows = tuple(rows)
        listed = "".join(f"\n  {one}" for one in rows)
        more = f"\n  and {count - len(rows):,} more" if count > len(rows) else ""
        super().__init__(
            f"The converted model differs from the original on {count:,} of {of:,} rows, so it is refused:"
            f"{listed}{more}",
            do=f"Nothing was registered. Probabilities and values may differ by {TOLERANCE:g}, labels not at all.",
        )


def accept(
    registry: Registry,
    candidate: Candidate,
    terms: Terms,
    *,
    open_trial: OpenTrial,
    expected: Expected | None = None,
) -> ModelVersionV1:
    """Score, compare, register. Without `expected`, one row of our own has to be scored without a fault.

    Raises: ConversionRefused; DrivetrainError.
    """
    check_name(terms.name)
    check_signature(candidate.signature)
    if terms.dataset and DATASET.fullmatch(terms.dataset) is None:
        raise DrivetrainError(f"{terms.dataset[:80]!r} names no Dataset.", do="Write NAME@NUMBER: `golden@3`.")
    with registry.workplaces.folder() as work:
        folder = work / "artifact"
        try:
            write_files(folder, candidate.files)
        except OSError as error:
            raise DrivetrainError(f"The model cannot be read or copied: {error.strerror or error}.") from None
        files = describe_files(folder)
        digest = artifact_digest(candidate.format, candidate.signature, files)
        pinned = Pinned(
            name=terms.name, number=0, digest=digest, format=candidate.format, signature=candidate.signature
        )
        _check_scores(folder, pinned, open_trial, expected)
        return registry.register(
            Draft(
                name=terms.name,
                format=candidate.format,
                signature=candidate.signature,
                files={one.path: folder / one.path for one in files},
                owner=terms.owner,
                licence=terms.licence,
                description=terms.description,
                dataset=terms.dataset,
                source=candidate.source,
                inputs=candidate.inputs,
            )
        )


def compare(signature: Signature, scored: Sequence[Scored], expected: Expected, start: int = 0) -> list[Differing]:
    """Rows on which they differ. start: index of the first row of `scored` in the sample."""
    found = []
    for place, one in enumerate(scored):
        index = start + place
        original, same = _row(signature, one, expected, index)
        if one.fault or not same:
            found.append(Differing(index=index, original=original, converted=one.fault or _told(one)))
    return found


def trial_row(signature: Signature) -> Row:
    """A row that fits the columns; of a ranking two candidates."""
    plain: dict[str, Any] = {"text": "a plain text", "float": 0.5, "int": 1, "bool": True}
    values = [one.values[0] if one.dtype == "category" else plain[one.dtype] for one in signature.inputs]
    return [[0, values], [1, values]] if signature.task == "ranking" else values


def _check_scores(folder: Path, pinned: Pinned, open_trial: OpenTrial, expected: Expected | None) -> None:
    rows = expected.rows if expected is not None else []
    if expected is not None and not 1 <= len(rows) <= SAMPLE_ROWS_MAX:
        raise DrivetrainError(
            f"The sample has {len(rows):,} rows; 1 to {SAMPLE_ROWS_MAX:,} can be compared.",
            do="Give rows as the model sees them, such as a test set.",
        )
    with open_trial(folder, pinned) as scorer:
        if expected is None:
            (scored,) = scorer.score([trial_row(pinned.signature)])
            fault = scored.fault or _nonsense(pinned.signature, scored)
            if fault:
                raise DrivetrainError(
                    f"The model was loaded, and cannot score a row: {fault}",
                    do="See whether its columns are those named.",
                )
            return
        count, shown = 0, list[Differing]()
        for start in range(0, len(rows), BATCH_ROWS):
            batch = _asked(pinned.signature, rows[start : start + BATCH_ROWS])
            differing = compare(pinned.signature, scorer.score(batch), expected, start)
            count += len(differing)
            shown += differing[: SHOWN_MAX - len(shown)]
    if count:
        raise ConversionRefused(count, len(rows), shown)


def _asked(signature: Signature, rows: Sequence[Row]) -> Sequence[Row]:
    """Rows of a sample as the scorer takes them: of a ranking each is the only candidate."""
    return [[[0, row]] for row in rows] if signature.task == "ranking" else rows


def _row(signature: Signature, scored: Scored, expected: Expected, index: int) -> tuple[str, bool]:
    """What the original says of a row, and whether the conversion says the same."""
    if expected.values:
        value, given = expected.values[index], _value(scored)
        return f"{value:.9g}", given is not None and _near(given, value, max(1.0, abs(value)))
    label = expected.labels[index]
    if not expected.probabilities:
        return label, scored.label == label
    chances = dict(zip(signature.labels, expected.probabilities[index], strict=True))
    same = (
        scored.label == label
        and scored.confidence is not None
        and _near(scored.confidence, chances[label])
        and all(_near(chance, chances.get(name, math.nan)) for name, chance in scored.scores.items())
    )
    return f"{label} {chances[label]:.9g}", same


def _value(scored: Scored) -> float | None:
    """Of a regression, or of the only candidate of a ranking."""
    return scored.ranking[0].score if len(scored.ranking) == 1 else scored.value


def _near(one: float, other: float, scale: float = 1.0) -> bool:
    return abs(one - other) <= TOLERANCE * scale  # not where either is NaN


def _told(scored: Scored) -> str:
    value = _value(scored)
    if value is not None:
        return f"{value:.9g}"
    return f"{scored.label} {scored.confidence:.9g}" if scored.confidence is not None else str(scored.label)


def _nonsense(signature: Signature, scored: Scored) -> str:
    """Why a result is none; empty where it is one."""
    if signature.task == "classification":
        sound = scored.label in signature.labels and scored.confidence is not None and 0 <= scored.confidence <= 1
        return "" if sound else f"it gives the label {scored.label!r} with the confidence {scored.confidence}."
    if signature.task == "ranking":
        sound = len(scored.ranking) == 2 and all(math.isfinite(one.score) for one in scored.ranking)
        return "" if sound else f"it ranks {len(scored.ranking)} of two candidates."
    return "" if scored.value is not None and math.isfinite(scored.value) else f"it gives {scored.value}."
