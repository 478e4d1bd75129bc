"""Lakes in a folder, and records to ask about."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, settings

from drivetrain.adapters.lake_places import lake_place
from drivetrain.core.calls import AttemptV1, Attribution, ClosedV1, OpenedV1, Stored
from drivetrain.core.money import Usage
from drivetrain.lake.lake import Lake
from drivetrain.lake.roller import Roller
from drivetrain.ledger.journal import FrameJournal
from drivetrain.ports.tables import TableStore

T0_NS = 1_767_225_600_000_000_000
"""2026-01-01T00:00:00Z."""
STEP_NS = 1_000_000

LAW = settings(
    print_blob=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""A failing example prints the blob that replays it."""


def tables_in(folder: Path) -> TableStore:
    return lake_place("", {}, folder=folder / "lake", mirror=folder / "mirror").tables


def lake_in(folder: Path) -> Lake:
    place = lake_place("", {}, folder=folder / "lake", mirror=folder / "mirror")
    return Lake(folder, place.tables, place.objects)


def roll(folder: Path) -> int:
    """How many Calls went into the lake."""
    return Roller(folder, tables_in(folder)).roll().calls


def call_id(number: int) -> str:
    return f"call_{(T0_NS + number * STEP_NS) // 1_000_000:012x}0123456789{number:08x}"


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
    return OpenedV1(call_id(number), T0_NS + number * STEP_NS, **given)  # type: ignore[arg-type]


def closed(number: int, *attempts: AttemptV1, **fields: object) -> ClosedV1:
    given = {
        "status": "answered",
        "http_status": 200,
        "variant": attempts[-1].variant if attempts else "",
        "cost_nano_usd": sum(one.cost_nano_usd for one in attempts),
        **fields,
    }
    closed_ns = T0_NS + number * STEP_NS + 7_000_000
    return ClosedV1(call_id(number), closed_ns, attempts=attempts, **given)  # type: ignore[arg-type]


def ended(number: int, cost_nano_usd: int = 1_000) -> list[Stored]:
    """Both frames of a Call."""
    return [opened(number), closed(number, attempt(cost_nano_usd=cost_nano_usd))]


def write(data_folder: Path, *records: Stored, keep_open: bool = False) -> FrameJournal:
    """A segment of its own with these records."""
    journal = FrameJournal(data_folder)
    for record in records:
        journal.append(record)
    journal.flush()
    if not keep_open:
        journal.close()
    return journal
