"""The lake of a data folder, where a project without `[lake]` has it."""

from __future__ import annotations

from pathlib import Path

from drivetrain.adapters.lake_places import lake_place
from drivetrain.lake.lake import Lake


def lake_at(data_folder: Path) -> Lake:
    place = lake_place("", {}, folder=data_folder / "lake", mirror=data_folder / "lake-mirror")
    return Lake(data_folder, place.tables, place.objects)
