"""Records to write: Calls that tests count by number and day, segments of them, and settings for the laws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

from drivetrain.core.calls import AttemptV1, Attribution, ClosedV1, OpenedV1, Stored
from drivetrain.core.money import Usage
from drivetrain.ledger.journal import FrameJournal

T0_NS = 1_767_225_600_000_000_000
"""2026-01-01T00:00:00Z."""
STEP_NS = 1_000_000
"""Between a Call and the one of the next number."""
DAY_NS = 86_400_000_000_000

LAW = settings(
    print_blob=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""A failing example prints the blob that replays it."""


def opened_ns(number: int, day: int = 0) -> int:
    return T0_NS + day * DAY_NS + number * STEP_NS


def call_id(number: int, day: int = 0) -> str:
    return f"call_{opened_ns(number, day) // 1_000_000:012x}0123456789{number:08x}"


def attempt(variant: str = "small", cost_nano_usd: int = 1_000, **fields: Any) -> AttemptV1:
    given = {
        "model": f"openai/{variant}",
        "purpose": "answer",
        "verdict": "accepted",
        "sent_us": 100,
        "first_byte_us": 2_000,
        "ended_us": 5_000,
        "status": 200,
        "usage": Usage(100, 20, 0, 0, 50, 10, "reported"),
        **fields,
    }
    return AttemptV1(variant=variant, cost_nano_usd=cost_nano_usd, **given)


def opened(number: int, day: int = 0, **fields: Any) -> OpenedV1:
    given = {
        "snapshot": "0123456789abcdef",
        "workflow": "triage",
        "door": "chat",
        "stream": False,
        "attribution": Attribution(team="support"),
        **fields,
    }
    return OpenedV1(call_id(number, day), opened_ns(number, day), **given)


def closed(number: int, *attempts: AttemptV1, day: int = 0, **fields: Any) -> ClosedV1:
    given = {
        "status": "answered",
        "http_status": 200,
        "variant": attempts[-1].variant if attempts else "",
        "cost_nano_usd": sum(one.cost_nano_usd for one in attempts),
        **fields,
    }
    return ClosedV1(call_id(number, day), opened_ns(number, day) + 7_000_000, attempts=attempts, **given)


def put(journal: FrameJournal, *records: Stored) -> None:
    """Written before this returns."""
    written: list[bool] = []
    for record in records:
        journal.append(record, written.append)
    journal.flush()
    assert written == [True] * len(records)


def write(data_folder: Path, *records: Stored, writer: str | None = None, keep_open: bool = False) -> FrameJournal:
    """A segment of its own with these records."""
    journal = FrameJournal(data_folder, writer=writer)
    put(journal, *records)
    if not keep_open:
        journal.close()
    return journal
