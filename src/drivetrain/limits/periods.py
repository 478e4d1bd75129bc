"""Which period an instant belongs to: pure, and monotone in time whatever clocks and zones do.

A period is named by its local date, so neither a new edition of the time zone data nor a clock that jumps back opens
it a second time. Boundaries are the instants of local midnights, which never go backwards: an hour that happens twice,
or not at all, makes a day longer or shorter, and a day that a zone skipped is empty.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import msgspec

from drivetrain.core.times import NS_PER_S

EPOCH = date(1970, 1, 1)
FIRST, LAST = date(1970, 1, 8), date(9999, 11, 30)
"""Where clocks begin and end; beyond, every instant belongs to the first or last period."""


class Period(msgspec.Struct, frozen=True):
    """[starts_ns, ends_ns)."""

    label: str
    """`2026-03-29`, `2026-W13`, `2026-03`, or `w123` for a fixed window."""
    starts_ns: int
    ends_ns: int


def period_at(now_ns: int, *, per: str, zone: str, window_s: int = 0) -> Period:
    """The period that `now_ns` is in.

    per: `day`, `week` (from Monday), `month`, or `fixed`: windows of `window_s` elapsed seconds, counted from
    midnight of 1970-01-01 in the zone. Raises: ZoneInfoNotFoundError where the zone is unknown.
    """
    tz = ZoneInfo(zone)
    if per == "fixed":
        length_ns = window_s * NS_PER_S
        anchor_ns = _midnight_ns(EPOCH, tz)
        index = (now_ns - anchor_ns) // length_ns
        starts_ns = anchor_ns + index * length_ns
        return Period(f"w{index}", starts_ns, starts_ns + length_ns)
    first = _first_day(_local_date(now_ns, tz), per)
    while first > FIRST and now_ns < _midnight_ns(first, tz):
        first = _first_day(first - timedelta(days=1), per)
    while (following := _next_first(first, per)) < LAST and now_ns >= _midnight_ns(following, tz):
        first = following
    return Period(_label(first, per), _midnight_ns(first, tz), _midnight_ns(following, tz))


@lru_cache(maxsize=1024)
def _midnight_ns(day: date, tz: ZoneInfo) -> int:
    """The instant of local midnight: of two the first, and where there is none, as the clock would have shown it."""
    return int(datetime(day.year, day.month, day.day, tzinfo=tz).timestamp()) * NS_PER_S


def _local_date(now_ns: int, tz: ZoneInfo) -> date:
    try:
        local = datetime.fromtimestamp(now_ns // NS_PER_S, tz=UTC).astimezone(tz).date()
    except (OverflowError, ValueError, OSError):
        return FIRST if now_ns < 0 else LAST - timedelta(days=31)
    return min(max(local, FIRST), LAST - timedelta(days=31))


def _first_day(day: date, per: str) -> date:
    if per == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if per == "month" else day


def _next_first(first: date, per: str) -> date:
    if per == "month":
        return (first + timedelta(days=31)).replace(day=1)
    return first + timedelta(days=7 if per == "week" else 1)


def _label(first: date, per: str) -> str:
    if per == "month":
        return f"{first:%Y-%m}"
    if per == "week":
        year, week, _ = first.isocalendar()
        return f"{year}-W{week:02d}"
    return first.isoformat()
