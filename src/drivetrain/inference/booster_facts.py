"""What both boosters' files have in common: what a checked model says of itself and why one is refused."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Facts(msgspec.Struct, frozen=True):
    """What a checked model says of itself."""

    columns: int
    outputs: int
    """Numbers per row."""
    objective: str


class Unsound(Exception):
    """Why a model's trees cannot be walked."""


def within(values: Iterable[float], end: int, what: str, *, least: int = 0) -> None:
    """Raises: Unsound where a value is below `least` or not below `end`."""
    if not all(least <= value < end for value in values):
        raise Unsound(f"{what} lies beyond the {end} there are")
