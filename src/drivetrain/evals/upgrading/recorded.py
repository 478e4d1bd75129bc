"""Pairs from files of recorded outcomes: CSV or JSON lines as they are, with the columns that a person names.

Long files hold one answer per row, and a column that tells whose it is; wide ones hold both answers in one row, in
columns whose names begin differently. Called by `drivetrain upgrade --recorded`.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.codec import MalformedJson, parse_json
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.money import NANO_PER_USD
from drivetrain.evals.upgrading.pairs import Pair, Side

FILE_BYTES_MAX = 256 * 1024 * 1024
"""Of all files together: they are read whole, as a pair's two rows may stand far apart."""
PAIRS_MAX = 200_000
CELL_CHARS_MAX = 4 * 1024 * 1024
"""An answer of a model is far shorter."""
VALUES_SHOWN = 8
"""Of a column, in an error."""
YES, NO = frozenset({"1", "true", "yes", "right", "correct"}), frozenset({"0", "false", "no", "wrong", "incorrect", ""})


class Columns(msgspec.Struct, frozen=True, kw_only=True):
    """Which columns hold what; empty: none does."""

    id: str = "id"
    """Tells questions apart."""
    model: str = ""
    """Of long files: whose answer it is; then `before` and `after` are two of its values. Empty: the file is wide,
    and they are what its columns' names begin with."""
    before: str = "before_"
    after: str = "after_"
    answer: str = ""
    expected: str = ""
    correct: str = ""
    """`COLUMN` with 1 or 0, true or false, or a score from 0 to 1; `COLUMN~TEXT`: right where it contains the text."""
    cleaned: str = ""
    """As `correct`, of the answer without the Markdown around it."""
    cost: str = ""
    """In USD."""
    latency: str = ""
    """In seconds."""
    tokens: str = ""
    """Of the output."""
    slice: str = ""
    group: str = ""
    question: str = ""
    """What was asked, for whoever reads examples."""


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What the files hold."""

    pairs: tuple[Pair, ...]
    hash: str
    """Of the files' content, 64 hex digits."""
    files: tuple[tuple[str, str], ...]
    """(name, its SHA-256)."""
    unpaired: tuple[int, int]
    """Questions that only `before`, and only `after`, has an answer to: they are left out."""
    asked: Mapping[str, str] = {}
    """Id of a pair -> what was asked, where a column tells it."""


def read_recorded(paths: Sequence[Path], columns: Columns) -> Recorded:
    """The pairs of one or more files with the same columns. Raises: DrivetrainError."""
    if not (columns.answer or columns.correct):
        raise DrivetrainError(
            "Nothing tells whether an answer is right.",
            do="Name the column of the answers by `--answer`, with `--expected`, or the one that tells what is right "
            "by `--correct`.",
        )
    if columns.answer and not (columns.expected or columns.correct):
        raise DrivetrainError(
            "Nothing tells what the answers are held against.",
            do="Name the column of what is right by `--expected`, or the one that tells what is right by `--correct`.",
        )
    if columns.model and columns.before == columns.after:
        raise DrivetrainError(
            f"`{columns.before}` is compared with itself.", do="Write two values of the column by --before and --after."
        )
    contents = [(path, _content(path)) for path in paths]
    if sum(len(content) for _, content in contents) > FILE_BYTES_MAX:
        raise DrivetrainError(
            f"The files have more than {FILE_BYTES_MAX // 2**20} MiB.", do="Give fewer rows, or fewer columns."
        )
    rows = [row for path, content in contents for row in _rows(path, content)]
    if not rows:
        raise DrivetrainError("The files have no row.", looked=[str(path) for path in paths])
    sides = _long(rows, columns) if columns.model else _wide(rows, columns)
    before, after = sides
    both = [one for one in before if one in after]
    if not both:
        some = [next(iter(side), None) for side in sides]
        raise DrivetrainError(
            f"No question has both answers: {len(before):,} have one before, such as `{some[0]}`, and {len(after):,} "
            f"one after, such as `{some[1]}`.",
            looked=[str(path) for path in paths],
            do="Name the column that both share by `--id`.",
        )
    if len(both) > PAIRS_MAX:
        raise DrivetrainError(f"{len(both):,} pairs are more than the {PAIRS_MAX:,} that are read.", do="Give fewer.")
    pairs = tuple(_pair(name, before[name], after[name], columns) for name in both)
    digests = tuple((path.name, hashlib.sha256(content).hexdigest()) for path, content in contents)
    whole = hashlib.sha256("\n".join(digest for _, digest in digests).encode()).hexdigest()
    asked = {name: before[name].cells.get(columns.question, "") for name in both} if columns.question else {}
    return Recorded(
        pairs=pairs, hash=whole, files=digests, unpaired=(len(before) - len(both), len(after) - len(both)), asked=asked
    )


