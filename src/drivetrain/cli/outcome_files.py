"""A file of labels -> Outcomes, or every mistake in it with its row and column. Called by `drivetrain outcomes import`.

CSV with a header, or JSON lines. Row 1 is the first one of data, as of a Dataset; lines are an editor's.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import msgspec

from drivetrain.core.calls import OutcomeV1
from drivetrain.core.codec import MalformedJson, parse_json
from drivetrain.core.declarations import Workflow
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.outcomes import FIELDS, VALUE_CHARS_MAX, OutcomeMistake, read_outcome

ROWS_MAX = 1_000_000
"""Of one file, as all of it is checked before any of it is recorded: they take about 0.5 GB."""
MISTAKES_MAX = 100
"""More would not be read; a column that is wrong is wrong in every row."""
LINE_CHARS_MAX = 64 * 1024
"""Of a row: every field at its longest, escaped, fits four times."""
SHOWN_CHARS_MAX = 40
NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
"""Of a CSV's cell. `007` is no number: whoever wrote it keeps its zeros."""
UNCLEAR = frozenset({"nan", "inf", "+inf", "-inf", "infinity", "-infinity", "null", "none", "n/a", "#n/a"})
"""What programs write where there is no value; a label called so needs `--values text`."""


class FileMistake(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong in a file."""

    row: int
    """1 is the first of data."""
    line: int
    """Where it begins in the file, from 1."""
    column: str = ""
    """Empty where it is not about one."""
    what: str


class LabelFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a file holds."""

    outcomes: tuple[OutcomeV1, ...] = ()
    """Of all rows, where there is no mistake."""
    rows: int = 0
    mistakes: tuple[FileMistake, ...] = ()
    """The first `MISTAKES_MAX`."""


def read_labels(
    path: Path,
    *,
    now_ns: int,
    workflows: Mapping[str, Workflow[Any, Any]],
    given: Mapping[str, str],
    as_text: bool = False,
) -> LabelFile:
    """The Outcomes of a file. given: fields of rows that do not have them. as_text: a CSV's values are all texts.

    Raises: DrivetrainError where the file cannot be read at all.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _checked(_rows(file, path, as_text), now_ns, workflows, given)
    except UnicodeDecodeError as error:
        raise DrivetrainError(
            f"{path} is no UTF-8 text: {error.reason} near byte {error.start}.", do="Save it as UTF-8."
        ) from error
    except OSError as error:
        raise DrivetrainError(f"{path} cannot be read: {error.strerror}.") from error


def _checked(
    rows: Iterator[tuple[int, dict[str, Any] | FileMistake]],
    now_ns: int,
    workflows: Mapping[str, Workflow[Any, Any]],
    given: Mapping[str, str],
) -> LabelFile:
    found: list[OutcomeV1] = []
    mistakes: list[FileMistake] = []
    count = 0
    for line, one in rows:
        count += 1
        if count > ROWS_MAX:
            what = f"the file has more than {ROWS_MAX} rows; import it in parts"
            mistakes.append(FileMistake(row=count, line=line, what=what))
            break
        if isinstance(one, FileMistake):
            mistakes.append(msgspec.structs.replace(one, row=count, line=line))
        else:
            try:
                found.append(read_outcome({**given, **one}, workflows, arrived_ns=now_ns + count))
            except OutcomeMistake as error:
                mistakes.append(FileMistake(row=count, line=line, column=error.field, what=_told(error, one)))
        if len(mistakes) >= MISTAKES_MAX:
            break
    return LabelFile(outcomes=() if mistakes else tuple(found), rows=count, mistakes=tuple(mistakes))


def _told(error: OutcomeMistake, row: dict[str, Any]) -> str:
    """A mistake after its column's name; with the value seen where it says what that must be."""
    value = row.get(error.field)
    what = error.alone or error.what
    if value is None or not what.startswith("must "):
        return what
    text = str(value)
    return f"{what}, not `{text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + '...'}`"


def _mistake(what: str, column: str = "") -> FileMistake:
    """One of which the place is not told yet."""
    return FileMistake(row=0, line=0, column=column, what=what)


def _rows(file: TextIO, path: Path, as_text: bool) -> Iterator[tuple[int, dict[str, Any] | FileMistake]]:
    """Each row, or what is wrong with it, with the line at which it begins."""
    kinds = {".csv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows}
    read = kinds.get(path.suffix.lower())
    if read is None:
        raise DrivetrainError(f"{path} is of no kind that is known.", do="Name it `.csv`, or `.jsonl` for JSON lines.")
    return read(file, as_text)


def _json_rows(file: TextIO, _as_text: bool) -> Iterator[tuple[int, dict[str, Any] | FileMistake]]:
    for number, line in enumerate(_bounded(file), start=1):
        if isinstance(line, FileMistake):
            yield number, line
            return
        if not line.strip():
            continue
        try:
            one = parse_json(line.encode())
        except MalformedJson as error:
            yield number, _mistake(f"is no JSON: {error}")
            continue
        if isinstance(one, dict):
            yield number, {name: value for name, value in one.items() if value is not None}
        else:
            yield number, _mistake("must be an object")


def _csv_rows(file: TextIO, as_text: bool) -> Iterator[tuple[int, dict[str, Any] | FileMistake]]:
    lines = _bounded(file)
    broken: list[FileMistake] = []

    def good() -> Iterator[str]:
        for line in lines:
            if isinstance(line, FileMistake):
                broken.append(line)
                return
            yield line

    reader = csv.reader(good(), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if header is None:
                raise DrivetrainError(f"The header is no CSV: {error}.") from None
            yield line, _mistake(f"is no CSV: {error}")
            return
        if broken:
            if header is None:
                raise DrivetrainError(f"The header {broken[0].what}.")
            yield line, broken[0]
            return
        if cells is None:
            if header is None:
                raise DrivetrainError(
                    "The file has no header.", do=f"Its first row names columns: {', '.join(FIELDS)}."
                )
            return
        if header is None:
            header = _header(cells)
        elif cells:
            yield line, _csv_row(header, cells, as_text)


def _header(cells: list[str]) -> list[str]:
    from drivetrain.datasets.files import other_separator

    separator = other_separator(cells)
    if separator:
        raise DrivetrainError(
            f"The file has one column `{cells[0][:SHOWN_CHARS_MAX]}`: is {separator} its separator?",
            do="Write it with commas.",
        )
    names = [cell.strip() for cell in cells]
    for place, name in enumerate(names):
        if name not in FIELDS:
            raise DrivetrainError(
                f"The header has a column `{name[:SHOWN_CHARS_MAX]}`, which an Outcome does not have.",
                do=did_you_mean(name[:SHOWN_CHARS_MAX], FIELDS),
            )
        if name in names[:place]:
            raise DrivetrainError(f"The header has the column `{name}` twice.", do="Leave one of them out.")
    return names


def _csv_row(header: list[str], cells: list[str], as_text: bool) -> dict[str, Any] | FileMistake:
    if len(cells) != len(header):
        return _mistake(f"has {len(cells)} cells, and the header {len(header)}")
    one: dict[str, Any] = {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
    if not as_text and "value" in one:
        text = one["value"]
        if text.strip().lower() in UNCLEAR:
            return _mistake(f"is `{text[:SHOWN_CHARS_MAX]}`, which may mean that there is none", "value")
        one["value"] = _typed(text)
    return one


def _typed(text: str) -> str | float | bool:
    """A cell's value: true/false, a number, or the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return float(text) if len(text) <= SHOWN_CHARS_MAX and NUMBER.fullmatch(text) else text


def _bounded(file: TextIO) -> Iterator[str | FileMistake]:
    """Lines, without ever holding one that is longer than any row."""
    while line := file.readline(LINE_CHARS_MAX + 1):
        if len(line) > LINE_CHARS_MAX:
            what = f"is longer than {LINE_CHARS_MAX} characters; a value has at most {VALUE_CHARS_MAX}"
            yield _mistake(what)
            return
        yield line
