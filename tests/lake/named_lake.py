"""Lakes in a folder, and whole Calls to ask about."""

from __future__ import annotations

from pathlib import Path

from drivetrain.adapters.lake_places import lake_place
from drivetrain.core.calls import Stored
from drivetrain.lake.lake import Lake
from drivetrain.lake.roller import Roller
from drivetrain.ports.tables import TableStore
from support.records import attempt, closed, opened


def tables_in(folder: Path) -> TableStore:
    return lake_place("", {}, folder=folder / "lake", mirror=folder / "mirror").tables


def lake_in(folder: Path) -> Lake:
    place = lake_place("", {}, folder=folder / "lake", mirror=folder / "mirror")
    return Lake(folder, place.tables, place.objects)


def roll(folder: Path) -> int:
    """How many Calls went into the lake."""
    return Roller(folder, tables_in(folder)).roll().calls


def ended(number: int, cost_nano_usd: int = 1_000) -> list[Stored]:
    """Both frames of a Call."""
    return [opened(number), closed(number, attempt(cost_nano_usd=cost_nano_usd))]
