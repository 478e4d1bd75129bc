"""What an eval asks: each row of its Datasets as an input of the workflow, with what is right and how it is counted.

Owns which column is what. It asks nobody and scores nothing. Called by the wiring of runs, before any money is spent,
so that what is wrong with the rows is told then.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from drivetrain.core.codec import JSON, MalformedJson, parse_json
from drivetrain.core.datasets import SPLIT, SPLIT_GROUP, WEIGHT, ColumnV1, DatasetV1
from drivetrain.core.declarations import Workflow
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.evals import EXPECTED, Eval, Scorer
from drivetrain.core.scorers import scorers_of

ROWS_MAX = 100_000
"""Of one run, suites included: its rows and their answers' scores are in memory, about 1 KB each."""
INPUT, TEXT, MESSAGES = "input", "text", "messages"
"""Columns that hold a whole input: as JSON, as a text, as a conversation."""
NEED_EXPECTED = frozenset({"exact", "normalised", "f1", "within", "json_fields", "similarity"})
"""Kinds of scorers that compare with what is right."""
ROW_CHARS = 16
SLICE_CHARS_MAX = 200
"""Of one value: what is longer is a text, and no slice."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One row, ready to be asked."""

    row: str
    """See `RowV1.row`."""
    asked: str
    """What tells its input from others, whatever is expected of it: answers are kept under it."""
    raw: bytes
    """The workflow's input as JSON."""
    expected: Any
    values: Mapping[str, Any]
    """The whole row, as scorers see it."""
    group: str = ""
    """The same for the same person in one Dataset. It can be matched with an id, so no row is kept with it: see
    `run_texts.py`."""
    suite: str = ""
    slices: dict[str, str] = {}
    weight: float = 1.0
    subject: str = ""
    """Whose answer it is, for the key that it is kept under."""


class Given(msgspec.Struct, frozen=True):
    """A Dataset's number and its rows."""

    dataset: DatasetV1
    rows: Iterable[Mapping[str, Any]]
    suite: str = ""


def cases_of(declared: Eval, workflow: Workflow[Any, Any], given: Sequence[Given]) -> list[Case]:
    """Every row of the eval's Dataset and suites, in order. Raises: DrivetrainError that names rows and columns."""
    total = sum(one.dataset.rows for one in given)
    if total > ROWS_MAX:
        raise DrivetrainError(
            f"Eval `{declared.name}` has {total:,} rows; a run takes at most {ROWS_MAX:,}.",
            do="Make a Dataset with `--sample`: its weights keep the estimates true.",
        )
    found: list[Case] = []
    seen: Counter[str] = Counter()
    for one in given:
        reader = _Reader(declared, workflow, one)
        found.extend(reader.case(values, number, seen) for number, values in enumerate(one.rows, 1))
    if not found:
        raise DrivetrainError(f"The Dataset of eval `{declared.name}` has no row left.", do="Name another number.")
    return found


def some_of(cases: Sequence[Case], rows: int) -> list[Case]:
    """So many of the rows, the same ones each time: chosen by their hash, so that no order of the file shows."""
    chosen = {one.row for one in sorted(cases, key=lambda one: one.row)[:rows]}
    return [one for one in cases if one.row in chosen]


def group_of(dataset: str, whose: Any) -> str:
    """What the rows of one person, or of one group of a split, share in a Dataset. dataset: its name."""
    return hashlib.sha256(f"{dataset}\0{whose}".encode()).hexdigest()[:ROW_CHARS]


