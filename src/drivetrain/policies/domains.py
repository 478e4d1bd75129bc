"""What values a column of a decision table can have, cut into pieces on each of which every cell answers alike.

Between two constants that cells compare with, one value stands for all; beyond every text that is named, one text
stands for the others. So questions about infinitely many inputs become questions about a few. Called by `analysis`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from drivetrain.policies.cells import Plain, Test

OTHER = "other"


class Kind(msgspec.Struct, frozen=True):
    """What is known of a field's values from its type."""

    number: bool = True
    whole: bool = False
    """Whether numbers are whole ones."""
    text: bool = True
    truth: bool = True
    nothing: bool = False
    """Whether null can stand there."""
    texts: tuple[str, ...] | None = None
    """The only texts that there are; None: any."""
    least: float = -math.inf
    most: float = math.inf
    known: bool = False
    """Whether a type said so; else what cells compare with says which kinds of value there are."""


ANYTHING = Kind()
SHARE = Kind(text=False, truth=False, nothing=True, least=0, most=1, known=True)
"""A confidence, which not every answer has."""
AMOUNT = Kind(text=False, truth=False, least=0, known=True)
DEGRADED = Kind(number=False, truth=False, texts=("", "stale", "static"), known=True)
NAMED = Kind(number=False, truth=False, known=True)


class Pieces(msgspec.Struct, frozen=True):
    """One value for each piece of a column."""

    values: tuple[Plain, ...]
    expected: int
    """Those that are expected there, as bits: all where a type is known, else of the kinds that cells compare with.
    A rule may be there for the others; a gap in them is none."""


def pieces(tests: Iterable[Test], kind: Kind) -> Pieces:
    """A column cut into pieces, at least one."""
    constants = {(type(value), value): value for test in tests for value in test.constants}.values()
    numbers = sorted({value for value in constants if isinstance(value, float)})
    texts = sorted({value for value in constants if isinstance(value, str)})
    truths = any(isinstance(value, bool) for value in constants)
    found: list[tuple[Plain, bool]] = []
    if kind.number:
        found += [(value, kind.known or bool(numbers)) for value in _numbers(numbers, kind)]
    if kind.text:
        found += [(value, kind.known or bool(texts)) for value in texts_of(texts, kind)]
    if kind.truth:
        found += [(value, kind.known or truths) for value in (False, True)]
    if kind.nothing or not kind.known:
        found.append((None, kind.nothing or None in constants))
    found = found or [(None, True)]
    expected = sum(1 << place for place, (_, likely) in enumerate(found) if likely)
    return Pieces(tuple(value for value, _ in found), expected or (1 << len(found)) - 1)


def texts_of(named: Iterable[str], kind: Kind) -> list[Plain]:
    """The texts that are named, and one that stands for all others where there are others."""
    if kind.texts is not None:
        return list(kind.texts)
    every = list(named)
    other = OTHER
    while other in every:
        other += "_"
    return [*every, other]


def _numbers(named: list[float], kind: Kind) -> list[float]:
    """Every constant, and a number between each two and beyond the outer ones."""
    if not named:
        named = [max(kind.least, 0.0)]
    found: list[float] = [named[0] - 1]
    for low, high in itertools.pairwise(named):
        found += [low, _between(low, high, kind.whole)]
    found += [named[-1], named[-1] + 1]
    inner = [value for value in found if kind.least <= value <= kind.most]
    for end in (kind.least, kind.most):
        if math.isfinite(end) and end not in inner:
            inner.append(end)
    return sorted({value for value in inner if not kind.whole or value.is_integer()})


def _between(low: float, high: float, whole: bool) -> float:
    middle = (low + high) / 2
    if whole:
        middle = math.floor(low) + 1.0
        return middle if middle < high else math.nan
    return middle if low < middle < high else math.nan


def kind_of(declared: Any, *, nullable: bool = False) -> Kind:
    """What a msgspec type says of its values; `declared` is of `msgspec.inspect`."""
    inspect = msgspec.inspect
    if isinstance(declared, inspect.UnionType):
        parts = [one for one in declared.types if not isinstance(one, inspect.NoneType)]
        nothing = nullable or len(parts) < len(declared.types)
        return (
            kind_of(parts[0], nullable=nothing)
            if len(parts) == 1
            else msgspec.structs.replace(ANYTHING, nothing=nothing)
        )
    base = Kind(number=False, text=False, truth=False, nothing=nullable, known=True)
    change = msgspec.structs.replace
    if isinstance(declared, inspect.BoolType):
        return change(base, truth=True)
    if isinstance(declared, inspect.IntType | inspect.FloatType):
        least = declared.ge if declared.ge is not None else -math.inf
        most = declared.le if declared.le is not None else math.inf
        return change(base, number=True, whole=isinstance(declared, inspect.IntType), least=least, most=most)
    if isinstance(declared, inspect.StrType):
        return change(base, text=True)
    if isinstance(declared, inspect.LiteralType) and all(isinstance(one, str) for one in declared.values):
        return change(base, text=True, texts=tuple(str(one) for one in declared.values))
    if isinstance(declared, inspect.EnumType) and all(isinstance(one.value, str) for one in declared.cls):
        return change(base, text=True, texts=tuple(str(one.value) for one in declared.cls))
    return change(ANYTHING, nothing=nullable)


def shown(values: Mapping[str, Plain]) -> str:
    """An example, as a person would write it: `input.amount = 50, answer.intent = 'other'`."""
    return ", ".join(f"{name} = {_shown(value)}" for name, value in values.items())


def _shown(value: Plain) -> str:
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e15 and float(f"{value:g}") == value else repr(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else f"'{value}'"
