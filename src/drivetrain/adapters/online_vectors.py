"""How a vector of features lies in bytes: fixed words that decode column by column, and strings behind them.

Shared by the online stores; knows no file and no database. A vector is, in words of 8 bytes of the machine's order:

    per part: event time, created time | pushed flags | null flags | one word per column | bytes of the strings

Flags are bits, `FLAGS` to a word, so that no word is negative. A string's word is its place behind the vector's
beginning and its length. A hundred vectors decode in a few operations per column instead of some per value.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from typing import Any

from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.online import ABSENT, STRING_BYTES_MAX, Layout, PartRow, Pushed, Vectors, newer

FLAGS = 62
"""Bits used of a flag word."""
LENGTH_BITS = 21
"""Of a string's word; the rest is its place. `STRING_BYTES_MAX` fits."""
LENGTH_MASK = (1 << LENGTH_BITS) - 1

Text = Callable[[int, int, int], bytes]
"""(row, place behind the row's beginning, length) -> the bytes of a string."""


class VectorFormat:
    """Packs and decodes the vectors of one layout."""

    __slots__ = (
        "_all_float",
        "_columns",
        "_first",
        "_flag_words",
        "_no_null",
        "_null_words",
        "_parts",
        "_struct",
        "blank",
        "layout",
        "size",
    )

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._parts = len(layout.parts)
        self._columns = tuple(
            (place, part.name, name, dtype) for place, part in enumerate(layout.parts) for name, dtype in part.columns
        )
        self._all_float = all(dtype == "float64" for _, _, _, dtype in self._columns)
        self._no_null = [False] * len(self._columns)
        self._flag_words = -(-self._parts // FLAGS)
        self._null_words = -(-len(self._columns) // FLAGS)
        self._first = 2 * self._parts + self._flag_words + self._null_words
        """The word of the first column."""
        codes = "".join("d" if dtype == "float64" else "q" for _, _, _, dtype in self._columns)
        self._struct = struct.Struct(f"={self._first}q{codes}")
        self.size = self._struct.size
        """Bytes of a vector without its strings."""
        self.blank = self.pack([None] * self._parts)
        """A vector of which every part is absent."""

    def pack(self, rows: Sequence[PartRow | None], pushed: Sequence[bool] = ()) -> bytes:
        """One vector. pushed: per part, whether its row was pushed and the sources may not have it.

        Raises: DrivetrainError that names the column of a value that does not fit.
        """
        times: list[int] = []
        for row in rows:
            times += (ABSENT, 0) if row is None else (row.event_us, row.created_us)
        flags = [0] * self._flag_words
        for place, is_pushed in enumerate(pushed):
            if is_pushed:
                flags[place // FLAGS] |= 1 << place % FLAGS
        nulls = [0] * self._null_words
        words: list[Any] = []
        texts: list[bytes] = []
        end = self.size
        values = [
            value
            for row, part in zip(rows, self.layout.parts, strict=True)
            for value in (row.values if row is not None else (None,) * len(part.columns))
        ]
        for at, ((_, part_name, name, dtype), value) in enumerate(zip(self._columns, values, strict=True)):
            if value is None:
                nulls[at // FLAGS] |= 1 << at % FLAGS
                words.append(0)
            elif dtype == "string":
                text = _utf8(value, part_name, name)
                texts.append(text)
                words.append(end << LENGTH_BITS | len(text))
                end += len(text)
            else:
                words.append(value)
        try:
            fixed = self._struct.pack(*times, *flags, *nulls, *words)
        except struct.error:
            raise self._misfit(values, times) from None
        return fixed + b"".join(texts) if texts else fixed

    def rows(self, vector: bytes) -> tuple[list[PartRow | None], list[bool]]:
        """What `pack` was given, of one vector with its strings."""
        words = self._struct.unpack_from(vector)
        flags = words[2 * self._parts :]
        nulls = flags[self._flag_words :]
        rows: list[PartRow | None] = []
        at = 0
        for place, part in enumerate(self.layout.parts):
            values: list[Any] = []
            for _, dtype in part.columns:
                word = words[self._first + at]
                if nulls[at // FLAGS] >> at % FLAGS & 1:
                    word = None
                elif dtype == "string":
                    start = word >> LENGTH_BITS
                    word = vector[start : start + (word & LENGTH_MASK)].decode()
                elif dtype == "bool":
                    word = bool(word)
                values.append(word)
                at += 1
            event_us = words[2 * place]
            rows.append(None if event_us == ABSENT else PartRow(event_us, words[2 * place + 1], tuple(values)))
        return rows, [bool(flags[place // FLAGS] >> place % FLAGS & 1) for place in range(self._parts)]

    def decode(self, joined: bytes, text: Text, as_of_us: tuple[int, ...]) -> Vectors:
        """Many vectors, without their strings, laid one behind the other.

        Columns of numbers without a null are arrays, half the cost of a list: most are looked at once, or handed on.
        """
        width = self.size // 8
        words = array("q", joined)
        floats = array("d", joined)
        null_at = 2 * self._parts + self._flag_words
        nulls = [words[null_at + at :: width] for at in range(self._null_words)]
        any_null = [reduce(or_, one) if any(one) else 0 for one in nulls]
        if self._all_float and not any(any_null):
            places = range(self._first, self._first + len(self._columns))
            plain = [floats[word::width] for word in places]
            return Vectors(plain, self._no_null, *self._times(words, width), as_of_us)
        columns: list[Sequence[Any]] = []
        has_null: list[bool] = []
        for at, (_, _, _, dtype) in enumerate(self._columns):
            word = self._first + at
            column: Sequence[Any] = (floats if dtype == "float64" else words)[word::width]
            if dtype == "string":
                column = [
                    text(row, one >> LENGTH_BITS, one & LENGTH_MASK).decode() if one else ""
                    for row, one in enumerate(column)
                ]
            elif dtype == "bool":
                column = list(map(bool, column))
            bit = 1 << at % FLAGS
            has_null.append(bool(any_null[at // FLAGS] & bit))
            if has_null[-1]:
                column = [None if flag & bit else one for flag, one in zip(nulls[at // FLAGS], column, strict=True)]
            columns.append(column)
        return Vectors(columns, has_null, *self._times(words, width), as_of_us)

    def _times(self, words: array[int], width: int) -> tuple[list[array[int]], list[array[int]]]:
        """Per part, event times and created times."""
        ends = range(0, 2 * self._parts, 2)
        return [words[at::width] for at in ends], [words[at + 1 :: width] for at in ends]

    def _misfit(self, values: Sequence[Any], times: Sequence[Any]) -> DrivetrainError:
        for (_, part, name, dtype), value in zip(self._columns, values, strict=True):
            code = "d" if dtype == "float64" else "q"
            try:
                if value is not None and dtype != "string":
                    struct.pack(f"={code}", value)
            except struct.error:
                return DrivetrainError(
                    f"`{part}:{name}` is {dtype}, and its value is {value!r:.80}.",
                    do="Mend the source, or declare the feature with the type that it has.",
                )
        return DrivetrainError(f"The times {list(times)} do not fit 64 bits of microseconds.", do="Mend the source.")


def patch_columns(layout: Layout, found: Vectors, touched: Sequence[tuple[int, dict[int, PartRow]]]) -> Vectors:
    """Vectors with rows of parts put in where they are newer. touched: (row, part -> what was pushed)."""
    if not touched:
        return found
    columns = [list(column) for column in found.columns]
    events = [list(one) for one in found.events_us]
    created = [list(one) for one in found.created_us]
    first = [0]
    for part in layout.parts:
        first.append(first[-1] + len(part.columns))
    for row, patches in touched:
        for part_at, patch in patches.items():
            begin, end = first[part_at], first[part_at + 1]
            held = tuple([column[row] for column in columns[begin:end]])
            if newer(PartRow(events[part_at][row], created[part_at][row], held), patch) is patch:
                events[part_at][row], created[part_at][row] = patch.event_us, patch.created_us
                for at, value in enumerate(patch.values, start=begin):
                    columns[at][row] = value
    has_null = [before or None in column for before, column in zip(found.has_null, columns, strict=True)]
    return Vectors(columns, has_null, events, created, found.as_of_us)


def same_parts(old: Layout, new: Layout) -> dict[int, int]:
    """Place of a part in `old` -> its place in `new`, of those that both have alike."""
    places = {part: at for at, part in enumerate(new.parts)}
    return {at: places[part] for at, part in enumerate(old.parts) if part in places}


def check_rows(layout: Layout, rows: Sequence[Pushed]) -> None:
    """Raises: DrivetrainError for a value that no vector could hold, before anybody sees it."""
    places = {part.name: at for at, part in enumerate(layout.parts)}
    form = VectorFormat(layout)
    for pushed in rows:
        vector: list[PartRow | None] = [None] * len(layout.parts)
        vector[places[pushed.part]] = pushed.row
        form.pack(vector)


def foreign(asked: Layout, found: Layout) -> DrivetrainError:
    """The error for vectors of another definition."""
    return DrivetrainError(
        f"The online features in `{asked.table}` are of the definition {found.fingerprint}, not {asked.fingerprint}.",
        do="Run `drivetrain features materialize`: the definition has changed since.",
    )


def no_name(table: str) -> DrivetrainError:
    """The error for a table that cannot be a file's name."""
    return DrivetrainError(f"`{table!r:.80}` is no name of an online table.", do="Rename the feature service.")


def _utf8(value: Any, part: str, name: str) -> bytes:
    try:
        text = value.encode()
    except (AttributeError, UnicodeEncodeError):
        raise DrivetrainError(
            f"`{part}:{name}` is string, and its value is {value!r:.80}.",
            do="Mend the source, or declare the feature with the type that it has.",
        ) from None
    if len(text) > STRING_BYTES_MAX:
        raise DrivetrainError(
            f"A value of `{part}:{name}` has {len(text)} bytes; at most {STRING_BYTES_MAX} are kept online.",
            do="Keep the document elsewhere, and make its name the feature.",
        )
    return bytes(text)