class _Reader:
    """The rows of one Dataset."""

    def __init__(self, declared: Eval, workflow: Workflow[Any, Any], given: Given) -> None:
        self._dataset, self._suite = given.dataset, given.suite
        self._columns = {one.name: one for one in given.dataset.all_columns}
        self._shown = f"{given.dataset.name}@{given.dataset.number}"
        self._declared, self._workflow = declared, workflow
        self._fields = self._input_fields()
        self._expected = self._expected_columns()
        self._needs_expected = [one.name for one in scorers_of(declared) if _needs_expected(one)]
        self._slices = self._slice_columns()
        subjects = [one.name for one in given.dataset.schema.columns if one.subject]
        self._subject = subjects[0] if subjects else ""
        self._group = SPLIT_GROUP if SPLIT_GROUP in self._columns else self._subject
        if self._needs_expected and not self._expected:
            raise DrivetrainError(
                f"Dataset `{self._shown}` has no column that says what is right, and `{self._needs_expected[0]}` "
                f"of eval `{declared.name}` compares with it.",
                looked=[f"columns: {', '.join(self._columns)}"],
                do=f'Name it: `expected="COLUMN"`. Without a name it is `{EXPECTED}`, or the columns that are named as '
                "the output's fields are.",
            )

    def case(self, values: Mapping[str, Any], number: int, seen: Counter[str]) -> Case:
        """seen: counts what was met before, so that equal rows stay apart."""
        plain = {name: _plain(self._columns[name], value, self._shown, number) for name, value in values.items()}
        raw = self._raw(plain, number)
        expected = self._right(plain, number)
        asked = hashlib.sha256(raw).hexdigest()[:32]
        content = hashlib.sha256(f"{self._dataset.name}\0{asked}\0".encode() + JSON.encode(expected)).hexdigest()
        seen[asked] += 1
        seen[content] += 1
        row = hashlib.sha256(f"{content}\0{seen[content]}".encode()).hexdigest()[:ROW_CHARS]
        whose = plain.get(self._group) if self._group else None
        weight = plain.get(WEIGHT) if self._dataset.sample is not None else None
        return Case(
            row=row, asked=f"{asked}.{seen[asked]}", raw=raw, expected=expected,
            values={name: value for name, value in plain.items() if name not in (SPLIT, SPLIT_GROUP, WEIGHT)},
            group=group_of(self._dataset.name, whose) if whose not in (None, "") else "",
            suite=self._suite, slices={name: self._slice_of(name, plain.get(name), number) for name in self._slices},
            weight=float(weight) if weight is not None else 1.0,
            subject=str(plain.get(self._subject) or "") if self._subject else "",
        )  # fmt: skip

    # The input.

    def _input_fields(self) -> dict[str, str]:
        """The input's field -> the column that it is read from; one entry `""` where a column holds all of it."""
        named = dict(self._declared.inputs)
        for field, column in named.items():
            self._known(column, f"`inputs` takes `{field}` from it")
        if self._workflow.input is None:
            return named or self._conversation()
        fields = msgspec.structs.fields(self._workflow.input)
        names = [one.encode_name for one in fields]
        for field in named:
            if field not in names:
                raise DrivetrainError(
                    f"Eval `{self._declared.name}` gives an input field `{field}`, which workflow "
                    f"`{self._workflow.name}` does not have.",
                    do=did_you_mean(field, names),
                )
        found = {name: named.get(name, name) for name in names if named.get(name, name) in self._columns}
        missing = [one.encode_name for one in fields if one.required and one.encode_name not in found]
        if not missing:
            return found
        if not named and INPUT in self._columns:
            return {"": INPUT}
        raise DrivetrainError(
            f"Dataset `{self._shown}` has no column for the input's field{'s' * (len(missing) > 1)} "
            f"{', '.join(f'`{one}`' for one in missing)} of workflow `{self._workflow.name}`.",
            looked=[f"columns: {', '.join(self._columns)}"],
            do=f'Say which: `inputs={{"{missing[0]}": "COLUMN"}}`, or keep whole inputs as JSON in a column `{INPUT}`.',
        )

    def _conversation(self) -> dict[str, str]:
        for column, field in ((MESSAGES, MESSAGES), (TEXT, TEXT), (INPUT, TEXT)):
            if column in self._columns:
                return {field: column}
        raise DrivetrainError(
            f"Dataset `{self._shown}` has no column `{TEXT}`, `{INPUT}` or `{MESSAGES}`, and workflow "
            f"`{self._workflow.name}` takes a conversation.",
            looked=[f"columns: {', '.join(self._columns)}"],
            do='Say which column holds the text: `inputs={"text": "COLUMN"}`.',
        )

    def _raw(self, plain: Mapping[str, Any], number: int) -> bytes:
        if "" in self._fields:
            return self._whole(plain[self._fields[""]], number)
        given = {field: plain[column] for field, column in self._fields.items()}
        if self._workflow.input is not None:
            # What is empty is left to the field's default, where it has one.
            optional = {one.encode_name for one in msgspec.structs.fields(self._workflow.input) if not one.required}
            given = {name: value for name, value in given.items() if value is not None or name not in optional}
        elif isinstance(given.get(MESSAGES), str):
            given[MESSAGES] = self._json(given[MESSAGES], MESSAGES, number)
        return JSON.encode(given)

    def _whole(self, value: Any, number: int) -> bytes:
        return JSON.encode(self._json(value, INPUT, number) if isinstance(value, str) else value)

    def _json(self, text: str, column: str, number: int) -> Any:
        try:
            return parse_json(text.encode())
        except (MalformedJson, UnicodeError) as error:
            raise DrivetrainError(
                f"Row {number} of `{self._shown}`: `{column}` is no JSON.", do=f"Mend the row: {error}."
            ) from None

    # What is right.

    def _expected_columns(self) -> str | dict[str, str]:
        """One column, or the output's field -> column; empty: none."""
        declared = self._declared.expected
        if isinstance(declared, str) and declared:
            self._known(declared, "`expected` names it")
            return declared
        if declared and not isinstance(declared, str):
            for field, column in declared.items():
                self._known(column, f"`expected` takes `{field}` from it")
            return dict(declared)
        if EXPECTED in self._columns:
            return EXPECTED
        if self._workflow.output is None:
            return ""
        taken = set(self._fields.values())
        names = [one.encode_name for one in msgspec.structs.fields(self._workflow.output)]
        return {name: name for name in names if name in self._columns and name not in taken}

    def _right(self, plain: Mapping[str, Any], number: int) -> Any:
        columns = self._expected
        if not columns:
            return None
        if isinstance(columns, str):
            right = plain[columns]
            if isinstance(right, str) and self._workflow.output is not None and right.lstrip().startswith("{"):
                right = self._json(right, columns, number)
            missing = right is None
        else:
            right = {field: plain[column] for field, column in columns.items()}
            missing = all(one is None for one in right.values())
        if missing and self._needs_expected:
            column = columns if isinstance(columns, str) else ", ".join(columns.values())
            raise DrivetrainError(
                f"Row {number} of `{self._shown}` does not say what is right: `{column}` is empty.",
                do="Fill it, or leave the row out: make the Dataset with a condition.",
            )
        return right

    def _slice_columns(self) -> list[str]:
        for name in self._declared.slices:
            if self._suite and name not in self._columns:
                continue
            self._known(name, "it is one of its `slices`")
            if self._columns[name].subject:
                raise DrivetrainError(
                    f"Eval `{self._declared.name}` slices by `{name}`, which tells one person from another.",
                    do="Slice by what people have in common; rows of one person are counted together anyway.",
                )
        return [name for name in self._declared.slices if name in self._columns]

    def _slice_of(self, column: str, value: Any, number: int) -> str:
        text = _shown(value)
        if len(text) > SLICE_CHARS_MAX:
            raise DrivetrainError(
                f"Row {number} of `{self._shown}`: `{column}`, by which eval `{self._declared.name}` is sliced, has "
                f"{len(text):,} characters; at most {SLICE_CHARS_MAX} are taken.",
                do="Slice by a column of few, short values: Reports tell slices by them.",
            )
        return text

    def _known(self, column: str, why: str) -> None:
        if column not in self._columns:
            raise DrivetrainError(
                f"Dataset `{self._shown}` has no column `{column}`; {why} in eval `{self._declared.name}`.",
                do=did_you_mean(column, self._columns),
            )


def _needs_expected(scorer: Scorer) -> bool:
    return scorer.kind in NEED_EXPECTED


def _plain(column: ColumnV1, value: Any, dataset: str, number: int) -> Any:
    """A cell as JSON has it: times as ISO text, JSON as what it holds."""
    if value is None:
        return None
    if column.type == "timestamp":
        return (_EPOCH + timedelta(microseconds=value)).isoformat().replace("+00:00", "Z")
    if column.type == "json":
        try:
            return parse_json(str(value).encode())
        except MalformedJson:
            raise DrivetrainError(f"Row {number} of `{dataset}`: `{column.name}` is no JSON.") from None
    return value


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else JSON.encode(value).decode()
