"""Universal Binary JSON as XGBoost writes it, read without trust: counts are held against the bytes that are left.

Source: https://ubjson.org, draft 12. Called by imports, and by the scorer of such a file.
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import Any

import msgspec

DEPTH_MAX = 32
"""XGBoost's own documents are ten deep."""
VALUES_MAX = 5_000_000
"""Besides the numbers of typed lists: a tree has some thirty, and an import of as many takes seconds."""
_NUMBERS = {"i": ("b", 1), "U": ("B", 1), "I": ("h", 2), "l": ("i", 4), "L": ("q", 8), "d": ("f", 4), "D": ("d", 8)}
"""Marker -> how `struct` and `array` call it, and its bytes."""
_COUNTS = "iUIlL"


def decode_ubjson(data: bytes) -> Any:
    """One value, and nothing behind it; typed lists of numbers become arrays. Raises: ValueError."""
    reader = _Reader(data)
    value = reader.value(reader.marker(), 0)
    if reader.at != len(data):
        raise ValueError("something stands behind its end")
    return value


def json_of(value: Any) -> bytes:
    """What `decode_ubjson` gave, as JSON; a number that is not finite becomes null."""
    return msgspec.json.encode(value, enc_hook=_plain)


def _plain(value: object) -> object:
    if isinstance(value, array):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0
        self._values = 0

    def marker(self) -> str:
        if self.at >= len(self._data):
            raise ValueError("it ends too early")
        self.at += 1
        return chr(self._data[self.at - 1])

    def value(self, marker: str, depth: int) -> Any:
        self._values += 1
        if depth > DEPTH_MAX or self._values > VALUES_MAX:
            raise ValueError("it is nested too deeply, or has too many values")
        if marker in _NUMBERS:
            return self._number(marker)
        if marker == "S":
            return self._text()
        if marker == "[":
            return self._list(depth)
        if marker == "{":
            return self._object(depth)
        if marker in "TFZ":
            return {"T": True, "F": False, "Z": None}[marker]
        raise ValueError(f"{marker!r} begins no value")

    def _bytes(self, count: int) -> bytes:
        if not 0 <= count <= len(self._data) - self.at:
            raise ValueError(f"a part says to have {count:,} bytes where {len(self._data) - self.at:,} are left")
        self.at += count
        return self._data[self.at - count : self.at]

    def _number(self, marker: str) -> int | float:
        code, width = _NUMBERS[marker]
        found: int | float = struct.unpack(f">{code}", self._bytes(width))[0]
        return found

    def _count(self) -> int:
        marker = self.marker()
        if marker not in _COUNTS:
            raise ValueError(f"{marker!r} begins no count")
        return int(self._number(marker))

    def _text(self) -> str:
        return self._bytes(self._count()).decode("utf-8")

    def _list(self, depth: int) -> Any:
        marker = self.marker()
        if marker == "$":
            kind = self.marker()
            if kind not in _NUMBERS or self.marker() != "#":
                raise ValueError("a list is of no known type")
            code, width = _NUMBERS[kind]
            count = self._count()
            numbers: array[Any] = array(code)
            assert numbers.itemsize == width
            numbers.frombytes(self._bytes(count * width))
            if sys.byteorder == "little":
                numbers.byteswap()
            return numbers
        if marker == "#":
            return [self.value(self.marker(), depth + 1) for _ in range(self._bounded(self._count()))]
        found = []
        while marker != "]":
            found.append(self.value(marker, depth + 1))
            marker = self.marker()
        return found

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        marker = self.marker()
        while marker != "}":
            if marker not in _COUNTS:
                raise ValueError("an object has a name that is none")
            name = self._bytes(int(self._number(marker))).decode("utf-8")
            if name in found:
                raise ValueError(f"{name[:50]!r} is there twice")
            found[name] = self.value(self.marker(), depth + 1)
            marker = self.marker()
        return found

    def _bounded(self, count: int) -> int:
        if not 0 <= count <= len(self._data) - self.at:
            raise ValueError("a list says to be longer than what is left")
        return count