class _Row(msgspec.Struct, frozen=True):
    """One row, and where it stands."""

    cells: Mapping[str, str]
    place: str


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise DrivetrainError(f"{path} cannot be read: {error.strerror or error}.", do="Name another file.") from None


def _rows(path: Path, content: bytes) -> Iterator[_Row]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DrivetrainError(f"{path} is no UTF-8 text: byte {error.start}.", do="Convert it to UTF-8.") from None
    if text.lstrip()[:1] == "{":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield _Row(_object(path, number, line), f"{path.name}, line {number}")
        return
    csv.field_size_limit(CELL_CHARS_MAX)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next((one for one in reader if one), [])
        twice = [name for name, count in Counter(one for one in header if one).items() if count > 1]
        if twice:
            raise DrivetrainError(f"{path} has two columns `{twice[0][:80]}`.", do="Give each a name of its own.")
        for cells in reader:
            if not cells:
                continue
            place = f"{path.name}, line {reader.line_num}"
            if len(cells) != len(header):
                raise DrivetrainError(
                    f"{place}: it has {len(cells)} cells, and the header {len(header)}.",
                    do="Put what holds commas or line breaks into quotes.",
                )
            yield _Row(dict(zip(header, cells, strict=True)), place)
    except csv.Error as error:
        raise DrivetrainError(
            f"{path}, line {reader.line_num}: {error}.", do="Give CSV whose quotes are closed, or JSON lines."
        ) from None


def _object(path: Path, number: int, line: str) -> dict[str, str]:
    try:
        found = parse_json(line.encode())
    except MalformedJson as error:
        raise DrivetrainError(f"{path}, line {number} is no JSON: {error}.", do="Give CSV, or JSON lines.") from None
    if not isinstance(found, dict):
        raise DrivetrainError(f"{path}, line {number} is no JSON object.", do="Give CSV, or JSON lines.")
    return {name: _text(value) for name, value in found.items()}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else msgspec.json.encode(value).decode()


Sides = tuple[dict[str, _Row], dict[str, _Row]]
"""Question -> its row, before and after."""


def _long(rows: Sequence[_Row], columns: Columns) -> Sides:
    named = (columns.id, columns.model, columns.answer, columns.expected, _column(columns.correct),
             _column(columns.cleaned), columns.cost, columns.latency, columns.tokens, columns.slice,
             columns.group, columns.question)  # fmt: skip
    _known(rows, [one for one in named if one], [columns.id, columns.model, *_decisive(columns)])
    sides: Sides = ({}, {})
    for row in rows:
        for side, wanted in zip(sides, (columns.before, columns.after), strict=True):
            if row.cells.get(columns.model) == wanted:
                _put(side, row, columns.id, f" of `{wanted}`")
    for side, wanted in zip(sides, (columns.before, columns.after), strict=True):
        if not side:
            values = list(dict.fromkeys(row.cells.get(columns.model, "") for row in rows))
            raise DrivetrainError(
                f"No row has `{wanted}` in column `{columns.model}`. {did_you_mean(wanted, values[:1_000])}".rstrip(),
                do=f"It has {', '.join(f'`{one[:80]}`' for one in values[:VALUES_SHOWN])}.",
            )
    return sides


def _wide(rows: Sequence[_Row], columns: Columns) -> Sides:
    shared = [one for one in (columns.id, columns.expected, columns.slice, columns.group, columns.question) if one]
    doubled = [one for one in (columns.answer, _column(columns.correct), _column(columns.cleaned), columns.cost,
                               columns.latency, columns.tokens) if one]  # fmt: skip
    begins = (columns.before, columns.after)
    decisive = [begin + one for one in _decisive(columns) if one != columns.expected for begin in begins]
    _known(
        rows, [*shared, *(begin + one for one in doubled for begin in begins)],
        [columns.id, *([columns.expected] if columns.expected else ()), *decisive],
    )  # fmt: skip
    sides: Sides = ({}, {})
    for row in rows:
        for side, begin in zip(sides, (columns.before, columns.after), strict=True):
            cells = {**{one: row.cells.get(one, "") for one in shared},
                     **{one: row.cells.get(begin + one, "") for one in doubled}}  # fmt: skip
            _put(side, _Row(cells, row.place), columns.id, "")
    return sides


