"""A Call that went wrong becomes a row of a Dataset: its input, what would have been right, and its id.

Owns what the row holds. The next number of the Dataset is made by the room of Datasets, which checks it as any other;
the numbers before stay as they are. Called by `drivetrain eval add`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.codec import JSON, MalformedJson, parse_json
from drivetrain.core.datasets import SPLIT, SPLIT_GROUP, ColumnV1, DatasetV1, SchemaV1
from drivetrain.core.declarations import Workflow
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.evals import EXPECTED, Eval
from drivetrain.datasets import Datasets
from drivetrain.datasets.schema import Declared
from drivetrain.datasets.sources import FromFile
from drivetrain.evals.cases import INPUT, MESSAGES, TEXT

CALL_ID = "call_id"
"""The column that says which Call a row came from."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """One Call whose answer was wrong."""

    call_id: str
    raw: bytes
    """Its workflow's input as JSON."""
    expected: Any
    user: str = ""
    """Whose Call it was, for a Dataset that tells people apart."""
    slices: Mapping[str, Any] = {}
    """Column -> value, for what neither the input nor the answer says."""


def expected_value(text: str) -> Any:
    """What a person wrote as right: JSON where it is an object, a list, a number or a truth value, else the text."""
    try:
        value = parse_json(text.encode())
    except (MalformedJson, UnicodeError):
        return text
    return text if value is None else value


class Growth(msgspec.Struct, frozen=True):
    """What grows."""

    name: str
    """The Dataset's."""
    workflow: Workflow[Any, Any]
    declared: Eval | None
    """The eval that the Dataset is of, for its names of columns."""


def grow(datasets: Datasets, failure: Failure, growth: Growth, *, scratch: Path) -> DatasetV1:
    """The next number of a Dataset with this row at its end; a new Dataset where there is none of that name.

    scratch: a folder for one file, which is gone afterwards. Raises: DrivetrainError where the row does not fit; then
    there is no new number.
    """
    name, workflow, declared = growth.name, growth.workflow, growth.declared
    before = datasets.show(name) if datasets.numbers(name) else None
    rows: list[dict[str, Any]] = []
    split = None
    if before is None:
        row = _whole_row(failure, workflow)
        schema = SchemaV1(columns=_new_columns(row))
    else:
        if before.sample is not None:
            raise DrivetrainError(
                f"Dataset `{before.name}@{before.number}` is a sample: weights say how many rows each stands for, "
                "and a row that was chosen by hand stands for none.",
                do="Keep failures in a Dataset of their own, and run it as a suite: `suites={...}`.",
            )
        split = before.split
        rows = [
            {key: value for key, value in one.items() if key not in (SPLIT, SPLIT_GROUP)}
            for one in datasets.rows(str(before.artifact).partition(":")[2])
        ]
        if any(one.get(CALL_ID) == failure.call_id for one in rows):
            raise DrivetrainError(f"Call {failure.call_id} is in `{before.name}@{before.number}` already.")
        row = _fitting_row(failure, workflow, declared, before)
        schema = _with_call_id(before.schema)
    rows.append(row)
    scratch.mkdir(parents=True, exist_ok=True)
    file = scratch / f"{failure.call_id}.jsonl"
    try:
        file.write_bytes(b"".join(JSON.encode(_cells(one, schema)) + b"\n" for one in rows))
        created = datasets.create(
            name, FromFile(str(file), anywhere=True), declared=Declared(schema=schema, others="refuse"), split=split
        )
    finally:
        file.unlink(missing_ok=True)
    return created.dataset


def _whole_row(failure: Failure, workflow: Workflow[Any, Any]) -> dict[str, Any]:
    """Of a new Dataset: the input as it is, what is right, and where it came from."""
    given = parse_json(failure.raw)
    row: dict[str, Any] = {CALL_ID: failure.call_id}
    if workflow.input is None and isinstance(given, dict) and set(given) <= {TEXT}:
        row[TEXT] = given[TEXT]
    elif workflow.input is None and isinstance(given, dict) and MESSAGES in given:
        row[MESSAGES] = JSON.encode(given[MESSAGES]).decode()
    else:
        row[INPUT] = JSON.encode(given).decode()
    row[EXPECTED] = _text(failure.expected)
    return row | {name: _text(value) for name, value in failure.slices.items()}


