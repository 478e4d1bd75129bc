"""The pages of a Parquet file, walked by their headers: whether they hold what the footer says, before any is unpacked.

A reader believes the footer. One that says less than the pages hold has rows vanish, and one page that says more than
anybody has memory for ends the process. The headers are Thrift's compact encoding; only their integers are read.
Source: parquet-format, parquet.thrift (PageHeader), and Thrift's compact protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from drivetrain.core.errors import DrivetrainError

PAGE_BYTES_MAX = 1024 * 1024 * 1024
"""Of one page unpacked; writers make pages of a megabyte, and some one page of a column chunk."""
HEADER_BYTES_MAX = 64 * 1024
"""A header holds two values of statistics at most; beyond it the file is damaged."""
DEPTH_MAX = 8
_TYPE, _UNPACKED, _PACKED, _DATA, _DICTIONARY, _DATA_2 = 1, 2, 3, 5, 7, 8


class Chunk(msgspec.Struct, frozen=True):
    """One column of one row group, as the footer has it."""

    column: str
    first_page: int
    """Where its first page begins, the dictionary's where it has one."""
    packed_bytes: int
    values: int


def check_pages(path: Path, chunks: Sequence[Chunk]) -> None:
    """Costs a read of each page's header. Raises: DrivetrainError where pages and footer differ."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for chunk in chunks:
            if chunk.first_page < 4 or chunk.packed_bytes < 0 or chunk.first_page + chunk.packed_bytes > size - 8:
                raise _lies(chunk, "its pages lie outside the file")
            held = sum(_data_values(file, chunk))
            if held != chunk.values:
                raise _lies(chunk, f"its pages hold {held:,} values, and the footer says {chunk.values:,}")


def _data_values(file: BinaryIO, chunk: Chunk) -> Iterator[int]:
    """The number of values of each data page."""
    at, end = chunk.first_page, chunk.first_page + chunk.packed_bytes
    while at < end:
        file.seek(at)
        raw = file.read(min(HEADER_BYTES_MAX, end - at))
        try:
            header, used = _struct(raw, 0, 0)
        except (IndexError, ValueError):
            raise _lies(chunk, f"what stands at byte {at:,} is no page") from None
        packed, unpacked = header.get(_PACKED, -1), header.get(_UNPACKED, -1)
        if not isinstance(packed, int) or not isinstance(unpacked, int) or packed < 0 or unpacked < 0:
            raise _lies(chunk, f"the page at byte {at:,} has no size")
        if unpacked > PAGE_BYTES_MAX:
            raise _lies(chunk, f"the page at byte {at:,} takes {unpacked:,} bytes unpacked, over {PAGE_BYTES_MAX:,}")
        body = header.get(_DATA) or header.get(_DATA_2)
        if isinstance(body, dict):
            values = body.get(1, -1)
            if not isinstance(values, int) or values < 0:
                raise _lies(chunk, f"the page at byte {at:,} does not say how many values it has")
            yield values
        at += used + packed
    if at != end:
        raise _lies(chunk, "its last page goes beyond its end")


def _struct(raw: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Integers and structs by field, and where it ends. Raises: IndexError, ValueError."""
    if depth > DEPTH_MAX:
        raise ValueError("nested too deeply")
    found: dict[int, Any] = {}
    field = 0
    while True:
        head = raw[at]
        at += 1
        if head == 0:
            return found, at
        if head >> 4:
            field += head >> 4
        else:
            field, at = _zigzag(raw, at)
        found[field], at = _value(raw, at, head & 15, depth)


def _value(raw: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):  # a boolean is its type
        return kind == 1, at
    if kind == 3:
        return raw[at], at + 1
    if kind in (4, 5, 6):
        return _zigzag(raw, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:
        length, at = _varint(raw, at)
        if at + length > len(raw):
            raise ValueError("longer than the header")
        return None, at + length
    if kind == 12:
        return _struct(raw, at, depth + 1)
    raise ValueError(f"no page header has a field of kind {kind}")


def _zigzag(raw: bytes, at: int) -> tuple[int, int]:
    number, at = _varint(raw, at)
    return (number >> 1) ^ -(number & 1), at


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = raw[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("no integer is so long")


def _lies(chunk: Chunk, what: str) -> DrivetrainError:
    return DrivetrainError(
        f"The Parquet file cannot be read: column {chunk.column}: {what}.",
        do="It is damaged, cut off, or not what its footer says. Write it anew.",
    )