def _decisive(columns: Columns) -> list[str]:
    """Columns that decide whether an answer is right: what is not there is not taken for wrong."""
    named = (columns.answer, columns.expected, _column(columns.correct), _column(columns.cleaned))
    return [one for one in named if one]


def _known(rows: Sequence[_Row], wanted: Iterable[str], needed: Sequence[str]) -> None:
    """needed: must stand in each row, as files may differ and objects may lack one."""
    header = list(rows[0].cells)
    for name in wanted:
        if name not in header:
            raise DrivetrainError(
                f"There is no column `{name}`. {did_you_mean(name, header)}".rstrip(),
                do=f"The file has {', '.join(f'`{one[:80]}`' for one in header if one)}.",
            )
    for row in rows:
        lacking = next((name for name in needed if name not in row.cells), None)
        if lacking is not None:
            raise DrivetrainError(
                f"{row.place}: there is no `{lacking}`.",
                do="Give every row the same columns; null says that it is empty.",
            )


def _put(side: dict[str, _Row], row: _Row, column: str, whose: str) -> None:
    name = row.cells.get(column, "")
    if not name:
        raise DrivetrainError(f"{row.place}: the column `{column}` is empty, so nobody knows what it answers.")
    if name in side:
        raise DrivetrainError(
            f"{row.place}: question `{name[:80]}` has two answers{whose}; the other one stands in {side[name].place}.",
            do="Name the column that tells questions apart by `--id`.",
        )
    side[name] = row


def _pair(name: str, before: _Row, after: _Row, columns: Columns) -> Pair:
    one, other = (row.cells.get(columns.expected, "") for row in (before, after))
    if columns.expected and one != other:
        raise DrivetrainError(
            f"{before.place} and {after.place} expect different answers to question `{name[:80]}`.",
            do="Name the column that tells questions apart by `--id`.",
        )
    return Pair(
        id=name, group=before.cells[columns.group] if columns.group else "",
        slice=(before.cells[columns.slice] or "(none)") if columns.slice else "",
        expected=one if columns.expected else None, truth="recorded" if columns.correct else "expected",
        before=_side(before, columns), after=_side(after, columns),
    )  # fmt: skip


def _side(row: _Row, columns: Columns) -> Side:
    seconds = _number(row, columns.latency)
    tokens = _number(row, columns.tokens)
    usd = _number(row, columns.cost)
    return Side(
        text=row.cells.get(columns.answer, "") if columns.answer else None,
        score=_score(row, columns.correct), cleaned=_score(row, columns.cleaned),
        cost_nano_usd=None if usd is None else int((usd * NANO_PER_USD).to_integral_value()),
        latency_us=None if seconds is None else int(seconds * 1_000_000),
        tokens=None if tokens is None else int(tokens),
    )  # fmt: skip


def _column(said: str) -> str:
    return said.partition("~")[0]


def _score(row: _Row, said: str) -> float | None:
    if not said:
        return None
    column, tilde, text = said.partition("~")
    cell = row.cells.get(column, "")
    if tilde:
        return float(text in cell)
    word = cell.strip().casefold()
    if word in YES or word in NO:
        return float(word in YES)
    try:
        score = float(word)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise DrivetrainError(
            f"{row.place}: `{cell[:80]}` in column `{column}` is neither right nor wrong.",
            do="Write 1 or 0, true or false, or a score between; `COLUMN~TEXT` takes what contains a text as right.",
        )
    return score


def _number(row: _Row, column: str) -> Decimal | None:
    cell = row.cells.get(column, "").strip() if column else ""
    if not cell:
        return None
    try:
        number = Decimal(cell)
    except InvalidOperation:
        number = Decimal(-1)
    if not number.is_finite() or not 0 <= number < 10**9:
        raise DrivetrainError(
            f"{row.place}: `{cell[:80]}` in column `{column}` is no number from 0 to a thousand million."
        )
    return number
