"""Where online features are: one vector per entity and table, replaced whole, patched by pushes between.

A table belongs to one feature service and one set of join keys. Its layout says which views' features stand in a
vector and in which order, under the fingerprint of the definition; a vector of another fingerprint is an error, never
a wrong number. Laws that every adapter keeps, and that the conformance suite in tests/features checks:

- replacing is atomic: a reader, and whoever comes after a `kill -9`, sees the old table or the new one;
- a pushed row is seen by every reader at once, and never overwrites one of the same entity and view that is newer:
  the later event time holds, then the later created time, then the later arrival;
- what is pushed while a table is replaced is not lost; what was pushed before is folded in, under the same rule;
- one process writes at a time, any number reads; readers never wait.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

ABSENT = -(1 << 63)
"""The event time, in microseconds, of a view that has no row for an entity."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,199}")
"""What a table may be called: it becomes a folder."""
STRING_BYTES_MAX = 1024 * 1024
"""A feature is a value, not a document."""
SLOTS = ("int64", "float64", "string", "bool", "timestamp")
"""Types of columns; a `timestamp` is an int of UTC microseconds here."""


class Part(msgspec.Struct, frozen=True):
    """The features of one view within a vector: they share an event time."""

    name: str
    """The view's."""
    columns: tuple[tuple[str, str], ...]
    """(feature, type), in order."""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """What a table's vectors hold."""

    table: str
    """`SERVICE` and its join keys; letters, digits and `_.-@+`."""
    fingerprint: str
    """Of everything that defines the features."""
    parts: tuple[Part, ...]

    @property
    def width(self) -> int:
        """How many columns a vector has."""
        return sum(len(part.columns) for part in self.parts)


class PartRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one view knows of one entity."""

    event_us: int
    created_us: int
    values: tuple[Any, ...]
    """As the part's columns have them; None is null."""


class Pushed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One row for one view of one entity."""

    key: bytes
    part: str
    row: PartRow


class TableState(msgspec.Struct, frozen=True, kw_only=True):
    """What a table is, without reading its vectors."""

    layout: Layout
    vectors: int
    as_of_us: tuple[int, ...]
    """Per part: the moment that its values were materialized for."""
    pushed: int
    """Rows that were pushed and stand beside the vectors."""


class Vectors(msgspec.Struct, frozen=True, gc=False):
    """What was read, column by column; row i is key i."""

    columns: Sequence[Sequence[Any]]
    """One per column of the layout; None is null, and stands in every column of an absent part."""
    has_null: Sequence[bool]
    """One per column: whether there may be a null in it."""
    events_us: Sequence[Sequence[int]]
    """One per part: when the row's fact held, or `ABSENT`."""
    created_us: Sequence[Sequence[int]]
    """One per part: when it was known."""
    as_of_us: tuple[int, ...]
    """One per part; 0 where the table was never materialized."""


class OnlineStore(Protocol):
    """Tables of vectors by name. Keys are bytes, of which none is the beginning of another (`entity_key`)."""

    def replace(
        self, layout: Layout, vectors: Iterable[tuple[bytes, Sequence[PartRow | None]]], as_of_us: Sequence[int]
    ) -> int:
        """The table holds these from now on, with what was pushed folded in; how many vectors it holds.

        vectors: (key, one row or None per part), each key once. The table may have had another layout: what was
        pushed to parts that are the same in both is kept. Raises: DrivetrainError; then nothing has changed.
        """

    def push(self, layout: Layout, rows: Sequence[Pushed]) -> int:
        """All rows or none are seen from now on; how many. The table is made where there is none.

        Raises: DrivetrainError where the table has another fingerprint.
        """

    def read(self, layout: Layout, keys: Sequence[bytes]) -> Vectors:
        """The vectors of these keys; a key without one, or a table that is not there, gives absent parts.

        Raises: DrivetrainError where the table has another fingerprint, or is damaged.
        """

    def scan(self, table: str) -> Iterable[tuple[bytes, Sequence[PartRow | None]]]:
        """Every vector as it is now, in no order."""

    def remove(self, table: str, keys: Iterable[bytes]) -> int:
        """Vectors and pushed rows of these keys are gone from the table's files; how many keys there were."""

    def state(self, table: str) -> TableState | None:
        """None where there is no table."""

    def tables(self) -> list[str]:
        """Names, sorted."""

    def drop(self, table: str) -> None:
        """The table is gone."""


def entity_key(values: Sequence[Any]) -> bytes:
    """The key of an entity: its join keys' values in the layout's order. 1 and "1" are different keys."""
    return _KEY(values)


def entity_keys(columns: Sequence[Sequence[Any]]) -> list[bytes]:
    """The keys of many entities, from one column per join key."""
    return list(map(_KEY, zip(*columns, strict=True)))


_KEY = msgspec.msgpack.Encoder().encode


def newer(one: PartRow | None, other: PartRow | None) -> PartRow | None:
    """Which of two rows of one entity and view holds: the later, then the greater, as in every training set."""
    if one is None or other is None:
        return one or other
    times, others = (one.event_us, one.created_us), (other.event_us, other.created_us)
    if times != others:
        return other if others > times else one
    return other if _rank(other) >= _rank(one) else one


def _rank(row: PartRow) -> list[tuple[int, Any]]:
    """As SQL orders values: null is the least, NaN the greatest."""
    return [(0, 0) if value is None else (2, 0) if value != value else (1, value) for value in row.values]  # noqa: PLR0124 - only NaN is not itself


def patched(row: Sequence[PartRow | None], patches: Mapping[int, PartRow] | None) -> Sequence[PartRow | None]:
    """A vector with what was pushed for it, by part."""
    if not patches:
        return row
    return [newer(have, patches.get(place)) for place, have in enumerate(row)]
