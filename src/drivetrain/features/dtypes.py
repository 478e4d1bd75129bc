"""Types of features: what a declaration may write, how DuckDB calls it, and how a Python value becomes one.

Defaults, keys, request columns and what on-demand functions return all pass `coerce`, offline and
online alike: one implementation, so that neither side rounds, truncates or guesses differently.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from drivetrain.core.errors import did_you_mean
from drivetrain.core.features import DTYPES, Dtype

SQL_TYPES: Mapping[str, str] = {
    "int64": "BIGINT",
    "float64": "DOUBLE",
    "string": "VARCHAR",
    "bool": "BOOLEAN",
    "timestamp": "TIMESTAMPTZ",
}
"""What DuckDB calls each of `DTYPES`."""

_PYTHON_TYPES: Mapping[type, str] = {
    int: "int64",
    float: "float64",
    str: "string",
    bool: "bool",
    datetime: "timestamp",
}
_INT64_MAX = 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def dtype_name(declared: Dtype) -> str:
    """One of `DTYPES`. Raises: ValueError, with what to write."""
    if isinstance(declared, str):
        if declared in DTYPES:
            return declared
        raise ValueError(did_you_mean(declared, DTYPES))
    name = _PYTHON_TYPES.get(declared) if isinstance(declared, type) else None
    if name is None:
        raise ValueError(did_you_mean("", DTYPES))
    return name


def coerce(dtype: str, value: Any) -> Any:
    """The value as its dtype's Python type: int, float, str, bool, or an aware datetime in UTC. None stays None.

    Nothing is rounded: a float is an int64 only where it is whole. NaN and infinities are float64 values like others.
    A time without an offset is UTC, as everywhere here. Raises: ValueError.
    """
    return None if value is None else COERCE[dtype](value)


def microseconds(moment: datetime) -> int:
    """A moment as UTC microseconds since 1970, exactly; without an offset it is UTC."""
    return (_timestamp(moment) - _EPOCH) // timedelta(microseconds=1)


def kind_of(value: Any) -> str:
    """`a str`, `an int`: what a value is, for errors."""
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def _int64(value: Any) -> int:
    if isinstance(value, bool | str):
        raise _refused(value, "int64")
    if isinstance(value, float | Decimal):
        if not math.isfinite(value) or value != int(value):
            raise _refused(value, "int64")
        number = int(value)
    else:
        try:
            number = operator.index(value)
        except TypeError:
            raise _refused(value, "int64") from None
    if not -_INT64_MAX - 1 <= number <= _INT64_MAX:
        raise _refused(value, "int64")
    return number


def _float64(value: Any) -> float:
    if isinstance(value, str | bytes | bool):
        raise _refused(value, "float64")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise _refused(value, "float64") from None


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise _refused(value, "string")
    if not value.isascii() and any("\ud800" <= one <= "\udfff" for one in value):
        raise ValueError("half of a surrogate pair is in it, which no UTF-8 text holds")
    return str(value)


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refused(value, "bool")
    return value


def _timestamp(value: Any) -> datetime:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise _refused(value, "timestamp") from None
    if not isinstance(value, datetime):
        raise _refused(value, "timestamp")
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        raise _refused(value, "timestamp") from None


def _refused(value: Any, dtype: str) -> ValueError:
    return ValueError(f"{str(value)[:60]!r}, {kind_of(value)}, is no {dtype}")


COERCE: Mapping[str, Callable[[Any], Any]] = {
    "int64": _int64,
    "float64": _float64,
    "string": _string,
    "bool": _bool,
    "timestamp": _timestamp,
}
"""Per dtype, what `coerce` does with anything but None."""
