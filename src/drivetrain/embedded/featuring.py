"""The features that a Snapshot's workflows need, for whoever answers their Calls."""

from __future__ import annotations

from drivetrain.adapters.mapped_online import MappedOnline
from drivetrain.core.features import FeatureService
from drivetrain.features.definitions import define
from drivetrain.features.online import OnlineReader, never_materialized, online_folder
from drivetrain.project.snapshot import Snapshot


def feature_reader(snapshot: Snapshot) -> OnlineReader | None:
    """Reads the services that workflows name; None where none does. Raises: DrivetrainError."""
    wanted = services_named(snapshot)
    if not wanted:
        return None
    definitions = define(snapshot.features)
    return OnlineReader(MappedOnline(online_folder(snapshot)), [definitions.service(name) for name in wanted])


def unmaterialized(snapshot: Snapshot) -> dict[str, list[str]]:
    """Service that a workflow names -> its views that were never materialized, where there are any. Raises:
    DrivetrainError."""
    wanted = services_named(snapshot)
    if not wanted:
        return {}
    definitions, online = define(snapshot.features), MappedOnline(online_folder(snapshot))
    found = {name: never_materialized(online, definitions.service(name)) for name in wanted}
    return {name: views for name, views in found.items() if views}


def services_named(snapshot: Snapshot) -> list[str]:
    """FeatureServices that a workflow needs, sorted."""
    named = (workflow.features for workflow in snapshot.workflows.values() if workflow.features is not None)
    return sorted({one.name if isinstance(one, FeatureService) else str(one) for one in named})
