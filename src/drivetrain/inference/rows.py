"""Rows in and results out, whatever the format: values checked against a model's signature, and what it says of them.

A row that does not fit gets a fault that names the column and the value; the others of its batch stand. Nothing is
guessed: `true` is no number, `3.0` is no whole number, and a category that the model never saw is null or a fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import DTYPES, SCORES_MAX, Column, Pinned, Ranked, Row, Scored, Signature

Values = list[Any]
"""One row, or one candidate, as the model takes it: a value for each column."""

TEXT_CHARS_MAX = 20_000
"""Some five pages, which take about 10 ms to score; a longer text would hold up every other request of its process."""
CANDIDATES_MAX = 1_000
"""Of one ranking: each costs as much as a row."""
SHOWN_CHARS = 60
"""Of a value, in a fault."""
SAMPLE_TEXT = "where is my new card please where is my new card please"
SAMPLE_CANDIDATES = 20
"""Of a row that a model is measured with."""
FLOAT32_MAX = 3.4028234663852886e38
LOG_LEAST = -1e4
"""Stands for the logarithm of 0, so that nothing infinite is subtracted."""
WHOLE_FLOAT_MAX = 2**53
"""Above it a float cannot tell one whole number from the next."""


class UnfitValue(Exception):
    """A value that the signature does not allow; its text is the row's fault."""


class RowFailed(Exception):
    """A model that cannot compute a row among those it was given; its text is the fault."""


KINDS = ("float64", "float32", "int64", "int32", "bool", "string")
"""How a model takes a column; of a category a number is its code."""


class Outcome(msgspec.Struct, frozen=True):
    """What a model computed of some values."""

    numbers: NDArray[np.float64]
    """Shape (values, labels), or (values, 1) of what has none; zeros where there is a fault."""
    faults: dict[int, str]
    """Place among the values -> why it could not be computed."""


class Batch(msgspec.Struct, frozen=True):
    """What could be read of some rows."""

    values: list[Values]
    """Of every row that fits, one after another; of a ranking, of every candidate."""
    spans: list[tuple[int, int]]
    """Of each row, where its values stand in `values`; an empty span where it has a fault, or no candidates."""
    ids: list[list[Any]]
    """Of a ranking: of each row, its candidates' ids."""
    faults: dict[int, str]
    """Number of a row -> why it does not fit."""


