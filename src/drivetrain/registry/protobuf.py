"""The wire format of protocol buffers, read without a schema and without trust: bounded, and nothing is copied.

Only what the check of ONNX files needs: numbers, and parts as views of the file. Every length is held against what is
left before it is used; how many fields are read at all is limited by a budget that one walk shares.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
VARINT_BYTES_MAX = 10
"""64 bits, seven of them in each byte."""


class Malformed(ValueError):
    """Bytes that are no message: why."""


class Budget:
    """How many fields may still be read."""

    __slots__ = ("left",)

    def __init__(self, fields: int) -> None:
        self.left = fields


def fields(data: memoryview, budget: Budget) -> Iterator[tuple[int, int, int | memoryview]]:
    """(number, wire type, value) of each field of one message; a number, or a view of its bytes. Raises: Malformed."""
    at, end = 0, len(data)
    while at < end:
        budget.left -= 1
        if budget.left < 0:
            raise Malformed("it has more fields than any model needs")
        key = data[at]
        at += 1
        if key >= 0x80:
            key, at = _varint(data, at - 1)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise Malformed("a field has the number 0")
        if wire == BYTES:
            length, at = _varint(data, at)
            if length > end - at:
                raise Malformed(f"a part says to have {length:,} bytes where {end - at:,} are left")
            yield number, wire, data[at : at + length]
            at += length
        elif wire == VARINT:
            if at < end and data[at] < 0x80:  # most of them are, and there are millions
                value = data[at]
                at += 1
            else:
                value, at = _varint(data, at)
            yield number, wire, value
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
            if length > end - at:
                raise Malformed("it ends in the middle of a number")
            yield number, wire, data[at : at + length]
            at += length
        else:
            raise Malformed(f"a field has the wire type {wire}")


def text(value: int | memoryview) -> str:
    """A field's bytes as UTF-8. Raises: Malformed."""
    try:
        return str(_bytes(value), "utf-8")
    except UnicodeDecodeError:
        raise Malformed("a name is no UTF-8") from None


def part(value: int | memoryview) -> memoryview:
    """A field that is a message, a text or bytes. Raises: Malformed."""
    return _bytes(value)


def number(value: int | memoryview) -> int:
    """A field that is a varint, as a signed 64-bit integer. Raises: Malformed."""
    if not isinstance(value, int):
        raise Malformed("a part stands where a number should")
    return value - (1 << 64) if value >= 1 << 63 else value


def numbers(wire: int, value: int | memoryview, budget: Budget) -> Iterator[int]:
    """One element of a repeated integer, or a packed run of them. Raises: Malformed."""
    if wire == VARINT:
        yield number(value)
        return
    data, at = _bytes(value), 0
    while at < len(data):
        budget.left -= 1
        if budget.left < 0:
            raise Malformed("it has more numbers than any model needs")
        found, at = _varint(data, at)
        yield number(found)


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise Malformed("a number stands where a part should")
    return value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    for place in range(at, min(len(data), at + VARINT_BYTES_MAX)):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, place + 1
        shift += 7
    raise Malformed("a number in it never ends")
