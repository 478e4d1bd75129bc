"""Questions from Python: SQL over a project's records, Datasets and features, as Arrow."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from drivetrain.backup import layout
from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.control import CONTROL_FILE
from drivetrain.project.document import environment_name, overlay, parse
from drivetrain.project.files import SETTINGS_FILE, find_root
from drivetrain.project.problems import Problems
from drivetrain.project.secrets import resolve
from drivetrain.project.settings import Settings, read
from drivetrain.project.snapshot import LakeSettings, SecretRef, Snapshot

if TYPE_CHECKING:
    from drivetrain.adapters.lake_places import LakePlace
    from drivetrain.lake.answers import Answer
    from drivetrain.lake.lake import Lake, Parameters
    from drivetrain.ports.control import ControlRecord

QUERY_TIMEOUT_S = 300.0
"""How long a query may take unless it is told otherwise."""


def sql(
    query: str,
    parameters: Parameters | None = None,
    *,
    project: Path | str = ".",
    timeout_s: float = QUERY_TIMEOUT_S,
) -> Answer:
    """The rows of one SELECT over the named tables of the project in or above `project`.

    The answer is Arrow: `polars.from_arrow(answer)`, `pyarrow.table(answer)`, or `answer.rows` for Python's values.
    Each call opens the lake anew; who asks often keeps `open_lake(project)` and asks that. Raises: DrivetrainError.
    """
    return open_lake(project).query(query, parameters, timeout_s=timeout_s)


def open_lake(project: Path | str = ".", environ: Mapping[str, str] | None = None) -> Lake:
    """The lake of the project in or above a folder, by its settings alone: mistakes in its code do not matter.

    Raises: DrivetrainError where there is no project, its TOML cannot be read, or a secret of the lake is missing.
    """
    root = find_root(Path(project))
    settings = settings_of(root, environ)
    ledger = settings.ledger
    return lake_in(root, root / ledger.folder, root / ledger.keys_folder, settings.lake, environ)


def lake_in(
    root: Path,
    data_folder: Path,
    keys_folder: Path,
    settings: LakeSettings,
    environ: Mapping[str, str] | None = None,
) -> Lake:
    """The lake of a project whose settings are known. Raises: DrivetrainError where a secret of it is missing."""
    from drivetrain.lake.lake import Lake

    layout.read_layout(data_folder)
    place = lake_stores(root, data_folder, settings, environ)

    def control() -> Iterable[ControlRecord]:
        from drivetrain.adapters.sqlite import open_control_log

        begun = (data_folder / CONTROL_FILE).exists()
        return open_control_log(data_folder, keys_folder).records() if begun else ()

    def datasets() -> Mapping[str, Sequence[Path]]:
        from drivetrain.datasets.numbers import parquet_paths

        return parquet_paths(place.objects)

    def features() -> Mapping[str, Sequence[Path]]:
        from drivetrain.features.snapshots import snapshot_paths

        return snapshot_paths(place.objects)

    def catch_up() -> None:
        from drivetrain.lake.roller import Roller

        Roller(data_folder, place.tables).roll()

    return Lake(
        data_folder,
        place.tables,
        place.objects,
        control=control,
        registered={"dataset": datasets, "feature": features},
        catch_up=catch_up,
    )


def lake_for(snapshot: Snapshot, environ: Mapping[str, str] | None = None) -> Lake:
    """The lake of a loaded project."""
    return lake_in(snapshot.root, snapshot.data_folder, snapshot.keys_folder, snapshot.lake, environ)


def lake_stores(
    root: Path, data_folder: Path, settings: LakeSettings, environ: Mapping[str, str] | None = None
) -> LakePlace:
    """Tables and files of a project's lake: in its data folder, or in the object store that `[lake]` names."""
    from drivetrain.adapters.lake_places import lake_place

    given = os.environ if environ is None else environ
    options = {
        name: resolve(value, root, given, used_by=f"lake.options.{name}") if isinstance(value, SecretRef) else value
        for name, value in settings.options.items()
    }
    return lake_place(settings.url, options, folder=data_folder / "lake", mirror=data_folder / "lake-mirror")


def settings_of(root: Path, environ: Mapping[str, str] | None = None) -> Settings:
    """What the project's TOML says; mistakes in it are what `drivetrain check` tells, and stand at their defaults."""
    path, problems = root / SETTINGS_FILE, Problems()
    try:
        parsed = parse(path.read_bytes(), problems)
    except OSError as error:
        raise DrivetrainError(f"{path} cannot be read: {error}.", do="Run `drivetrain check`.") from None
    if parsed is None:
        raise DrivetrainError(f"{path} cannot be read.", do="Run `drivetrain check`.")
    return read(
        overlay(parsed, environment_name(parsed, None, os.environ if environ is None else environ), problems),
        root,
        problems,
    )
