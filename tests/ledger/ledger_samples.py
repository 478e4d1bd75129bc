"""Records to write, and settings for the laws."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, settings

from drivetrain.core.calls import AttemptV1, Attribution, ClosedV1, OpenedV1, Stored
from drivetrain.core.money import Usage
from drivetrain.ledger.journal import FrameJournal

T0_NS = 1_767_225_600_000_000_000
"""2026-01-01T00:00:00Z."""

LAW = settings(
    print_blob=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""A failing example prints the blob that replays it."""


def call_id(number: int) -> str:
    return f"call_{T0_NS // 1_000_000 + number:012x}0123456789{number:08x}"


def attempt(variant: str = "small", cost_nano_usd: int = 1_000, **fields: object) -> AttemptV1:
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
    return AttemptV1(variant=variant, cost_nano_usd=cost_nano_usd, **given)  # type: ignore[arg-type]


def opened(number: int, **fields: object) -> OpenedV1:
    given = {
        "snapshot": "0123456789abcdef",
        "workflow": "triage",
        "door": "chat",
        "stream": False,
        "attribution": Attribution(team="support"),
        **fields,
    }
    return OpenedV1(call_id(number), T0_NS + number * 1_000_000, **given)  # type: ignore[arg-type]


def closed(number: int, *attempts: AttemptV1, **fields: object) -> ClosedV1:
    given = {
        "status": "answered",
        "http_status": 200,
        "variant": attempts[-1].variant if attempts else "",
        "cost_nano_usd": sum(one.cost_nano_usd for one in attempts),
        **fields,
    }
    return ClosedV1(call_id(number), T0_NS + number * 1_000_000 + 7_000_000, attempts=attempts, **given)  # type: ignore[arg-type]


def write(data_folder: Path, *records: Stored, writer: str | None = None, keep_open: bool = False) -> FrameJournal:
    """A segment of its own with these records."""
    journal = FrameJournal(data_folder, writer=writer)
    written: list[bool] = []
    for record in records:
        journal.append(record, written.append)
    journal.flush()
    assert written == [True] * len(records)
    if not keep_open:
        journal.close()
    return journal
