"""The lake of a project, for the commands that read it: the folders of its settings, and the adapters behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drivetrain.cli.places import LedgerPlaces
from drivetrain.embedded.asking import lake_in, settings_of

if TYPE_CHECKING:
    from drivetrain.lake.lake import Lake


def lake_of(places: LedgerPlaces) -> Lake:
    """The lake beside these records, or where `[lake]` says. Raises: DrivetrainError."""
    return lake_in(places.root, places.data_folder, places.keys_folder, settings_of(places.root).lake)
