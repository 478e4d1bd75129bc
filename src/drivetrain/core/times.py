"""Times as UTC nanoseconds in records, and as ISO 8601 for people; durations as `90s`, `10m`, `6h`, `2d`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

NS_PER_S = 1_000_000_000
DURATION_DAYS_MAX = 36_500
"""A hundred years; beyond it times overflow, and nobody means it."""
_DURATION = re.compile(r"([0-9]{1,10})([smhdw])")
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def iso(ns: int) -> str:
    """`2026-01-31T12:00:00.123Z`, UTC, milliseconds."""
    seconds, rest = divmod(ns, NS_PER_S)
    stamp = datetime.fromtimestamp(seconds, tz=UTC)
    return f"{stamp:%Y-%m-%dT%H:%M:%S}.{rest // 1_000_000:03d}Z"


def parse_iso(text: str) -> int:
    """An ISO 8601 date or time as nanoseconds; without an offset it is UTC.

    Raises: ValueError where the text is no ISO 8601 time.
    """
    stamp = datetime.fromisoformat(text)
    if stamp.tzinfo is None:
        stamp = stamp.replace(tzinfo=UTC)
    whole = stamp.replace(microsecond=0)
    return int(whole.timestamp()) * NS_PER_S + stamp.microsecond * 1_000


def duration_us(declared: timedelta | str) -> int:
    """`90s`, `10m`, `6h`, `2d`, `1w` or a timedelta, in microseconds; `0s` is one.

    Raises: ValueError, with what to write.
    """
    if isinstance(declared, timedelta):
        microseconds = declared // timedelta(microseconds=1)
    else:
        found = _DURATION.fullmatch(declared) if isinstance(declared, str) else None
        if found is None:
            raise ValueError("Write a whole number and a unit: `90s`, `10m`, `6h`, `2d`, `1w`.")
        microseconds = int(found[1]) * _UNITS_S[found[2]] * 1_000_000
    if microseconds < 0:
        raise ValueError("It is not less than nothing.")
    return microseconds


def span_us(declared: timedelta | str) -> int:
    """As `duration_us`, of what lasts longer than nothing: a window, a promise. Raises: ValueError."""
    microseconds = duration_us(declared)
    if not 0 < microseconds <= DURATION_DAYS_MAX * 86_400_000_000:
        raise ValueError(f"It is more than nothing and at most `{DURATION_DAYS_MAX}d`.")
    return microseconds


def lasted_text(ns: float) -> str:
    """How long something took, for people: `3.1 seconds` below a minute, else `4.5 minutes`."""
    return f"{ns / NS_PER_S:.1f} seconds" if ns < 60 * NS_PER_S else f"{ns / NS_PER_S / 60:.1f} minutes"


def duration_text(us: int) -> str | None:
    """Microseconds as `duration_us` reads them, in the largest unit up to days; None where seconds are not whole."""
    for unit in "dhms":
        if us % (_UNITS_S[unit] * 1_000_000) == 0:
            return f"{us // (_UNITS_S[unit] * 1_000_000)}{unit}"
    return None