class RowReader:
    """Checks rows against a signature and turns each value into what the model takes."""

    __slots__ = ("_columns", "_ranking", "_readers")

    def __init__(self, pinned: Pinned, kinds: Sequence[str]) -> None:
        """kinds: of each input, one of `KINDS`. Raises: DrivetrainError where a column cannot become its kind."""
        columns = pinned.signature.inputs
        if len(kinds) != len(columns):
            raise DrivetrainError(
                f"Model `{pinned.id}` takes {len(kinds)} columns, its signature names {len(columns)}.",
                do="Register it again with one column for each input.",
            )
        self._columns = columns
        self._readers = [reader_of(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        self._ranking = pinned.signature.task == "ranking"

    def read(self, rows: Sequence[Row]) -> Batch:
        """Every row that fits, and why the others do not."""
        batch = Batch([], [], [], {})
        for number, row in enumerate(rows):
            start = len(batch.values)
            try:
                if self._ranking:
                    batch.ids.append(self._candidates(row, batch.values))
                else:
                    batch.values.append(self._row(row))
            except UnfitValue as unfit:
                batch.faults[number] = str(unfit)
                del batch.values[start:]
                if self._ranking:
                    batch.ids.append([])
            batch.spans.append((start, len(batch.values)))
        return batch

    def _row(self, row: object) -> Values:
        if not isinstance(row, (list, tuple)) or len(row) != len(self._readers):
            has = f"{len(row)} values" if isinstance(row, (list, tuple)) else f"no list of values: {shown(row)}"
            raise UnfitValue(f"The row has {has}; the model takes {len(self._readers)}: {self._named()}.")
        return [read(value) for read, value in zip(self._readers, row, strict=True)]

    def _candidates(self, row: object, into: list[Values]) -> list[Any]:
        if not isinstance(row, (list, tuple)):
            raise UnfitValue(f"A ranking takes a list of candidates; this is {shown(row)}.")
        if len(row) > CANDIDATES_MAX:
            raise UnfitValue(f"There are {len(row):,} candidates; at most {CANDIDATES_MAX:,} are ranked.")
        ids: list[Any] = []
        for number, candidate in enumerate(row):
            if not isinstance(candidate, (list, tuple)) or len(candidate) != 2:
                raise UnfitValue(f"Candidate {number} is no pair of an id and its values: {shown(candidate)}.")
            try:
                into.append(self._row(candidate[1]))
            except UnfitValue as unfit:
                raise UnfitValue(f"Candidate {number} ({shown(candidate[0])}): {unfit}") from None
            ids.append(candidate[0])
        return ids

    def _named(self) -> str:
        names = [f"`{column.name}`" for column in self._columns]
        return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")


def reader_of(column: Column, kind: str) -> Callable[[Any], Any]:
    """From a value to what the model takes for it. It raises UnfitValue where the column does not allow the value.

    Raises: DrivetrainError where the column's type cannot be given to the model as this kind.
    """
    if column.dtype not in DTYPES:
        raise DrivetrainError(
            f"Column `{column.name}` has the type `{column.dtype}`.", do=f"Known: {', '.join(DTYPES)}."
        )
    number = kind != "string"
    if number and column.dtype == "text":
        raise DrivetrainError(
            f"The model takes a number ({kind}) where column `{column.name}` is a text.",
            do="Declare it as `float`, `int`, `bool` or `category`.",
        )
    if not number and column.dtype not in ("text", "category"):
        raise DrivetrainError(
            f"The model takes a text where column `{column.name}` is `{column.dtype}`.",
            do="Declare it as `text` or `category`.",
        )
    if column.dtype == "category" and not column.values:
        raise DrivetrainError(f"Category `{column.name}` names no values.", do="Register the model with its `values`.")
    if column.nullable and kind in ("int64", "int32", "bool"):
        raise DrivetrainError(
            f"Column `{column.name}` may be null, and the model takes {kind} there, which knows no null.",
            do="Declare it not nullable, or export the model with a float input.",
        )
    null: Any = math.nan if number else ""
    read = _category(column, kind, null) if column.dtype == "category" else _PLAIN[column.dtype](column, kind)

    def checked(value: Any) -> Any:
        if value is None or (column.dtype == "float" and isinstance(value, float) and math.isnan(value)):
            if column.nullable:
                return null
            raise UnfitValue(f"`{column.name}` is null, and the model takes no null there.")
        return read(value)

    return checked


def _text(column: Column, _kind: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise UnfitValue(f"`{column.name}` has to be a text: {shown(value)}.")
        if len(value) > TEXT_CHARS_MAX:
            raise UnfitValue(f"`{column.name}` has {len(value):,} characters; at most {TEXT_CHARS_MAX:,} are scored.")
        return value

    return read


def _float(column: Column, kind: str) -> Callable[[Any], float | int]:
    if kind not in ("float32", "float64"):
        raise DrivetrainError(
            f"The model takes {kind} where column `{column.name}` is `float`.", do="Declare it as `int` or `bool`."
        )

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UnfitValue(f"`{column.name}` has to be a number: {shown(value)}.")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        return _fits(column, kind, number, value)

    return read


def _int(column: Column, kind: str) -> Callable[[Any], float | int]:
    most = {"int32": 2**31 - 1, "int64": 2**63 - 1, "bool": 1}.get(kind, WHOLE_FLOAT_MAX)
    least = 0 if kind == "bool" else -most - (kind in ("int32", "int64"))

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise UnfitValue(f"`{column.name}` has to be a whole number: {shown(value)}.")
        if not least <= value <= most:
            raise UnfitValue(f"`{column.name}` is {shown(value)}; the model takes {least:,} to {most:,}.")
        return value

    return read


def _bool(column: Column, _kind: str) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not isinstance(value, bool):
            raise UnfitValue(f"`{column.name}` has to be true or false: {shown(value)}.")
        return int(value)

    return read


def _category(column: Column, kind: str, null: Any) -> Callable[[Any], Any]:
    codes: dict[str, Any] = {one: one if kind == "string" else code for code, one in enumerate(column.values)}

    def read(value: Any) -> Any:
        if not isinstance(value, str):
            raise UnfitValue(f"`{column.name}` has to be a text: {shown(value)}.")
        code = codes.get(value)
        if code is not None:
            return code
        if column.nullable:
            return null
        raise UnfitValue(f"`{column.name}` is {shown(value)}, a value that the model never saw.")

    return read


_PLAIN: dict[str, Callable[[Column, str], Callable[[Any], Any]]] = {
    "text": _text,
    "float": _float,
    "int": _int,
    "bool": _bool,
}


def _fits(column: Column, kind: str, number: float, value: Any) -> float:
    if math.isinf(number):
        raise UnfitValue(f"`{column.name}` is {shown(value)}, which is not finite.")
    if kind == "float32" and abs(number) > FLOAT32_MAX:
        raise UnfitValue(f"`{column.name}` is {shown(value)}, which is beyond what the model's float32 holds.")
    return number


def shown(value: object) -> str:
    """A value in a fault: as JSON would have it, cut at `SHOWN_CHARS`."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return "a number of hundreds of digits"
    text = f'"{value[:SHOWN_CHARS]}"' if isinstance(value, str) else repr(value)
    if isinstance(value, str) and len(value) > SHOWN_CHARS:
        return f'{text[:-1]}..."'
    return text if len(text) <= SHOWN_CHARS + 2 else f"{text[:SHOWN_CHARS]}..."


def sample_row(pinned: Pinned) -> Row:
    """A row that fits the signature, to measure a model with: a middling text, middling numbers, first categories."""
    plain = {"text": SAMPLE_TEXT, "float": 0.5, "int": 1, "bool": True}
    values = [
        (column.values or ("",))[0] if column.dtype == "category" else plain[column.dtype]
        for column in pinned.signature.inputs
    ]
    return [[number, values] for number in range(SAMPLE_CANDIDATES)] if pinned.signature.task == "ranking" else values


def predicted(
    predict: Callable[[Sequence[Values]], NDArray[np.float64]], values: Sequence[Values], signature: Signature
) -> Outcome:
    """What a model computes of these values; where the batch fails, each by itself, so that the others stand."""
    width = len(signature.labels) if signature.task == "classification" else 1
    numbers, faults = np.zeros((len(values), width)), dict[int, str]()
    if not values:
        return Outcome(numbers, faults)
    try:
        found = _shaped(predict(values), width, signature.task)
    except RowFailed as failed:
        if len(values) == 1:
            faults[0] = str(failed)
            return Outcome(numbers, faults)
        for place, one in enumerate(values):
            alone = predicted(predict, [one], signature)
            numbers[place] = alone.numbers[0]
            if alone.faults:
                faults[place] = alone.faults[0]
        return Outcome(numbers, faults)
    finite = np.isfinite(found).all(axis=1)
    for place in np.flatnonzero(~finite).tolist():
        faults[place] = "The model gave a number that is not finite."
    numbers[finite] = found[finite]
    return Outcome(numbers, faults)


def _shaped(found: NDArray[np.float64], width: int, task: str) -> NDArray[np.float64]:
    """One column per label. One chance for two labels is the second's; two chances rank by the second."""
    given = found.shape[1]
    if given == width:
        return found
    if task == "classification" and (given, width) == (1, 2):
        return np.concatenate([1 - found, found], axis=1)
    if task == "ranking" and given == 2:
        return found[:, 1:]
    raise RowFailed(f"The model gave {given} numbers for a row where its signature has {width}.")


def tempered(probabilities: NDArray[np.float64], temperature: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(probabilities, what orders them) after their margins were divided by a temperature; of 1 as they are.

    The logarithm of a probability is its margin but for a constant that the softmax takes away again.
    """
    if temperature == 1:
        return probabilities, probabilities
    with np.errstate(divide="ignore"):
        margins = np.log(np.maximum(probabilities, 0)) / temperature
    return softmax(np.maximum(margins, LOG_LEAST)), probabilities


def classified(
    labels: Sequence[str], probabilities: NDArray[np.float64], order_by: NDArray[np.float64]
) -> list[Scored]:
    """One result per row; both arrays have the shape (rows, labels).

    order_by: what is larger the likelier a label is; margins still tell labels apart whose probabilities round to 1.
    Equal ones keep the labels' order.
    """
    top = np.argsort(-order_by, axis=1, kind="stable")[:, :SCORES_MAX]
    likeliest = probabilities[np.arange(len(top))[:, None], top].tolist()
    return [
        Scored(
            label=labels[places[0]],
            confidence=chances[0],
            scores={labels[place]: chance for place, chance in zip(places, chances, strict=True)},
        )
        for places, chances in zip(top.tolist(), likeliest, strict=True)
    ]


def ranked(ids: Sequence[Any], scores: Sequence[float]) -> Scored:
    """Every candidate, best first; equal ones in the order they came in."""
    order = sorted(range(len(ids)), key=lambda place: -scores[place])
    return Scored(ranking=tuple(Ranked(ids[place], scores[place]) for place in order))


def softmax(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row by row; no margin is too large for it."""
    powers = np.exp(margins - margins.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def sigmoid(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each margin by itself."""
    small = np.exp(-np.abs(margins))
    chances: NDArray[np.float64] = np.where(margins >= 0, 1.0, small) / (1.0 + small)
    return chances
