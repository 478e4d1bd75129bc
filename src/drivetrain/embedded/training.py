"""Training in a project, wired: its Datasets, its registry, its Reports, and the scorers that will serve."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.recipes import AnyRecipe, TextClassification, TrainedModel
from drivetrain.project import find_root, load

if TYPE_CHECKING:
    from drivetrain.datasets import Datasets
    from drivetrain.project.snapshot import Snapshot
    from drivetrain.training.progress import Progress
    from drivetrain.training.training import Made, Training

TEXT_LIBRARIES = ("numpy", "scipy", "sklearn")
LIBRARIES = (*TEXT_LIBRARIES, "lightgbm", "onnx", "skl2onnx", "onnxruntime")
"""What a training on texts imports, and what any other does; named where one is missing."""


def train(
    model: str | TrainedModel,
    *,
    project: Path | str | Snapshot = ".",
    progress: Progress | None = None,
    now_ns: Callable[[], int] = time.time_ns,
) -> Made:
    """The next version of a model, with its Report; no alias is moved, so nothing that is served changes.

    model: a name that the project declares, or a declaration of its own. Costs what the recipe does, up to minutes.
    Raises: ProjectError, DrivetrainError; then nothing is registered.
    """
    snapshot = project
    if isinstance(snapshot, str | Path):
        snapshot = load(find_root(Path(snapshot)), unresolved_models="leave")
    declared = declared_model(snapshot, model) if isinstance(model, str) else model
    check_installed(declared.recipe)
    training = training_in(snapshot, now_ns=now_ns)
    return training.train(declared) if progress is None else training.train(declared, progress=progress)


def declared_model(snapshot: Snapshot, name: str) -> TrainedModel:
    """The project's declaration of a model. Raises: DrivetrainError where there is none."""
    found = snapshot.trained.get(name)
    if found is None:
        raise DrivetrainError(
            f"The project declares no trained model `{name[:100]}`.",
            looked=[f"{len(snapshot.trained)} declared: {', '.join(sorted(snapshot.trained)[:20]) or 'none'}"],
            do=did_you_mean(name, snapshot.trained)
            or "Write a dt.TrainedModel in `training/`, or say --dataset, --recipe and --label.",
        )
    return found


def training_in(snapshot: Snapshot, *, now_ns: Callable[[], int] = time.time_ns) -> Training:
    """The room that trains, over a loaded project; what its recipes import is installed, see `check_installed`."""
    from drivetrain.adapters.sqlite import open_control_log
    from drivetrain.embedded.applying import person
    from drivetrain.embedded.modelling import registry_in
    from drivetrain.inference.scorers import open_scorer
    from drivetrain.lineage.lineage import Lineage
    from drivetrain.registry.reports import FOLDER, Reports
    from drivetrain.training.training import Training

    control = open_control_log(snapshot.data_folder, snapshot.keys_folder, now_ns=now_ns)
    return Training(
        datasets_in(snapshot, now_ns=now_ns),
        registry_in(snapshot.data_folder, snapshot.keys_folder, now_ns=now_ns),
        # Without lineage of its own: a training records it once the version has its number.
        Reports(snapshot.data_folder / FOLDER),
        Lineage(control, actor=person(), now_ns=now_ns),
        open_scorer=open_scorer,
        actor=person(),
        now_ns=now_ns,
    )


def datasets_in(snapshot: Snapshot, *, now_ns: Callable[[], int] = time.time_ns) -> Datasets:
    """The Datasets of a loaded project, for reading. Raises: DrivetrainError."""
    from drivetrain.adapters.sqlite import open_control_log
    from drivetrain.datasets import Datasets, staging_folder
    from drivetrain.embedded.applying import person
    from drivetrain.embedded.asking import lake_for

    lake = lake_for(snapshot)
    assert lake.objects is not None, "a project's lake has a place for files"
    return Datasets(
        lake,
        lake.objects,
        open_control_log(snapshot.data_folder, snapshot.keys_folder, now_ns=now_ns),
        root=snapshot.root,
        scratch=staging_folder(snapshot.data_folder),
        actor=person(),
        now_ns=now_ns,
    )


def check_installed(recipe: AnyRecipe) -> None:
    """Raises: DrivetrainError where a library that this recipe trains with is not there."""
    from importlib.util import find_spec

    wanted = TEXT_LIBRARIES if isinstance(recipe, TextClassification) else LIBRARIES
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        raise DrivetrainError(
            f"Training needs libraries that are not installed: {', '.join(missing)}.",
            do='Run `pip install "drivetrain[train]"`.',
        )
