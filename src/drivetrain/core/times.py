"""Times as UTC nanoseconds in records, and as ISO 8601 for people."""

from __future__ import annotations

from datetime import UTC, datetime

NS_PER_S = 1_000_000_000


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