def _new_columns(row: Mapping[str, Any]) -> tuple[ColumnV1, ...]:
    kinds = {MESSAGES: "json", INPUT: "json"}
    personal = (INPUT, TEXT, MESSAGES)
    return tuple(
        ColumnV1(name=name, type=kinds.get(name, "string"), personal=name in personal, unique=name == CALL_ID)
        for name in row
    )


def _with_call_id(schema: SchemaV1) -> SchemaV1:
    if schema.column(CALL_ID) is not None:
        return schema
    return msgspec.structs.replace(schema, columns=(*schema.columns, ColumnV1(name=CALL_ID, type="string")))


def _fitting_row(
    failure: Failure, workflow: Workflow[Any, Any], declared: Eval | None, before: DatasetV1
) -> dict[str, Any]:
    """The row in the columns that the Dataset has; what nobody says is null."""
    given = parse_json(failure.raw)
    columns = {one.name: one for one in before.schema.columns}
    row: dict[str, Any] = dict.fromkeys(columns)
    named = dict(declared.inputs) if declared is not None else {}
    taken = set()
    if isinstance(given, dict):
        for field, value in given.items():
            column = named.get(field, field)
            if column in columns:
                row[column] = value
                taken.add(field)
        if not taken and workflow.input is None and TEXT in given and INPUT in columns:
            row[INPUT] = given[TEXT]
            taken = set(given)
    if INPUT in columns and not taken:
        row[INPUT] = JSON.encode(given).decode()
    elif isinstance(given, dict) and (left := [one for one in given if one not in taken and given[one] is not None]):
        raise DrivetrainError(
            f"Dataset `{before.name}@{before.number}` has no column for the input's `{left[0]}`.",
            looked=[f"columns: {', '.join(columns)}"],
            do=f"Add it to another Dataset, or make one whose column `{INPUT}` holds whole inputs as JSON.",
        )
    _say_expected(row, failure.expected, workflow, declared, before)
    row[CALL_ID] = failure.call_id
    for one in before.schema.columns:
        if one.subject:
            row[one.name] = failure.user or None
    for name, value in failure.slices.items():
        if name not in columns:
            raise DrivetrainError(f"There is no column `{name}`.", do=did_you_mean(name, columns))
        row[name] = value
    return row


def _say_expected(
    row: dict[str, Any],
    expected: Any,
    workflow: Workflow[Any, Any],
    declared: Eval | None,
    before: DatasetV1,
) -> None:
    said = declared.expected if declared is not None else ""
    shown = f"{before.name}@{before.number}"
    if isinstance(said, str):
        column = said or (EXPECTED if EXPECTED in row else "")
        if column:
            row[column] = _text(expected) if _is_text(before, column) else expected
            return
        names = [one.encode_name for one in msgspec.structs.fields(workflow.output)] if workflow.output else []
        said = {name: name for name in names if name in row}
    if not said:
        raise DrivetrainError(
            f"Dataset `{shown}` has no column that says what is right.", looked=[f"columns: {', '.join(row)}"],
            do=f"Name the eval with --eval, or make a Dataset with a column `{EXPECTED}`.",
        )  # fmt: skip
    values = expected if isinstance(expected, dict) else {next(iter(said)): expected}
    for field, value in values.items():
        if field not in said:
            raise DrivetrainError(f"`{shown}` has no column for the output's `{field}`.", do=did_you_mean(field, said))
        row[said[field]] = _text(value) if _is_text(before, said[field]) else value


def _is_text(dataset: DatasetV1, column: str) -> bool:
    found = dataset.schema.column(column)
    return found is not None and found.type == "string"


def _cells(row: Mapping[str, Any], schema: SchemaV1) -> dict[str, Any]:
    """A row as JSON lines have it; times, which rows give as microseconds, as ISO text."""
    from datetime import UTC, datetime, timedelta

    cells = {}
    for column in schema.columns:
        value = row.get(column.name)
        if column.type == "timestamp" and isinstance(value, int):
            stamp = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=value)
            value = stamp.isoformat().replace("+00:00", "Z")
        elif column.type == "json" and isinstance(value, str):
            value = parse_json(value.encode())
        cells[column.name] = value
    return cells


def _text(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else JSON.encode(value).decode()
