"""The FeatureStore of a project, wired: its lake, its online vectors and its control log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drivetrain.features.store import FeatureStore
    from drivetrain.ports.control import ControlLog
    from drivetrain.project.snapshot import Snapshot


def feature_store(project: Path | str | Snapshot = ".", *, now_ns: Callable[[], int] | None = None) -> FeatureStore:
    """The features of the project in or above a folder, or of a Snapshot. Raises: ProjectError, DrivetrainError."""
    import time

    from drivetrain.adapters.mapped_online import MappedOnline
    from drivetrain.embedded.applying import person
    from drivetrain.embedded.asking import lake_for
    from drivetrain.features.online import online_folder
    from drivetrain.features.store import FeatureStore
    from drivetrain.project import find_root, load

    snapshot = load(find_root(Path(project))) if isinstance(project, str | Path) else project

    def control() -> ControlLog:
        from drivetrain.adapters.sqlite import open_control_log

        return open_control_log(snapshot.data_folder, snapshot.keys_folder)

    return FeatureStore(
        snapshot,
        lake=lake_for(snapshot),
        online=MappedOnline(online_folder(snapshot)),
        control=control,
        actor=person(),
        now_ns=now_ns or time.time_ns,
    )
